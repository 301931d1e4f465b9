"""What a report is, before it becomes text: scores and facts under a title; and a sheet, one table of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, replace

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation.pairs import PairScore
from hba_ray.evaluation.scores import Scores
from hba_ray.specs.atlas import Split

MISSING = "–"
"""What stands where a number is missing."""
TINY_TITLE = " (a tiny random model: it checks the machinery and gives no verdict against the paper)"

_PLACE = {dataset: place for place, dataset in enumerate(DATASETS)}
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class Facts:
    """What the scores rest on.

    Attributes:
        model: `model.backbone` of the spec; `tiny` is the randomly initialised one.
        fingerprint: of the spec.
        versions: package -> version.
        rows_used: dataset -> split -> rows, without those that were dropped; empty where a sweep's trials differ in them.
        rows_dropped: dataset -> reason -> rows.
    """

    model: str
    seed: int
    fingerprint: str
    versions: dict[str, str]
    rows_used: dict[str, dict[Split, int]]
    rows_dropped: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Report:
    """Scores and facts under a title.

    Attributes:
        title: for a tiny model the warning `TINY_TITLE` is added to it.
        scores: arm (a stage or a variant) -> scores, in the order in which arms are listed.
        notes: paragraphs for the end.
        comparisons: of arms, dataset by dataset.
    """

    title: str
    scores: dict[str, Scores]
    facts: Facts
    notes: tuple[str, ...] = ()
    comparisons: tuple[PairScore, ...] = ()

    def __post_init__(self) -> None:
        if self.is_tiny and not self.title.endswith(TINY_TITLE):
            object.__setattr__(self, "title", self.title + TINY_TITLE)

    @property
    def is_tiny(self) -> bool:
        return self.facts.model == "tiny"


@dataclass(frozen=True)
class Sheet:
    """A table of text. Columns from `numbers_from` on are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int
    notes: tuple[str, ...] = ()


def columns(sheet: Sheet, kept: Sequence[int]) -> Sheet:
    """The sheet with these columns alone, by their places."""
    return replace(
        sheet,
        header=tuple(sheet.header[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in sheet.rows),
        numbers_from=sum(place < sheet.numbers_from for place in kept),
    )


def dataset_place(row: tuple[str, ...]) -> int:
    """The benchmark's order of a row that begins with a dataset; sorting is stable, so arms and reasons keep theirs."""
    return _PLACE.get(row[0], len(_PLACE))


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """
    >>> signed(-0.0001)
    '+0.000'
    """
    return MISSING if value is None else f"{round(value, 3) + 0.0:+.3f}"  # + 0.0 turns -0.0 into 0.0


def between(interval: tuple[float, float] | None, show: Callable[[float | None], str] = number) -> str:
    return MISSING if interval is None else f"{show(interval[0])} to {show(interval[1])}"

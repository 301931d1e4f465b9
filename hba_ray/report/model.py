"""What a report is, before it becomes text: the scores of a run or a sweep, and what they rest on, under a title."""

from __future__ import annotations

from dataclasses import field

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hba_ray.evaluation.pairs import PairScore
from hba_ray.evaluation.scores import Scores
from hba_ray.specs.sections.atlas import Split
from hba_ray.store.spending import Spent

TINY_TITLE = " (a tiny random model: it checks the machinery and gives no verdict against the paper)"
"""Ends the title of a report on the randomly initialised model."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class RunFacts:
    """What the scores rest on.

    Attributes:
        model: `model.backbone` of the spec; `tiny` is the randomly initialised one.
        fingerprint: of the spec.
        versions: package -> version.
        rows_used: dataset -> split -> rows, without those that were dropped; empty where a sweep's trials differ in them.
        rows_dropped: dataset -> reason -> rows.
        spent: by the steps that the run has done itself, interrupted attempts included; None where nothing was that is counted.
    """

    model: str
    seed: int
    fingerprint: str
    versions: dict[str, str]
    rows_used: dict[str, dict[Split, int]]
    rows_dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    spent: Spent | None = None


@dataclass(frozen=True, config=_STRICT)
class Report:
    """The scores of a run or a sweep, and what they rest on.

    Attributes:
        title: for a tiny model the warning `TINY_TITLE` is added to it.
        scores: arm (a stage or a variant) -> scores, in the order in which arms are listed.
        notes: paragraphs for the end.
        comparisons: of arms, dataset by dataset.
    """

    title: str
    scores: dict[str, Scores]
    facts: RunFacts
    notes: tuple[str, ...] = ()
    comparisons: tuple[PairScore, ...] = ()

    def __post_init__(self) -> None:
        if self.is_tiny and not self.title.endswith(TINY_TITLE):
            object.__setattr__(self, "title", self.title + TINY_TITLE)

    @property
    def is_tiny(self) -> bool:
        return self.facts.model == "tiny"

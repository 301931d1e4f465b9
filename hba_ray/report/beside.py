"""Numbers of an atlas beside the paper's: as cells, as pictures, and as a table or figure of which formats make files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from hba_ray.data.tasks import DATASETS, TOTAL_ROWS
from hba_ray.evaluation.survey import Survey
from hba_ray.report.charts import SHARES, Forest, ForestGroup, ForestRow, Mark, Scale, ticks
from hba_ray.report.formats import Document
from hba_ray.report.sheets import MISSING, Sheet
from hba_ray.specs.paper import DESCRIPTIVE

TOY_NOTE = "A toy atlas takes the place of the benchmark: this checks the machinery, and says nothing about the paper."
ONCE_NOTE = "MMPsy's rows stand in an atlas once for each of its two tasks, and are counted once here."
OUTSIDE_NOTE = "Rows of datasets outside the benchmark are shown, and are in no sum."
MEASURED = "measured"


@dataclass(frozen=True)
class Compared:
    """A number of the atlas beside the paper's.

    Attributes:
        measured: None where the atlas does not hold what it is about.
        published: None where the paper prints none.
        half_unit: how far the printed number may be from the one it was rounded from.
    """

    row: str
    column: str
    measured: float | None
    published: float | None
    half_unit: float = 0.0

    @property
    def agrees(self) -> bool | None:
        """Whether both are the same number; None where one of them is missing."""
        if self.measured is None or self.published is None:
            return None
        return abs(self.measured - self.published) <= self.half_unit + 1e-12


@dataclass(frozen=True)
class AtlasTable:
    """One of the tables that describe the atlas, or the figure.

    Attributes:
        id: as the command line takes it: T7, F1.
        numbers: what is measured beside what is published.
        forests: the same as pictures.
    """

    id: str
    survey: Survey
    sheets: tuple[Sheet, ...]
    numbers: tuple[Compared, ...] = ()
    forests: tuple[Forest, ...] = ()

    @property
    def title(self) -> str:
        name = f"Figure {self.id[1:]}" if self.id.startswith("F") else f"Table {self.id[1:]}"
        where = "of a toy atlas: no verdict about the paper is possible" if self.survey.is_toy else "measured beside published"
        return f"{name}, {where}: {DESCRIPTIVE[self.id]}"

    @property
    def outcome(self) -> str:
        """One line that counts the numbers that are as published."""
        if self.survey.is_toy:
            return "no verdict: toy atlas"
        known = [one.agrees for one in self.numbers if one.agrees is not None]
        agreeing = f"{sum(known)} of {len(known)} numbers as published; " if known else ""
        return f"{agreeing}rows: {self.survey.total():,} of {sum(TOTAL_ROWS):,}"

    def document(self) -> Document:
        stated = {
            "table": self.id,
            "is_toy": self.survey.is_toy,
            "atlas": self.survey.fingerprint,
            "numbers": [asdict(one) for one in self.numbers],
            "sheets": [{"title": sheet.title, "header": sheet.header, "rows": sheet.rows} for sheet in self.sheets],
        }
        facts = (("Spec", self.survey.name), ("Atlas", self.survey.fingerprint), ("Outcome", self.outcome))
        return Document(self.title, self.sheets, json.dumps(stated, indent=1, ensure_ascii=False) + "\n", facts)


def side_by_side(measured: int | None, published: int | None) -> Iterator[str]:
    """A count, the published one, and their difference."""
    yield from (whole(measured), whole(published))
    yield MISSING if measured is None or published is None else f"{measured - published:+,}" if measured != published else "0"


def sum_known(counts: Iterable[int | None]) -> int | None:
    """The sum of those that are there; None where none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def whole(value: float | None) -> str:
    """A whole number, for example 101,964."""
    return MISSING if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share, for example 83.6%."""
    return MISSING if value is None else f"{value:.1%}"


def notes_on(survey: Survey) -> tuple[str, ...]:
    """What a reader of counts should know."""
    if survey.is_toy:
        return (TOY_NOTE,)
    outside = any(not DATASETS[name].is_benchmark for name in survey.datasets)
    return (ONCE_NOTE, OUTSIDE_NOTE) if outside else (ONCE_NOTE,)


def share_forest(title: str, shares: Sequence[tuple[str, float | None, float | None]]) -> Forest:
    """Shares, each with its published one."""
    rows = tuple(drawn_row(name, ours, theirs, percent) for name, ours, theirs in shares)
    return Forest(title, "Share of", SHARES, ("Measured", "Published"), (ForestGroup(title, rows),), has_legend=True, value=MEASURED)


def count_forest(title: str, groups: Mapping[str, Sequence[tuple[str, int | None, int | None]]]) -> Forest:
    """Counts on one scale from zero, each with its published one."""
    most = max((one or 0 for rows in groups.values() for _, *pair in rows for one in pair), default=0)
    marks = ticks(0, max(most, 1), 4, whole=True)
    drawn = tuple(
        ForestGroup(name, tuple(drawn_row(row, ours, theirs, whole) for row, ours, theirs in rows)) for name, rows in groups.items()
    )
    return Forest(title, "Rows of", Scale(0, marks[-1], tuple(marks)), ("Measured", "Published"), drawn, has_legend=True, value=MEASURED)


def drawn_row(name: str, ours: float | None, theirs: float | None, show: Callable[[float | None], str]) -> ForestRow:
    """A row of a forest, with both numbers as `show` writes them."""
    return ForestRow(name, Mark(ours, published=theirs), (show(ours), show(theirs)))

"""A sheet: one table of text, as every format of a report shows it; and how numbers are written in its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hba_ray.data.tasks import DATASETS

MISSING = "–"
"""What stands where a number is missing."""


@dataclass(frozen=True)
class Sheet:
    """A table of text. Columns from `numbers_from` on are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int
    notes: tuple[str, ...] = ()


def with_columns(sheet: Sheet, kept: Sequence[int]) -> Sheet:
    """The sheet with some of its columns alone, given by their places."""
    return replace(
        sheet,
        header=tuple(sheet.header[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in sheet.rows),
        numbers_from=sum(place < sheet.numbers_from for place in kept),
    )


def dataset_place(row: tuple[str, ...]) -> int:
    """The benchmark's order of a row that begins with a dataset; sorting is stable, so arms and reasons keep theirs."""
    return list(DATASETS).index(row[0]) if row[0] in DATASETS else len(DATASETS)


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """
    >>> signed(-0.0001)
    '+0.000'
    """
    return MISSING if value is None else f"{round(value, 3) + 0.0:+.3f}"  # + 0.0 turns -0.0 into 0.0


def between(interval: tuple[float, float] | None, show: Callable[[float], str] = number) -> str:
    """
    >>> between((0.25, 0.5)), between(None)
    ('0.250 to 0.500', '–')
    """
    return MISSING if interval is None else f"{show(interval[0])} to {show(interval[1])}"

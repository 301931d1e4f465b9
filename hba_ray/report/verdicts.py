"""Verdicts on a published table: on every cell, every difference of columns and every claim, from what was measured.

A cell agrees where the published value, known to half a unit of its last digit, lies in the interval of
ours. A difference is as published where a paired test finds it, with the published sign; the p-values
of one contrast are adjusted for its rows (Holm 1979). Where the smallest difference that the test rows
show with a power of 0.8 is larger than the published one, they cannot tell, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hba_ray.data.tasks import DATASETS, TASKS
from hba_ray.errors import DataError, SpecError
from hba_ray.evaluation.columns import WHOLE_NUMBERS, Column, Estimate, compare
from hba_ray.evaluation.statistics import Comparison, holm
from hba_ray.specs.paper import Contrast, Gate, PaperSpec

ALPHA = 0.05
NO_VERDICT = "no verdict"

Key = TypeVar("Key")


@dataclass(frozen=True)
class CellVerdict:
    """A cell of the table, and whether it agrees with the published number.

    Attributes:
        row: as measured; at toy scale the toy dataset that stands for the task.
        published: None where there is none.
        published_row: the row that the published number is printed in; at toy scale another one than `row`.
        verdict: agrees, higher or lower; or why there is none.
    """

    row: str
    column: str
    estimate: Estimate
    published: float | None
    published_row: str
    verdict: str

    @property
    def difference(self) -> float | None:
        """Measured minus published, where the two are the same number."""
        ours = self.estimate.value
        if ours is None or self.published is None or self.verdict == NO_VERDICT or not self.estimate.is_comparable:
            return None
        return ours - self.published


@dataclass(frozen=True)
class ContrastVerdict:
    """The difference of two columns in one row, and whether it is as published.

    Attributes:
        published: absolute change; None where there is none.
        percent: the published change in per cent, where it is printed.
        p_adjusted: the p-value, adjusted for the rows of the contrast (Holm 1979).
    """

    row: str
    of: str
    over: str
    comparison: Comparison
    published: float | None
    percent: float | None
    p_adjusted: float | None
    verdict: str


@dataclass(frozen=True)
class GateVerdict:
    """A claim of the paper, and whether it holds.

    Attributes:
        met: None where too much is missing to say.
        held, missed, unknown: rows (for each column held against), by outcome.
    """

    gate: Gate
    met: bool | None
    held: tuple[str, ...]
    missed: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class TableVerdict:
    """A published table with all its verdicts.

    Attributes:
        is_toy: measured on the toy atlas or by a tiny model, so that nothing is said about the paper.
    """

    paper: PaperSpec
    is_toy: bool
    cells: tuple[CellVerdict, ...]
    contrasts: tuple[ContrastVerdict, ...]
    gates: tuple[GateVerdict, ...]

    @property
    def is_met(self) -> bool:
        """Whether every claim holds; at toy scale there are none to hold."""
        return all(gate.met for gate in self.gates)


def give_verdicts(paper: PaperSpec, columns: Mapping[str, Column], *, is_toy: bool = False) -> TableVerdict:
    """Sets measured columns beside the published table and gives a verdict on each cell, contrast and claim.

    Args:
        columns: by the names of the table; those that nothing measures are left out. Where they are of
            the toy atlas, rows stand for the toy datasets of their tasks.
        is_toy: a tiny model, or the toy atlas: nothing is said about the paper.

    Raises:
        DataError: a row names nothing that can be measured, or two trials measure one cell.
    """
    cells, contrasts = [], []
    is_toy_atlas = any(column.toy for column in columns.values())
    is_toy = is_toy or is_toy_atlas
    for column, published in paper.published.items():
        for row, asked in _rows(published, is_toy_atlas).items():
            estimate = columns[column].estimate(row) if column in columns else Column(()).estimate(row)
            verdict = _cell(estimate, published[asked], half_unit(paper, asked), column in columns, is_toy)
            cells.append(CellVerdict(row, column, estimate, published[asked], asked, verdict))
    for contrast in paper.contrasts:
        contrasts += _contrast(paper, contrast, columns, is_toy, is_toy_atlas)
    gates = () if is_toy else tuple(_gate(paper, gate, columns) for gate in paper.gates)
    return TableVerdict(paper, is_toy, tuple(cells), tuple(contrasts), gates)


def check_rows(paper: PaperSpec, where: str) -> None:
    """Refuses a table whose rows could never be measured.

    Raises:
        SpecError: a row is no dataset, task or known measure.
    """
    for rows in (*paper.published.values(), *(dict.fromkeys(gate.rows, 0.0) for gate in paper.gates)):
        for row in rows:
            try:
                Column(()).estimate(row)
            except DataError as unknown:
                raise SpecError(where, f"paper: row '{row}': {unknown.what}", unknown.way_out) from None


def half_unit(paper: PaperSpec, row: str) -> float:
    """How far a printed value may be from the one it was rounded from."""
    measure = row.partition("/")[2]
    return 0.0 if measure in WHOLE_NUMBERS else 0.5 * 10 ** -(0 if measure == "peak_mb" else paper.digits)  # memory is printed in whole MB


def toy_row(row: str) -> str | None:
    """The row of the toy atlas that stands for one of the paper's; None where no toy dataset has its task.

    >>> toy_row("mosei_senti/weighted_f1"), toy_row("SEN"), toy_row("urfunny"), toy_row("HUM")
    ('toy_nod/weighted_f1', 'SEN', None, None)
    """
    subject, slash, measure = row.partition("/")
    if subject not in DATASETS and subject not in TASKS:
        return row
    task = DATASETS[subject].task if subject in DATASETS else TASKS[subject]
    stand_in = next((name for name, dataset in DATASETS.items() if dataset.is_toy and dataset.task == task), None)
    if stand_in is None or subject in TASKS:
        return stand_in and row
    return f"{stand_in}{slash}{measure}"


def _rows(published: Mapping[str, object], is_toy_atlas: bool) -> dict[str, str]:
    """Row as measured -> row as published. At toy scale a toy row stands for several; the first of them is taken."""
    rows: dict[str, str] = {}
    for row in published:
        measured = toy_row(row) if is_toy_atlas else row
        if measured is not None:
            rows.setdefault(measured, row)
    return rows


def _cell(estimate: Estimate, published: float | None, half: float, is_measured: bool, is_toy: bool) -> str:
    reason = _why_not(estimate) if is_measured else "not measured here"
    if reason or is_toy or published is None or estimate.value is None:
        return reason or NO_VERDICT
    low, high = estimate.interval.low, estimate.interval.high
    if low is None or high is None:
        low = high = estimate.value
    if low - half - 1e-12 <= published <= high + half + 1e-12:
        return "agrees"
    return "higher" if estimate.value > published else "lower"


def _why_not(estimate: Estimate) -> str:
    """Why a number is not the one that the paper prints; empty where it is."""
    if estimate.value is None:
        return "missing"
    if estimate.absent:
        return f"partial: {len(estimate.datasets)} of {len(estimate.datasets) + len(estimate.absent)} datasets"
    return estimate.caveat if estimate.judged else "not judged"


def _contrast(
    paper: PaperSpec, contrast: Contrast, columns: Mapping[str, Column], is_toy: bool, is_toy_atlas: bool
) -> list[ContrastVerdict]:
    of, over = (columns.get(name, Column(())) for name in (contrast.of, contrast.over))
    ours, theirs = paper.published[contrast.of], paper.published[contrast.over]
    rows = _rows({row: None for row in ours if row in theirs}, is_toy_atlas)
    compared = {row: compare(of, over, row)[0] for row in rows}
    adjusted = _holm({row: one.p_value for row, one in compared.items()})
    verdicts = []
    for row, asked in rows.items():
        percent, absolute = contrast.published.get(asked, (None, None))
        published = ours[asked] - theirs[asked] if absolute is None else absolute
        reason = next((why for why in (_why_not(of.estimate(row)), _why_not(over.estimate(row))) if why), "")
        verdict = reason or (NO_VERDICT if is_toy else _difference(compared[row], adjusted[row], published, half_unit(paper, asked)))
        verdicts.append(ContrastVerdict(row, contrast.of, contrast.over, compared[row], published, percent, adjusted[row], verdict))
    return verdicts


def _difference(comparison: Comparison, p_value: float | None, published: float, half: float) -> str:
    value = comparison.difference.value
    if value is None:
        return "missing"
    if comparison.difference.low is None:
        return "no interval, so no verdict"
    is_published = abs(published) > half
    if _is_sure(comparison, p_value):
        if not is_published:
            return "a difference, none published"
        return "as published" if (value > 0) == (published > 0) else "opposite"
    if not is_published:
        return "none, as published"
    if comparison.detectable is not None and comparison.detectable > abs(published):
        return "cannot be resolved here"
    return "not found"


def _gate(paper: PaperSpec, gate: Gate, columns: Mapping[str, Column]) -> GateVerdict:
    rows = gate.rows or tuple(paper.published[gate.of])
    outcomes = _near(paper, gate, columns, rows) if gate.within is not None else _better(gate, columns, rows)
    held, missed, unknown = (tuple(name for name, outcome in outcomes.items() if outcome is kind) for kind in (True, False, None))
    needed = gate.at_least or len(rows)
    met = True if len(held) >= needed else (None if len(held) + len(unknown) >= needed else False)
    return GateVerdict(gate, met, held, missed, unknown)


def _near(paper: PaperSpec, gate: Gate, columns: Mapping[str, Column], rows: Sequence[str]) -> dict[str, bool | None]:
    outcomes: dict[str, bool | None] = {}
    for row in rows:
        estimate = columns.get(gate.of, Column(())).estimate(row)
        published = paper.published[gate.of].get(row)
        known = estimate.is_comparable and estimate.value is not None and published is not None
        outcomes[row] = abs(estimate.value - published) <= (gate.within or 0) if known else None  # type: ignore[operator]
    return outcomes


def _better(gate: Gate, columns: Mapping[str, Column], rows: Sequence[str]) -> dict[str, bool | None]:
    """Row -> whether the gate's column is better there than each of the others."""
    of = columns.get(gate.of, Column(()))
    compared = {(row, name): compare(of, columns.get(name, Column(())), row)[0] for row in rows for name in gate.over}
    adjusted = _holm({key: one.p_value for key, one in compared.items()})
    outcomes: dict[str, bool | None] = {}
    for row in rows:
        known = all(columns.get(name, Column(())).estimate(row).is_comparable for name in (gate.of, *gate.over))
        values = [compared[row, name].difference.value for name in gate.over]
        if not known or None in values:
            outcomes[row] = None
        else:
            sure = all(_is_sure(compared[row, name], adjusted[row, name]) for name in gate.over)
            outcomes[row] = all(value > 0 for value in values if value is not None) and (sure or not gate.significant)
    return outcomes


def _is_sure(comparison: Comparison, p_value: float | None) -> bool:
    """Whether chance is ruled out: by the test, where there is one, and by the interval, which also knows of training seeds."""
    low, high = comparison.difference.low, comparison.difference.high
    return (p_value is None or p_value < ALPHA) and low is not None and high is not None and not low <= 0 <= high


def _holm(p_values: Mapping[Key, float | None]) -> dict[Key, float | None]:
    known = {key: p for key, p in p_values.items() if p is not None}
    return dict.fromkeys(p_values) | dict(zip(known, holm(list(known.values())), strict=True))

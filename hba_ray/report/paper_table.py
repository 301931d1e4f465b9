"""A table of the paper as sheets: every cell, every difference of columns and every claim with its verdict, and what the run did
otherwise than the paper. Its Table 13, what adapters cost, is measured and shown by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from hba_ray.evaluation.columns import WHOLE_NUMBERS
from hba_ray.evaluation.costs import Cost, Latency
from hba_ray.report.formats import Document, markdown, to_markdown
from hba_ray.report.model import TINY_TITLE
from hba_ray.report.sheets import MISSING, Sheet, between, signed
from hba_ray.report.verdicts import ALPHA, CellVerdict, ContrastVerdict, GateVerdict, TableVerdict

TOY_NOTE = (
    "At toy scale a table checks the machinery: a tiny random model or toy data take the place of the model and the data that the paper's "
    "column names. Measured and published are of different things, and no verdict is possible."
)
BRACKETS_NOTE = "In brackets stands the row that a published number is of, where ours is of the toy dataset in its place."
INTERVAL_NOTE = "95% interval: percentiles of 2000 resamples of whole clips and, where there are several, of training seeds."
AGREES_NOTE = (
    "agrees: the published value lies in our interval, widened by half a unit of its last digit. "
    "The paper prints no intervals, so its own sampling error is not in the verdict."
)
CONTRAST_NOTE = (
    "p: paired permutation test over clips, two-sided, adjusted for the rows of one contrast (Holm). "
    "Detectable: the smallest true difference that these test rows show with a power of 0.8; "
    "where the published difference is smaller, this test set cannot resolve it."
)
GATE_NOTE = f"Better means above each of the other columns and, unless the claim says otherwise, p < {ALPHA:g} after Holm's correction."
CLAIMS = "Claims"
"""Title of the sheet of claims."""

PUBLISHED_COSTS = {"without BAM": Cost(0.284, 0.029, 24_265), "with BAM": Cost(0.300, 0.047, 24_291)}
"""Table 13: Qwen2.5-Omni-7B in FP16, 500 rows at batch 1, on H200 GPUs."""


def title(found: TableVerdict) -> str:
    where = "at toy scale: no verdict about the paper is possible" if found.is_toy else "measured against published"
    return f"Table {found.paper.table.removeprefix('T')}, {where}: {found.paper.title}"


def sheets(found: TableVerdict, differs: Sequence[str] = ()) -> tuple[Sheet, ...]:
    """The table's sheets in reading order.

    Args:
        differs: what this run does otherwise than the shipped spec, beside what the spec itself names.
    """
    footnotes = tuple(f"Differs: {line}" for line in (*found.paper.differs, *differs))
    made = [_cell_sheet(found, footnotes)]
    if found.contrasts:
        made.append(_contrast_sheet(found))
    if found.gates:
        made.append(_gate_sheet(found))
    return tuple(made)


def document(found: TableVerdict, differs: Sequence[str] = ()) -> Document:
    """The table as formats take it; `differs` as in `sheets`."""
    return Document(title(found), sheets(found, differs), render_json(found))


def render_markdown(found: TableVerdict, differs: Sequence[str] = ()) -> str:
    return to_markdown(document(found, differs))


def render_json(found: TableVerdict) -> str:
    """All numbers with all their digits, for programs."""
    stated = {
        "table": found.paper.table,
        "is_toy": found.is_toy,
        "is_met": None if found.is_toy else found.is_met,
        "cells": [asdict(cell) for cell in found.cells],
        "contrasts": [asdict(one) for one in found.contrasts],
        "gates": [
            {"says": gate.gate.says, "met": gate.met, "held": gate.held, "missed": gate.missed, "unknown": gate.unknown}
            for gate in found.gates
        ],
    }
    return json.dumps(stated, indent=1) + "\n"


def outcome(found: TableVerdict) -> str:
    """One line that counts the verdicts of the cells and the claims that are met."""
    if found.is_toy:
        return "no verdict: toy scale"
    counts: dict[str, int] = {}
    for cell in found.cells:
        counts[cell.verdict] = counts.get(cell.verdict, 0) + 1
    cells = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    met = sum(gate.met is True for gate in found.gates)
    claims = f"; {met} of {len(found.gates)} claims met" if found.gates else ""
    return f"cells: {cells}{claims}"


def _cell_sheet(found: TableVerdict, footnotes: tuple[str, ...]) -> Sheet:
    header = ("Row", "Column", "Measured", "95% interval", "Seeds", "Published")
    digits = found.paper.digits
    if found.is_toy:
        header = ("Row", "In place of", *header[2:])
        rows = tuple((*_measured(cell), published(cell, digits)) for cell in found.cells)
        brackets = (BRACKETS_NOTE,) if any(cell.published_row != cell.row for cell in found.cells) else ()
        return Sheet("Measured and published", header, rows, 2, (TOY_NOTE, *brackets, INTERVAL_NOTE, *footnotes))
    rows = tuple((*_measured(cell), published(cell, digits), *_compared(cell)) for cell in found.cells)
    notes = (INTERVAL_NOTE, AGREES_NOTE, *footnotes)
    return Sheet("Measured and published", (*header, "Difference", "Verdict"), rows, 2, notes)


def _measured(cell: CellVerdict) -> tuple[str, ...]:
    return cell.row, cell.column, shown(cell.row, cell.estimate.value), cell_interval(cell), str(cell.estimate.seeds or MISSING)


def cell_interval(cell: CellVerdict) -> str:
    return between(cell.estimate.interval.bounds, lambda end: shown(cell.row, end))


def published(cell: CellVerdict, digits: int) -> str:
    """The published number, and whose it is where ours is of a toy dataset."""
    number = shown(cell.row, cell.published, digits)
    return number if cell.published_row == cell.row else f"{number} ({cell.published_row})"


def _compared(cell: CellVerdict) -> tuple[str, ...]:
    return MISSING if cell.difference is None else shown(cell.row, cell.difference, sign="+"), cell.verdict


def _contrast_sheet(found: TableVerdict) -> Sheet:
    header = ("Row", "Of", "Over", "Difference", "95% interval", "p", "Detectable", "Published", "Published %")
    rows = ((*_contrasted(one), *_printed(one)) for one in found.contrasts)
    if found.is_toy:
        header = ("Row", "In place of", "Over that of", *header[3:])
    else:
        header = (*header, "Verdict")
        rows = ((*cells, one.verdict) for cells, one in zip(rows, found.contrasts, strict=True))
    return Sheet("Differences of columns", header, tuple(rows), 3, (CONTRAST_NOTE,))


def _contrasted(one: ContrastVerdict) -> tuple[str, ...]:
    of = one.comparison.difference
    p_value = MISSING if one.p_adjusted is None else f"{one.p_adjusted:.3f}"
    detectable = MISSING if one.comparison.detectable is None else f"{one.comparison.detectable:.3f}"
    return one.row, one.of, one.over, signed(of.value), between(of.bounds, signed), p_value, detectable


def _printed(one: ContrastVerdict) -> tuple[str, ...]:
    percent = MISSING if one.percent is None else f"{one.percent:+.2f}"
    return signed(one.published), percent


def _gate_sheet(found: TableVerdict) -> Sheet:
    words = {True: "met", False: "missed", None: "open"}
    rows = tuple((gate.gate.says, words[gate.met], "; ".join(_how(gate))) for gate in found.gates)
    return Sheet(CLAIMS, ("Claim", "Outcome", "Rows"), rows, 3, (GATE_NOTE,))


def _how(gate: GateVerdict) -> Iterator[str]:
    for word, rows in (("holds", gate.held), ("does not hold", gate.missed), ("not known", gate.unknown)):
        if rows:
            yield f"{word}: {', '.join(rows)}"


def shown(row: str, value: float | None, digits: int = 3, sign: str = "") -> str:
    """A number with as many digits as its row deserves.

    >>> shown("tess/rank", 3.0), shown("cost/peak_mb", 24265.4), shown("SAR", -0.0001, sign="+")
    ('3', '24265', '+0.000')
    """
    if value is None:
        return MISSING
    digits = 0 if row.partition("/")[2] in WHOLE_NUMBERS or abs(value) >= 1000 else digits
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def cost_sheet(found: Latency) -> Sheet:
    """Costs without adapters and with them, and what they add; ours beside those published."""
    ours = {"without BAM": found.without, "with BAM": found.with_bam}
    rows = tuple((name, *_cells(cost), *_cells(PUBLISHED_COSTS[name])) for name, cost in ours.items())
    names = ("Mean (s)", "Deviation (s)", "Peak (MiB)")
    header = ("Configuration", *names, *(f"Published {name}" for name in names))
    notes = (
        f"Ours: {found.rows} rows at batch 1 on {found.device}, weights in {found.precision}; {found.warm_up} more to warm up. "
        "A forward pass from a row's inputs to its logits; decoding and extraction are not in it. Both run on every row, in turns.",
        "Peak: of the GPU's memory where the model is on one, else of the process. "
        "Published: FP16, batch 1, 500 rows, one batch to warm up, H200 GPUs.",
    )
    return Sheet("Latency and memory (Table 13)", header, (*rows, _added(ours)), 1, notes)


def render_cost(found: Latency, model: str) -> str:
    """The table of costs as Markdown; `model` is the backbone."""
    title = f"What adapters cost: {model}" + (TINY_TITLE if model == "tiny" else "")
    return f"# {title}\n\n{markdown(cost_sheet(found))}\n"


def _cells(cost: Cost) -> tuple[str, ...]:
    return f"{cost.mean:.4f}", f"{cost.deviation:.4f}", f"{cost.peak:,.0f}"


def _added(ours: dict[str, Cost]) -> tuple[str, ...]:
    cells: list[str] = []
    for costs in (ours, PUBLISHED_COSTS):
        before, after = costs["without BAM"], costs["with BAM"]
        cells += [f"{100 * (after.mean / before.mean - 1):+.1f} %", MISSING, f"{after.peak - before.peak:+,.0f}"]
    return "added", *cells

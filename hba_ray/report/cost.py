"""What adapters cost beside the paper's Table 13."""

from __future__ import annotations

from hba_ray.evaluation.latency import Cost, Latency
from hba_ray.report.base import MISSING, TINY_TITLE, Sheet
from hba_ray.report.formats import markdown

PUBLISHED = {"without BAM": Cost(0.284, 0.029, 24_265), "with BAM": Cost(0.300, 0.047, 24_291)}
"""Table 13: Qwen2.5-Omni-7B in FP16, 500 rows at batch 1, on H200 GPUs."""


def cost_sheet(found: Latency) -> Sheet:
    """Both configurations, and what adapters add, ours beside the published."""
    ours = {"without BAM": found.without, "with BAM": found.with_bam}
    rows = tuple((name, *_cells(cost), *_cells(PUBLISHED[name])) for name, cost in ours.items())
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
    title = f"What adapters cost: {model}" + (TINY_TITLE if model == "tiny" else "")
    return f"# {title}\n\n{markdown(cost_sheet(found))}\n"


def _cells(cost: Cost) -> tuple[str, ...]:
    return f"{cost.mean:.4f}", f"{cost.deviation:.4f}", f"{cost.peak:,.0f}"


def _added(ours: dict[str, Cost]) -> tuple[str, ...]:
    cells: list[str] = []
    for costs in (ours, PUBLISHED):
        before, after = costs["without BAM"], costs["with BAM"]
        cells += [f"{100 * (after.mean / before.mean - 1):+.1f} %", MISSING, f"{after.peak - before.peak:+,.0f}"]
    return "added", *cells

"""Numbers of an arm that are no scores of its predictions: what adapters cost, how answers are written, how far judges agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hba_ray.evaluation.agreement import Labels, agree
from hba_ray.evaluation.columns import Fact
from hba_ray.evaluation.statistics import Interval, interval, ratio_draws
from hba_ray.runtime.read_back import read_parquet
from hba_ray.sweeps.steps.judge import verdicts_in

if TYPE_CHECKING:
    from hba_ray.evaluation.latency import Latency

RATINGS = ("fluency", "coherence", "relevance")
NORMAL_95 = 1.96
"""Standard errors on either side of a mean that hold it 19 times of 20."""
PAPERS_GPU, PAPERS_PRECISIONS = "H200", ("bf16", "fp16")
"""What Table 13 was measured on, and the precisions whose weights take as many bytes."""


def cost(found: Latency, arm: str) -> dict[str, Fact]:
    """Time and memory of an arm, with adapters or without; comparable with the paper's on its own GPU alone."""
    of = found.with_bam if "bam" in arm.split("+") else found.without
    is_papers = PAPERS_GPU in found.device and found.precision in PAPERS_PRECISIONS
    caveat, error = "" if is_papers else "other hardware", of.deviation / max(found.rows, 1) ** 0.5
    mean = Interval(of.mean, of.mean - NORMAL_95 * error, of.mean + NORMAL_95 * error, error, 0.95, found.rows)
    others = {
        name: Interval(value, None, None, None, 0.95, found.rows) for name, value in (("std_seconds", of.deviation), ("peak_mb", of.peak))
    }
    return {f"cost/{name}": Fact(one, caveat=caveat) for name, one in {"mean_seconds": mean, **others}.items()}


def cost_note(found: Latency) -> str:
    """What a reader of the costs has to know, where they are not measured as the paper's."""
    return (
        f"Measured on {found.device}, weights in {found.precision}, {found.rows} rows; the paper has FP16 on H200 GPUs and 500 rows. "
        "Verdicts are given on such a GPU alone."
    )


def written(rows: Path, clips: Mapping[str, str]) -> dict[str, Fact]:
    """How an arm's open answers are written; what no judge has rated is left out.

    Args:
        rows: table of the retention step.
        clips: "dataset sample_id" -> clip, of all rows of the arm.
    """
    table = read_parquet(rows).to_pylist()
    of_rows = [clips[f"{row['dataset']} {row['sample_id']}"] for row in table]
    rated = {name: [row[name] for row in table] for name in RATINGS}
    facts = {
        f"answers/{name}": _mean([rating or 0 for rating in given], [float(rating is not None) for rating in given], of_rows)
        for name, given in rated.items()
        if any(rating is not None for rating in given)
    }
    losses, tokens = [row["log_loss"] for row in table], [float(row["tokens"]) for row in table]
    return facts | ({"answers/perplexity": _mean(losses, tokens, of_rows, exponent=True)} if any(tokens) else {})


def agreement(first: Path, second: Path | Labels, clips: Mapping[str, str]) -> dict[str, Fact]:
    """Cohen's kappa of a judge and another, or a person.

    Args:
        first, second: folders of judge steps; or labels by "dataset sample_id".
        clips: "dataset sample_id" -> clip.
    """
    other = labels_in(second) if isinstance(second, Path) else second
    return {"agreement/kappa": Fact(agree(labels_in(first), other, clips=clips).kappa)}


def labels_in(folder: Path) -> dict[str, bool | None]:
    """What a judge step left, by "dataset sample_id"."""
    return {f"{dataset} {sample}": correct for (dataset, sample), correct in verdicts_in(folder).items()}


def clips_in(predictions: Path) -> dict[str, str]:
    """Clip of each predicted row, by "dataset sample_id"; a row without one is its own."""
    rows = read_parquet(predictions, columns=["dataset", "sample_id", "clip_id"]).to_pylist()
    return {f"{row['dataset']} {row['sample_id']}": row["clip_id"] or row["sample_id"] for row in rows}


def _mean(parts: Sequence[float], wholes: Sequence[float], clips: Sequence[str], *, exponent: bool = False) -> Fact:
    """sum(parts) / sum(wholes) on the rows that count, or the exponential of it, resampled by clip."""
    drawn_R, value = ratio_draws(parts, wholes, clips), sum(parts) / sum(wholes)
    drawn_R, value = (np.exp(drawn_R), float(np.exp(value))) if exponent else (drawn_R, value)
    order = tuple(dict.fromkeys(clips))
    return Fact(interval(value, drawn_R, len(order)), drawn_R, order)

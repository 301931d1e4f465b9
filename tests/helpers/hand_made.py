"""Predictions made by hand: so many rows of a dataset, so many of them right."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation.columns import ArmResult


def rows_of(dataset: str, right: int, wrong: int, *, start: int = 0) -> list[dict[str, str | None]]:
    """Rows whose true labels go round the dataset's classes; a wrong one says the next class, an open one something else."""
    known = DATASETS[dataset]
    rows: list[dict[str, str | None]] = []
    for number in range(right + wrong):
        place = start + number
        hit = number < right
        row: dict[str, str | None] = {"sample_id": f"{dataset}-{place}", "clip_id": f"clip-{dataset}-{place}", "dataset": dataset}
        if known.task.is_open:
            row |= {"true": f"answer {place}", "predicted": None, "answer": f"answer {place}" if hit else "no idea"}
        else:
            labels = [label for label in known.labels if label != "neutral"]
            row |= {"true": labels[place % len(labels)], "predicted": labels[(place + (not hit)) % len(labels)], "answer": None}
        rows.append({**row, "task": known.task.id})
    return rows


def result(rows: list[dict[str, str | None]], *, arm: str = "sft", seed: int = 0, trial: str = "trial", **more: Any) -> ArmResult:
    return ArmResult(trial, arm, seed, pa.Table.from_pylist(rows), **more)

"""The metrics of a step, from its log, under the names that a tracker shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hba_ray.steps.base import STEP_LOG, Step
from hba_ray.store.folders import read_lines
from hba_ray.store.follow import Metrics


def shown_metrics(name: str, line: Mapping[str, Any]) -> tuple[Metrics, int]:
    """(metrics, optimiser step) of a line of a step's log, under the names that MLflow shows.

    >>> shown_metrics("sft", {"step": 3, "loss": 0.5, "improved": True})
    ({'sft/loss': 0.5}, 3)
    """
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    place = name.replace(" ", "/")
    return {f"{place}/{key}": float(value) for key, value in numbers.items() if key != "step"}, int(line["step"])


def logged_metrics(step: Step) -> Iterator[tuple[Metrics, int]]:
    """(metrics, optimiser step) of each line of a step's log, whichever run did the step."""
    for line in read_lines(step.file(STEP_LOG)) if step.has(STEP_LOG) else ():
        if "step" in line:
            yield shown_metrics(step.name, line)

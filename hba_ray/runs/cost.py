"""What the adapters of a finished experiment cost on this machine; kept in the folder of its run (the paper's Table 13)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.errors import SpecError
from hba_ray.runs.plan import Experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context
from hba_ray.steps.stages import bam
from hba_ray.store.folders import write_text

if TYPE_CHECKING:
    from hba_ray.evaluation.costs import Latency

TABLE, NUMBERS = "table13.md", "table13.json"
"""In the folder of the run."""


def check_has_adapters(spec: ExperimentSpec) -> None:
    """Refuses a spec without adapters.

    Raises:
        SpecError: the spec trains no adapters.
    """
    if "bam" not in spec.stages:
        raise SpecError("stages", "has no 'bam', so there are no adapters to measure", "give a spec with stages: [sft, bam]")


def measure_cost(
    experiment: Experiment, rows: int = 500, warm_up: int = 1, on_row: Callable[[], None] = lambda: None
) -> tuple[Latency, Path]:
    """Measures latency and memory of the adapters of a finished experiment; returns them, and the run's folder, where they lie.

    Raises:
        SpecError: the spec has no adapters, or they are not trained yet.
    """
    spec, folder = experiment.spec, experiment.folder
    check_has_adapters(spec)
    made = {step.name: step for step in experiment.steps if not step.arm}
    missing = [name for name, step in made.items() if not step.is_done]
    if missing:
        raise SpecError(spec.name, f"the step '{missing[0]}' is not done yet", "run the spec first: hba run SPEC")
    from hba_ray.evaluation.latency import measure_latency
    from hba_ray.report.paper_table import render_cost

    folder.mkdir(parents=True, exist_ok=True)
    found = measure_latency(bam.predict_job(Context(spec, made["bam"], made)), rows, warm_up, on_row)
    write_text(folder / TABLE, render_cost(found, spec.model.backbone))
    write_text(folder / NUMBERS, json.dumps(found.to_json(), indent=1) + "\n")
    return found, folder


def known_cost(experiment: Experiment) -> Latency | None:
    """What `measure_cost` measured before; None where it was not called yet."""
    from hba_ray.evaluation.costs import Latency

    file = experiment.folder / NUMBERS
    return Latency.from_json(file.read_bytes(), where=str(file)) if file.is_file() else None

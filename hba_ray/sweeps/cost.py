"""Measures on the steps of a finished experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.errors import SpecError
from hba_ray.runtime.storage import Storage
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.plan import plan, run_fingerprint
from hba_ray.sweeps.steps import bam
from hba_ray.sweeps.steps.base import Context

if TYPE_CHECKING:
    from hba_ray.evaluation.latency import Latency


def measure_cost(spec: ExperimentSpec, rows: int, warm_up: int, on_row: Callable[[], None]) -> tuple[Latency, Path]:
    """What the adapters of a finished experiment cost, and the folder of its run.

    Raises:
        SpecError: the spec has no adapters, or they are not trained yet.
    """
    from hba_ray.evaluation.latency import measure_latency

    if "bam" not in spec.stages:
        raise SpecError("stages", "has no 'bam', so there are no adapters to measure", "give a spec with stages: [sft, bam]")
    storage = Storage(spec.compute.storage)
    steps = plan(spec, storage)
    missing = [step.name for step in steps if not step.arm and not step.is_done]
    if missing:
        raise SpecError(spec.name, f"the step '{missing[0]}' is not done yet", "run the spec first: hba run SPEC")
    folders = {step.name: step.folder for step in steps}
    context = Context(spec, folders, folders["bam"], lambda metrics, step: None)
    folder = storage.run(spec.name, run_fingerprint(steps))
    folder.mkdir(parents=True, exist_ok=True)
    return measure_latency(bam.predict_job(context), rows, warm_up, on_row), folder

"""How fast journals of a sweep's trials reach MLflow's sqlite store, from the first line of each to its end.

Goal: at least 50 trials a second. CPU seconds are given beside it, which other work on the machine changes least.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hba_ray.specs.sections.compute import TrackingSpec
from hba_ray.store.journal import Forwarder, JournalTracker, Record
from hba_ray.store.mlflow import PARENT, MlflowTracker, standard_tags

TRIALS, STEPS = 200, (10, 50)
"""Trials of each measurement, and steps at which each of them has three metrics."""


def measure() -> Iterator[dict[str, float | str]]:
    for steps in STEPS:
        with tempfile.TemporaryDirectory() as name:
            seconds, cpu = _seconds(Path(name), steps)
            of = f"of {TRIALS} trials with {3 * steps} points each"
            yield {f"trials a second, {of} (goal >= 50)": TRIALS / seconds, f"trials a CPU second, {of}": TRIALS / cpu}


def _seconds(folder: Path, steps: int) -> tuple[float, float]:
    """Seconds of wall time and of CPU time that it takes."""
    mlflow = MlflowTracker(TrackingSpec(), folder)
    forwarder = Forwarder(mlflow, lambda line: None)
    JournalTracker(folder / "sweep").start("sweep", {"sft.lr": 1e-4}, standard_tags("0" * 12, 0))
    forwarder.add(folder / "sweep")
    forwarder.flush()
    parent = forwarder.run_id(folder / "sweep")
    for trial in range(TRIALS):
        journal = folder / f"trial-{trial}"
        tracker = JournalTracker(journal)
        tracker.start("its own name", {}, {})
        for step in range(steps):
            tracker.log_metrics({"sft/loss": 1 / (1 + step), "sft/lr": 1e-4, "sft/gradient_norm": 1.0}, step)
        tracker.end()
        tags = standard_tags(f"{trial:012}", 0) | {PARENT: parent}
        forwarder.add(journal, Record(f"sft.lr={trial}", {"sft.lr": trial, "seed": 0}, tags))
    began, cpu = time.perf_counter(), time.process_time()
    forwarder.flush()
    return time.perf_counter() - began, time.process_time() - cpu

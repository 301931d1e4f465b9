"""Sweeps whose drivers are killed anywhere, or of which there are two: nothing done twice, nothing lost, nothing left open.

Drivers are forked from a server that has imported everything, so that kills hit the work and not the imports.
"""

import multiprocessing
import os
import random
import signal
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from hba_ray.store.folders import ledger
from tests.helpers.experiments import small_sweep

KILLS = 10
PATIENCE_SECONDS = 300
PRELOADED = [
    "hba_ray.runs.sweep",
    "hba_ray.training.launch",
    "hba_ray.training.sft",
    "hba_ray.models.tiny",
    "hba_ray.predict.heads",
    "mlflow",
]


def drive(storage: Path) -> None:
    """What a driver process runs; its output goes to a file."""
    from hba_ray.runs.sweep import run_sweep
    from hba_ray.runs.sweep_plan import plan_sweep

    with (storage.parent / f"{storage.name}.said").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        run_sweep(plan_sweep(small_sweep(storage)), lambda line: said.write(line + "\n") and said.flush()).check()


@pytest.fixture(scope="module")
def drivers():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started: list[ForkServerProcess] = []

    def start(storage: Path) -> ForkServerProcess:
        process = context.Process(target=drive, args=(storage,))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def said(storage: Path) -> str:
    return (storage.parent / f"{storage.name}.said").read_text()


def assert_done_once(storage: Path) -> None:
    """Every step was finished once and never begun again; a sweep and four trials are recorded, each metric once, none open."""
    from mlflow import MlflowClient

    lines = [line for run in storage.glob("small-*") for line in ledger(run) if "step" in line]
    done = Counter(line["fingerprint"] for line in lines if line["event"] == "done")
    marks = {folder.name.rpartition("-")[2] for folder in (storage / "steps").iterdir() if (folder / "done.json").exists()}
    assert len(marks) == 8 and set(done) <= marks and set(done.values()) == {1}
    for fingerprint in marks:
        events = [line["event"] for line in sorted(lines, key=lambda line: line["time"]) if line["fingerprint"] == fingerprint]
        if "done" in events:
            assert "started" not in events[events.index("done") + 1 :], events

    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert Counter(run.data.tags["hba.role"] for run in runs) == {"sweep": 1, "trial": 4}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        histories = {metric: client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics}
        for metric, history in histories.items():
            assert len({point.step for point in history}) == len(history), metric
        if run.data.tags["hba.role"] == "trial":
            steps = sorted(point.step for point in histories["sft/loss"])
            assert steps == list(range(1, len(steps) + 1)) and "score/sft/toy_tone" in histories


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(drivers, tmp_path: Path):
    moments, kills, sweeps = random.Random(7), 0, 0
    while kills < KILLS:
        storage = tmp_path / f"runs{sweeps}"
        while kills < KILLS:
            driver = drivers(storage)
            driver.join(moments.uniform(0.2, 8))
            if driver.exitcode is not None:
                assert driver.exitcode == 0, said(storage)
                sweeps += 1
                break  # it was faster; the rest of the kills hit a new sweep
            os.kill(driver.pid, signal.SIGKILL)
            driver.join()
            kills += 1
        else:
            driver = drivers(storage)
            driver.join(PATIENCE_SECONDS)
            assert driver.exitcode == 0, said(storage)
        assert_done_once(storage)


@pytest.mark.slow
@pytest.mark.chaos
def test_of_two_drivers_of_one_sweep_one_works_and_the_other_waits(drivers, tmp_path: Path):
    storage = tmp_path / "runs"
    both = [drivers(storage) for _ in range(2)]
    for driver in both:
        driver.join(PATIENCE_SECONDS)
        assert driver.exitcode == 0, said(storage)
    assert "another process is running this experiment" in said(storage)
    assert_done_once(storage)

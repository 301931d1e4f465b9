"""Sweeps whose drivers are killed anywhere, or of which there are two: nothing done twice, nothing lost, nothing left open."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hba_ray.runs.sweep import run_sweep
from hba_ray.runs.sweep_plan import plan_sweep
from tests.helpers.chaos import KILLS, PATIENCE_SECONDS, Drivers, assert_done_once, moments, recorded, said, scores, survive, unkilled
from tests.helpers.experiments import small_sweep

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def drive(storage: Path) -> None:
    run_sweep(plan_sweep(small_sweep(storage)), print).check()


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    made = Drivers(drive)
    yield made
    made.end()


def assert_whole(storage: Path) -> None:
    """A sweep and four trials are recorded, with a training each, the scores of all, and no step done twice."""
    from mlflow import MlflowClient

    assert_done_once(storage)
    assert len(list((storage / "steps").glob("*/done.json"))) == 8 and len(scores(storage)) == 4
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert Counter(run.data.tags["hba.role"] for run in runs) == {"sweep": 1, "trial": 4}
    points = recorded(storage)
    for run in runs:
        if run.data.tags["hba.role"] == "trial":
            mine = [(name, step) for run_name, name, step in points if run_name == run.info.run_name]
            steps = sorted(step for name, step in mine if name == "sft/loss")
            assert steps == list(range(1, len(steps) + 1)) and ("score/sft/toy_tone", 0) in mine


@pytest.mark.hostile("kills")
@pytest.mark.timeout(6 * 3600)
def test_a_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(drivers: Drivers, tmp_path: Path):
    whole, random = unkilled(drivers, tmp_path / "whole"), moments("a sweep")
    assert_whole(tmp_path / "whole")
    survive(drivers, whole, tmp_path, KILLS // 5, lambda: random.uniform(0, whole.seconds), kind="kills", in_a_row=10)


@pytest.mark.timeout(900)
def test_of_two_drivers_of_one_sweep_one_works_and_the_other_waits(drivers: Drivers, tmp_path: Path):
    storage = tmp_path / "runs"
    both = [drivers.start(storage) for _ in range(2)]
    for driver in both:
        driver.join(PATIENCE_SECONDS)
        assert driver.exitcode == 0, said(storage)
    assert "another process is running this experiment" in said(storage)
    assert_whole(storage)

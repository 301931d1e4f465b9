"""Runs that are killed at random moments: the same command completes them, and they end as those that nobody killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from tests.helpers.chaos import KILLS, Drivers, Left, moments, short_folder, survive, unkilled
from tests.helpers.experiments import small_experiment

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(6 * 3600)]
ON_RAY = {"compute__workers": 1, "compute__cpus": 4, "compute__object_store_mib": 100, "compute__checkpoint_every": 1}
FIRST_SECONDS = 3.0
"""Of a storage, in which MLflow's store is made."""


def drive(storage: Path) -> None:
    run_experiment(plan(small_experiment(storage)), print)


def drive_on_ray(storage: Path) -> None:
    run_experiment(plan(small_experiment(storage, **ON_RAY)), print)


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    made = Drivers(drive)
    yield made
    made.end()


@pytest.fixture(scope="module")
def whole(drivers: Drivers, tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("whole")
    unkilled(drivers, folder / "first")  # which waits until everything is read from the disk
    return unkilled(drivers, folder / "second")


@pytest.mark.hostile("kills while MLflow's store is made")
def test_a_run_killed_in_the_first_seconds_of_its_storage_is_completed(drivers: Drivers, whole: Left, tmp_path: Path):
    random = moments("first seconds")
    survive(
        drivers,
        whole,
        tmp_path,
        KILLS * 2 // 5,
        lambda: random.uniform(0, FIRST_SECONDS),
        kind="kills while MLflow's store is made",
        in_a_row=1,
    )


@pytest.mark.hostile("kills")
def test_a_run_killed_at_any_moment_is_completed_and_ends_as_one_that_was_not(drivers: Drivers, whole: Left, tmp_path: Path):
    random = moments("any moment")
    survive(drivers, whole, tmp_path, KILLS * 3 // 10, lambda: random.uniform(0, whole.seconds), kind="kills")


@pytest.mark.ray
@pytest.mark.hostile("kills")
def test_a_run_on_a_ray_worker_killed_at_any_moment_is_completed_and_ends_as_one_that_was_not(whole: Left):
    drivers, random = Drivers(drive_on_ray), moments("on Ray")
    try:
        with short_folder() as folder:
            alone = unkilled(drivers, folder / "whole")
            assert alone.scores == whole.scores
            survive(drivers, alone, folder, KILLS // 10, lambda: random.uniform(0, alone.seconds), kind="kills")
    finally:
        drivers.end()

"""Assignments of a sweep on Ray Tune: side by side, failures apart, the worse ones stopped, crashes tried again."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import ray

from hba_ray.cluster.session import ANYWHERE, Session, ray_session
from hba_ray.errors import DataError, EnvironmentMissing
from hba_ray.runs.assignments import Outcome
from hba_ray.runs.sweep_plan import Assignment, plan_sweep
from hba_ray.runs.tune import run_assignments, trials_at_once
from hba_ray.specs import AshaSpec
from hba_ray.specs.sections.compute import ComputeSpec
from tests.helpers.experiments import small_experiment, small_sweep

Report = Callable[[float, int], None]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with ray_session(ComputeSpec(cpus=4, object_store_mib=100, fork=True), tmp_path_factory.mktemp("logs")) as session:
        yield session


def seven() -> int:
    return 7


def work(assignment: Assignment, say: Callable[[str], None], metric: str, report: Report | None) -> None:
    """Trial 1 is broken, trial 2's process dies once, trial 5 has a mistake in it, trial 6's process dies always; 3 and 4 have a
    task done elsewhere and take a moment. With a metric, trial n of four reports n, once all of them are at work."""
    trial = assignment.trial
    trial.folder.mkdir(parents=True, exist_ok=True)
    number = int(dict(trial.sets)["evaluate.max_new_tokens"])
    (trial.folder / f"began-{time.time()}").touch()
    if report is not None:
        deadline = time.monotonic() + 240
        while len(list(trial.folder.parent.glob("*/began-*"))) < 4:
            assert time.monotonic() < deadline, "the other trials have not begun"
            time.sleep(0.1)
        for place in range(1, 9):
            report(float(number), place)
            time.sleep(0.2)
        number = 0
    time.sleep(3 if number in (3, 4) else 0.5)  # long enough to meet, however slowly processes start
    if number in (3, 4):
        assert ray.get(ray.remote(num_cpus=1, **ANYWHERE)(seven).remote()) == 7
    is_lost = number == 6 or (number == 2 and len(list(trial.folder.glob("began-*"))) == 1)
    (trial.folder / f"ended-{time.time()}").touch()
    if number == 1:
        raise DataError("row 7", "cannot be read")
    if number == 5:
        raise KeyError("input_ids")
    if is_lost:
        os._exit(1)


def parts_of(storage: Path, count: int) -> list[Assignment]:
    axes = {"evaluate.max_new_tokens": list(range(1, count + 1))}
    swept = plan_sweep(small_sweep(storage, sweep={"axes": axes}, compute__max_failures=1))
    return [Assignment(trial) for trial in swept.trials]


def times(assignment: Assignment, name: str) -> list[float]:
    return sorted(float(file.name.partition("-")[2]) for file in assignment.trial.folder.glob(f"{name}-*"))


def most_at_once(parts: list[Assignment]) -> int:
    """Of all attempts at the parts, how many were at work at the same moment."""
    began, ended = ([at for part in parts for at in times(part, name)] for name in ("began", "ended"))
    assert len(began) == len(ended)
    return max(accumulate(change for _, change in sorted([(at, 1) for at in began] + [(at, -1) for at in ended])))


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
def test_parts_run_so_many_at_a_time_and_a_failure_is_its_own(session: Session, tmp_path: Path):
    parts, told = parts_of(tmp_path, 6), []
    outcomes = run_assignments(parts, 2, tmp_path / "tune", lambda event, part, outcome: told.append((event, part.name)), do=work)
    assert [outcome.status for outcome in outcomes] == ["failed", "done", "done", "done", "failed", "failed"]
    assert outcomes[0] == Outcome(parts[0], "failed", "row 7: cannot be read")
    assert "KeyError: 'input_ids'" in outcomes[4].message and "logs folder" in outcomes[5].message
    assert [len(times(part, "began")) for part in parts] == [1, 2, 1, 1, 1, 2]  # errors are results, crashes are tried again
    assert {("started", part.name) for part in parts} <= set(told) and ("failed", parts[0].name) in told
    assert most_at_once(parts) == 2


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
def test_the_worse_trials_are_stopped_and_the_best_one_ends(session: Session, tmp_path: Path):
    parts = parts_of(tmp_path, 4)
    asha = AshaSpec(metric="sft/loss", mode="max", grace=1, most=9, reduction=2)
    outcomes = run_assignments(parts, 4, tmp_path / "tune", lambda event, part, outcome: None, asha, work)
    assert outcomes[3].status == "done" and "stopped" in {outcome.status for outcome in outcomes[:3]}
    stopped = [outcome.assignment for outcome in outcomes if outcome.status == "stopped"]
    assert not any(times(part, "ended") for part in stopped)


@pytest.mark.ray
@pytest.mark.slow
def test_when_no_more_may_start_those_at_work_end_and_the_rest_is_not_begun(session: Session, tmp_path: Path):
    parts, begun = parts_of(tmp_path, 5)[1:], iter([True, True, False])
    outcomes = run_assignments(parts, 2, tmp_path / "tune", lambda *words: None, do=rest, may_start=lambda: next(begun))
    assert [outcome.status for outcome in outcomes] == ["done", "done", "unstarted", "unstarted"]
    assert [len(times(part, "ended")) for part in parts] == [1, 1, 0, 0]


def rest(assignment: Assignment, say: Callable[[str], None], metric: str, report: Report | None) -> None:
    assignment.trial.folder.mkdir(parents=True, exist_ok=True)
    time.sleep(0.5)
    (assignment.trial.folder / f"ended-{time.time()}").touch()


def test_of_trials_that_are_done_whole_on_a_node_as_many_fit_as_nodes_hold_grpo_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path))
    spec = small_experiment("s3://bucket/runs", stages=["grpo"], compute__workers=1, compute__address="auto")
    monkeypatch.setattr("hba_ray.runs.tune.whole_here", lambda compute, rollouts: {"CPU": 8.0, "GPU": 2.0})
    assert trials_at_once(spec, Session("here:1", cpus=64, gpus=6, nodes=4), None) == 3
    assert trials_at_once(spec, Session("here:1", cpus=16, gpus=6, nodes=4), None) == 2
    shared = spec.model_copy(update={"compute": spec.compute.model_copy(update={"storage": "/shared"})})
    assert trials_at_once(shared, Session("here:1", cpus=64, gpus=6, nodes=4), None) == 1


def test_the_declared_resources_say_how_many_trials_fit(tmp_path: Path):
    spec = small_experiment(tmp_path, compute__workers=2, compute__gpus_per_worker=1, compute__micro_batch=2)
    cluster = Session("here:1", cpus=64, gpus=9, nodes=2)
    assert trials_at_once(spec, cluster, None) == 4
    assert trials_at_once(spec, cluster, 3) == 3
    for gibibytes, drivers in ((64, 4), (4, 3), (0.5, 1)):
        assert trials_at_once(spec, replace(cluster, head_memory=gibibytes * 2**30), None) == drivers
    with pytest.raises(EnvironmentMissing, match="a trial needs 4 CPUs and 2 GPUs; there are 64 CPUs and 1 GPUs"):
        trials_at_once(spec, Session("here:1", 64, 1, 1), None)

"""A step goes to a node where nodes have a bucket in common; what its process says, fails with or dies of comes back to the driver."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from hba_ray.errors import DataError, EnvironmentMissing, HbaError
from hba_ray.runs.plan import plan
from hba_ray.steps import away
from hba_ray.steps.away import Begun, Died, Event, Failed, Logged, StepJob, Told, Working, do_away, goes_away
from hba_ray.steps.base import Context, Step
from hba_ray.steps.run import do_step
from hba_ray.store.folders import done, ledger
from tests.helpers.experiments import small_experiment

BUCKET = "s3://bucket/runs"


@pytest.mark.parametrize(
    ("storage", "address", "workers", "kind", "goes"),
    [
        (BUCKET, "auto", 1, "sft", True),
        (BUCKET, "10.0.0.1:6379", 1, "sft", True),
        (BUCKET, "auto", 0, "sft", False),  # without Ray, in the driver's process
        (BUCKET, "auto", 1, "atlas", False),
        (BUCKET, "local", 1, "sft", False),
        ("folder", "auto", 1, "sft", False),
    ],
)
def test_a_step_that_needs_ray_goes_where_a_joined_cluster_has_a_bucket(
    storage: str, address: str, workers: int, kind: str, goes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path))
    local = small_experiment(tmp_path / "folder", compute__workers=workers)
    (step,) = (step for step in plan(local).steps if step.name == kind)
    compute = local.compute.model_copy(update={"storage": storage if storage == BUCKET else str(tmp_path), "address": address})
    assert goes_away(Context(local.model_copy(update={"compute": compute}), step, {})) is goes


SILENCE = object()
"""Nothing more is said for as long as the driver waits."""


class Events(list[Any]):
    """Ray's generator of what a process says."""

    def completed(self) -> str:
        return "completed"

    def __next__(self) -> Any:
        if not self:
            raise StopIteration
        return self.pop(0)


class Remote:
    """Ray, as far as the driver sees it: each process of the step says what the test gives for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *processes: list[Any]):
        self.stopped = list[Any]()
        self.processes, self.asked, self.jobs = list(processes), dict[str, Any](), list[StepJob]()
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "other", "Alive": True}, {"NodeID": "gone", "Alive": False}])
        monkeypatch.setattr(ray, "cancel", self.stopped.append)
        monkeypatch.setattr(ray, "remote", self._remote)
        monkeypatch.setattr(away, "whole_here", lambda compute, rollouts, useful: {"CPU": 3.0})

    def _get(self, said: Any) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    def _wait(self, generators: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        (events,) = generators
        if events == "completed":
            return generators, []
        return ([], generators) if events and events[0] is SILENCE else (generators, [])

    def _remote(self, **asked: Any) -> Any:
        self.asked = asked
        return lambda function: self

    def remote(self, job: bytes) -> Events:
        self.jobs.append(pickle.loads(job))
        return Events(self.processes[len(self.jobs) - 1])


@pytest.fixture
def at_sft(tmp_path: Path) -> Context:
    spec = small_experiment(tmp_path, compute__workers=1, compute__address="auto", compute__max_failures=2)
    steps = {step.name: step for step in plan(spec).steps}
    return Context(spec, steps["sft"], {"atlas": steps["atlas"]})


def test_lines_and_metrics_come_as_they_are_said_and_the_job_has_a_ray_of_the_size_that_is_held(
    at_sft: Context, monkeypatch: pytest.MonkeyPatch
):
    remote, said, logged = Remote(monkeypatch, [Begun("other"), Told("sft: begun"), Logged({"loss": 0.5}, 3)]), list[str](), list[Any]()
    context = Context(at_sft.spec, at_sft.step, at_sft.earlier, lambda metrics, number: logged.append((dict(metrics), number)))
    do_away(context, said.append, run="small-1")
    assert said == ["sft: begun"] and logged == [({"loss": 0.5}, 3)]
    assert (remote.asked["num_cpus"], remote.asked["num_gpus"], remote.asked["max_retries"]) == (3.0, 0.0, 0)
    (job,) = remote.jobs
    assert (job.spec.compute.address, job.spec.compute.cpus, job.run, job.again) == ("local", 3, "small-1", False)
    assert job.step == at_sft.step and job.earlier == at_sft.earlier


@pytest.mark.parametrize(
    ("last", "words"),
    [([Died(-9)], "ended with code -9"), ([WorkerCrashedError()], "node was lost"), ([Begun("gone"), SILENCE], "node was lost")],
)
def test_a_lost_process_is_followed_by_another_and_too_many_end_the_run(
    at_sft: Context, last: list[Any], words: str, monkeypatch: pytest.MonkeyPatch
):
    said = list[str]()
    Remote(monkeypatch, last, [Told("sft: goes on")])
    do_away(at_sft, said.append, run="small-1")
    assert words in said[0] and said[1] == "sft: goes on"

    remote = Remote(monkeypatch, *(last for _ in range(9)))
    with pytest.raises(EnvironmentMissing, match=rf"sft: its .*{words}.*, the 3\. time\n  .*the same command goes on"):
        do_away(at_sft, said.append, run="small-1")
    assert len(remote.jobs) == 3


def test_an_error_of_the_step_is_the_drivers_own_and_is_not_tried_again(at_sft: Context, monkeypatch: pytest.MonkeyPatch):
    remote = Remote(monkeypatch, [Failed(DataError("row 3", "has no label", "give one", reason="unlabelled"))], [])
    with pytest.raises(DataError, match="row 3: has no label") as failed:
        do_away(at_sft, lambda line: None, run="small-1")
    assert failed.value.reason == "unlabelled" and len(remote.jobs) == 1


def test_a_node_on_which_no_process_starts_is_told_with_the_cause_and_is_not_tried_again(at_sft: Context, monkeypatch: pytest.MonkeyPatch):
    remote = Remote(monkeypatch, [RayTaskError("_do_there", "", ModuleNotFoundError("No module named 'hba_ray'"))])
    with pytest.raises(EnvironmentMissing, match=r"sft: no process could be started.*No module named 'hba_ray'"):
        do_away(at_sft, lambda line: None, run="small-1")
    assert len(remote.jobs) == 1


def test_a_step_whose_metrics_end_the_run_is_stopped_on_its_node(at_sft: Context, monkeypatch: pytest.MonkeyPatch):
    def refuse(metrics: Any, number: int) -> None:
        raise DataError("loss", "is nan")

    remote = Remote(monkeypatch, [Begun("other"), Logged({"loss": 0.0}, 1), Told("sft: goes on")])
    with pytest.raises(DataError, match="is nan"):
        do_away(Context(at_sft.spec, at_sft.step, at_sft.earlier, refuse), lambda line: None, run="small-1")
    assert len(remote.stopped) == 1


@pytest.mark.slow
def test_the_cost_of_a_step_begins_with_its_work_and_one_that_another_run_did_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path))
    spec = small_experiment(bucket, compute__workers=1)
    steps = {step.name: step for step in plan(spec).steps}
    joined = spec.model_copy(update={"compute": spec.compute.model_copy(update={"address": "auto"})})
    run = tmp_path / "run"
    run.mkdir()
    for words, events in (([], []), ([Working()], ["started", "done"])):
        Remote(monkeypatch, [Begun("other"), *words])
        with pytest.raises(HbaError, match="not finished"):  # nobody did it in truth
            do_step(Context(joined, steps["sft"], {}), lambda line: None, run=run)
        assert [line["event"] for line in ledger(run)] == events


def job_of(storage: Path, **changes: object) -> tuple[StepJob, Step]:
    """The job of SFT, with all before it done."""
    experiment = plan(small_experiment(storage, compute__workers=1, **changes))
    earlier = dict[str, Step]()
    for step in experiment.steps:
        if step.name == "sft":
            return StepJob(experiment.spec, step, earlier, "small-1", False), step
        do_step(Context(experiment.spec, step, dict(earlier)), lambda line: None)
        earlier[step.name] = step
    raise AssertionError("there is no SFT")


def supervised(job: StepJob, until: type[Event]) -> tuple[Generator[Event], list[Event], psutil.Process]:
    """A process that does a job, what it has said up to its first word of a kind, and the rest of it to come."""
    events, said = away._supervise(pickle.dumps(job)), list[Event]()
    while not said or not isinstance(said[-1], until):
        said.append(next(events))
    alive = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)  # other tests left theirs
    (process,) = (child for child in alive if "hba_ray.steps.on_node" in child.cmdline())
    return events, said, process


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_ends_with_who_started_it_dies_is_told_and_another_goes_on(tmp_path: Path):
    job, step = job_of(tmp_path, sft__epochs=4)
    events, said, process = supervised(job, Logged)
    assert isinstance(said[0], Told) and "is done on" in said[0].line
    events.close()  # as where the task is cancelled, or its driver is gone
    assert not process.is_running() and done(step.folder) is None

    events, _, process = supervised(job, Logged)
    os.kill(process.pid, signal.SIGKILL)
    assert list(events)[-1] == Died(-9) and done(step.folder) is None

    *rest, last = list(away._supervise(pickle.dumps(job)))
    assert isinstance(last, Told | Logged) and done(step.folder) is not None
    numbers = [event.number for event in rest if isinstance(event, Logged)]
    assert numbers == sorted(numbers)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_step_cannot_do_is_told_by_its_process(tmp_path: Path):
    job, step = job_of(tmp_path)
    (job.earlier["atlas"].folder / "done.json").unlink()
    *_, last = list(away._supervise(pickle.dumps(job)))
    assert isinstance(last, Failed) and isinstance(last.error, HbaError) and "not finished" in str(last.error)
    assert done(step.folder) is None

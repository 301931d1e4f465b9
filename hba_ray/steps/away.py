"""Sends a step to a node of a cluster whose storage is in a bucket, and listens to the process that does it there.

The nodes have no folder in common, so each step is done whole on one of them (`steps/on_node.py`): with a Ray of its own there, which
gets the CPUs and GPUs that are held for it here. It fetches what it reads from the bucket and uploads what it has made; its lines and
metrics come to the driver as they are said. Where its node is lost, another goes on from the last checkpoint in the bucket.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import ceil
from typing import IO, Any

from hba_ray.cluster.growth import whole_here
from hba_ray.cluster.session import ANYWHERE
from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.rl.settings import cpus_needed
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Step
from hba_ray.store.folders import look_again
from hba_ray.store.follow import Metrics

LOOK_SECONDS = 5.0
"""How often the driver looks whether a silent node is still there. Ray would tell it minutes after it knows."""
END_SECONDS = 60.0
"""How long the process on a node has to end by itself when it is stopped, in which it gives its lease back."""
GPUS = "CUDA_VISIBLE_DEVICES"
"""The variable by which Ray tells a task its GPUs."""
EXTRACTORS = 8
"""Processes for steps that hold no workers, such as extractors of descriptors, where `compute.extractors` does not say."""
OF_THE_CLUSTER = ("RAY_", "OMP_NUM_THREADS")
"""Starts of the names of variables that the cluster's Ray sets for its own processes."""


@dataclass(frozen=True)
class StepJob:
    """What the process on a node is given.

    Attributes:
        spec: whose Ray is a private one, of the size that is held on the node.
        earlier: name of an earlier step -> that step.
        run: name of the run's folder.
        again: do the step again although it is done.
    """

    spec: ExperimentSpec
    step: Step
    earlier: Mapping[str, Step]
    run: str
    again: bool


@dataclass(frozen=True)
class Begun:
    """The first word: the node, by Ray's id."""

    node: str


@dataclass(frozen=True)
class Working:
    """The process holds the step, and begins to work."""


@dataclass(frozen=True)
class Told:
    """A line for people."""

    line: str


@dataclass(frozen=True)
class Logged:
    """Metrics of the step, at an optimiser step."""

    metrics: Metrics
    number: int


@dataclass(frozen=True)
class Failed:
    """The step's last word, where it could not be done."""

    error: HbaError


@dataclass(frozen=True)
class Died:
    """The process ended without a last word, with this exit code."""

    code: int


Event = Begun | Working | Told | Logged | Failed | Died


def needs_ray(spec: ExperimentSpec, step: Step) -> bool:
    """Whether a step is done on a Ray: with `compute.workers` 0 only GRPO is, since verl runs nowhere else."""
    return step.uses_ray and bool(spec.compute.workers or step.kind.name == "grpo")


def goes_away(context: Context) -> bool:
    """Whether a step is done whole on a node of a cluster, and not by its driver."""
    return context.spec.compute.on_one_node and needs_ray(context.spec, context.step)


def do_away(
    context: Context, say: Callable[[str], None], *, run: str, again: bool = False, begun: Callable[[], None] = lambda: None
) -> None:
    """Has a step done on a node of the cluster that this process has joined; returns when it is finished.

    Args:
        say: takes a line for people.
        run: name of the run's folder.
        again: do it again although it is done.
        begun: called whenever a process begins to work, after it has waited for a node and for others that do the same step.

    Raises:
        HbaError: what the step could not do.
        EnvironmentMissing: its node or its process was lost more often than `compute.max_failures`.
    """
    import ray

    context.start_ray()
    step, compute, rollouts = context.step, context.spec.compute, cpus_needed(context.spec).total
    held = whole_here(compute, rollouts, 0.0 if step.holds_workers else 1.0 + (compute.extractors or EXTRACTORS))
    own = compute.model_copy(update={"address": "local", "cpus": max(1, ceil(held["CPU"] - rollouts))})
    job = pickle.dumps(StepJob(context.spec.model_copy(update={"compute": own}), step, context.earlier, run, again))
    task: Any = ray.remote(num_cpus=held["CPU"], num_gpus=held.get("GPU", 0.0), max_retries=0, **ANYWHERE)(_do_there)
    lost = ""
    for _ in range(1 + compute.max_failures):
        lost = _listen(task.remote(job), context, say, begun)
        if not lost:
            look_again(step.folder)
            return
        say(f"{step.name} {step.fingerprint}: {lost}; another process goes on with it")
    way_out = "what was kept at its last checkpoint is in the bucket, and the same command goes on from there"
    raise EnvironmentMissing(step.name, f"{lost}, the {1 + compute.max_failures}. time", way_out)


def _listen(events: Any, context: Context, say: Callable[[str], None], begun: Callable[[], None]) -> str:
    """Passes on what a step says; returns what became of its process where it was lost, and "" where the step is finished.

    Args:
        events: Ray's generator of the events.

    Raises:
        HbaError: what the step could not do, or no process could be started for it.
    """
    from ray.exceptions import RayError, RayTaskError

    with ExitStack() as stack:
        stack.callback(_stop, events)
        arrivals = _arrivals(events, lambda: say(f"{context.step.name}: waits for a node that has room for it"))
        try:
            for event in arrivals:
                match event:
                    case Told(line):
                        say(line)
                    case Working():
                        begun()
                    case Logged(metrics, number):
                        context.log(metrics, number)
                    case Failed(error):
                        raise error
                    case Died(code):
                        return f"its process ended with code {code}"
        except RayTaskError as cause:
            what = f"no process could be started for it on a node: {cause.cause}"
            raise EnvironmentMissing(context.step.name, what, "see the logs of the cluster's Ray on that node") from cause
        except (RayError, NodeLost) as cause:
            stack.pop_all()  # there is nobody to be stopped
            return f"its node was lost ({type(cause).__name__})"
    return ""


class NodeLost(Exception):
    """The cluster has given up the node on which a step is done."""


def _arrivals(events: Any, on_wait: Callable[[], None]) -> Iterator[Event]:
    """The events as they come.

    Args:
        on_wait: called once, where the first event does not come soon.

    Raises:
        RayError, NodeLost: the task or its node was lost.
    """
    import ray

    node, waited = "", False
    while True:
        arrived, _ = ray.wait([events], timeout=LOOK_SECONDS, fetch_local=False)
        if arrived:
            try:
                event: Any = ray.get(next(events))
            except StopIteration:
                return
            if isinstance(event, Begun):
                node = event.node
            else:
                yield event
        elif not node and not waited:
            on_wait()
            waited = True
        elif node and not any(one["NodeID"] == node and one["Alive"] for one in ray.nodes()):
            raise NodeLost


def _stop(events: Any) -> None:
    """Ends the task, where it has not ended yet, and waits until its process has given back what it held."""
    import ray
    from ray.exceptions import RayError

    with suppress(RayError):
        ray.cancel(events)
        ray.wait([events.completed()], timeout=END_SECONDS)


def _do_there(job: bytes) -> Generator[Event]:
    """The Ray task on the node."""
    import ray

    yield Begun(ray.get_runtime_context().get_node_id())
    yield from _supervise(job)


def _supervise(job: bytes) -> Generator[Event]:
    """Does a job in a process of its own, since a worker of one Ray cannot start another.

    The process ends with this one: it notices that nobody holds the other end of its input any more.
    """
    command = [sys.executable, "-m", "hba_ray.steps.on_node"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OF_THE_CLUSTER)}
    if not environ.get(GPUS):  # without GPUs Ray hides all, and a Ray within refuses logical ones then
        environ.pop(GPUS, None)
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(job)
        process.stdin.flush()
        yield from _events(process.stdout)
        if code := process.wait():
            yield Died(code)
    finally:
        process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _events(pipe: IO[bytes]) -> Iterator[Event]:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:
            return

"""Clusters that grow: what their autoscalers may add, and waiting until the nodes that a run needs are up.

Ray does not tell how far a cluster can grow, so it is stated: by the spec, or by the variable `GROWS_TO` of the head, which the
files of `cluster/render` set. Ray's autoscaler adds nodes for work that waits, too; but verl counts GPUs before it starts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import EnvironmentMissing
from hba_ray.specs.sections.compute import ComputeSpec, NodesSpec

GROWS_TO = "HBA_GROWS_TO"
POLL_SECONDS = 1.0
ASK_SECONDS = 20.0
"""How often the autoscaler is asked again: it knows one request at a time, and other runs make theirs, or end."""
TELL_SECONDS = 60.0
"""How often it is said what is waited for, where nothing changes."""
_NODES: TypeAdapter[tuple[NodesSpec, ...]] = TypeAdapter(tuple[NodesSpec, ...])

Bundle = Mapping[str, float]
"""CPUs and GPUs that have to be on one node."""


def stated(nodes: Iterable[NodesSpec]) -> str:
    """The value of `GROWS_TO` that says so."""
    return json.dumps([node.model_dump(mode="json", exclude_none=True) for node in nodes], separators=(",", ":"))


def addable(spec: ComputeSpec, environ: Mapping[str, str] = os.environ) -> tuple[NodesSpec, ...]:
    """The nodes that the cluster of a spec may add; none for a private Ray. See `known_nodes`."""
    return () if spec.address == "local" else known_nodes(spec, environ)


def known_nodes(spec: ComputeSpec, environ: Mapping[str, str] = os.environ) -> tuple[NodesSpec, ...]:
    """The kinds of nodes that the spec or the head of its cluster states.

    Args:
        environ: of this process, which a job has from its head.

    Raises:
        EnvironmentMissing: what the head says of them cannot be read.
    """
    if spec.grows_to is not None:
        return spec.grows_to
    try:
        return _NODES.validate_json(environ.get(GROWS_TO, "[]"))
    except ValidationError as cause:
        what = f"is no list of nodes: {cause.errors()[0]['msg']}"
        raise EnvironmentMissing(GROWS_TO, what, 'give it as [{"cpus": 64, "gpus": 8, "most": 4}], or set compute.grows_to') from None


def largest(spec: ComputeSpec, present: Mapping[str, float], nodes: int) -> tuple[float, float, int]:
    """CPUs, GPUs and nodes of a cluster when it has grown as far as it may.

    Args:
        present: resources that are there now.
        nodes: that are there now.
    """
    more = addable(spec)
    most_cpus, most_gpus = sum(node.cpus * node.most for node in more), sum(node.gpus * node.most for node in more)
    return max(present.get("CPU", 0.0), most_cpus), max(present.get("GPU", 0.0), most_gpus), max(nodes, 1 + sum(node.most for node in more))


def cpus(spec: ComputeSpec) -> float:
    """CPUs of the Ray that this process is connected to, when it has grown as far as it may."""
    import ray

    return largest(spec, ray.cluster_resources(), nodes=1)[0]


def bundles(spec: ComputeSpec, available: float, rollouts: int = 0) -> list[dict[str, float]]:
    """What a run holds at a time: its workers, their loaders, and the CPUs of verl.

    Args:
        available: CPUs of the cluster at its largest, which decide how many loaders a worker has.
    """
    worker = {"CPU": spec.cpus_per_worker, **({"GPU": spec.gpus_per_worker} if spec.gpus_per_worker else {})}
    loader, rollout = {"CPU": spec.cpus_per_loader}, {"CPU": 1.0}
    return [worker] * spec.workers + [loader] * (spec.workers * spec.loaders_on(available)) + [rollout] * rollouts


def whole(spec: ComputeSpec, nodes: Sequence[Mapping[str, float]], rollouts: int = 0, useful_cpus: float = 0.0) -> dict[str, float]:
    """What a step holds that is done on one node: all that a run holds at a time, together.

    The smallest node that can hold it decides how many loaders there are, so that any of them can, and as many steps fit side by side
    on a node as its GPUs allow.

    Args:
        nodes: CPUs and GPUs of each kind of node that is there or can be added.
        rollouts: CPUs that verl will hold.
        useful_cpus: that the step makes use of, as far as the node has them.

    Raises:
        EnvironmentMissing: no node can hold it.

    >>> whole(ComputeSpec(workers=2, gpus_per_worker=1), [{"CPU": 64}, {"CPU": 32, "GPU": 8}])
    {'CPU': 8.0, 'GPU': 2.0}
    """
    spec = spec.model_copy(update={"workers": max(1, spec.workers)}) if rollouts else spec
    gpus = ceil(spec.worker_gpus)  # Ray gives out parts of one GPU, and whole ones above it
    for node in sorted(nodes, key=lambda node: node.get("CPU", 0.0)):
        share = gpus / node["GPU"] if gpus and node.get("GPU") else 1.0
        parts = bundles(spec, int(node.get("CPU", 0.0) * share) - rollouts, rollouts)
        cpus = max(sum(part["CPU"] for part in parts), min(useful_cpus, node.get("CPU", 0.0)))
        together = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
        if fit([together], [node]):
            return together
    least = _in_words(bundles(spec, 0.0, rollouts))
    what = f"each step is done whole on one node, since the storage is in a bucket; it needs {least}, and no node has them"
    way_out = "lower compute.workers or what each holds, add larger nodes, or give a storage folder that all nodes see"
    raise EnvironmentMissing("compute", what, way_out)


def whole_here(spec: ComputeSpec, rollouts: int = 0, useful_cpus: float = 0.0) -> dict[str, float]:
    """The same for the nodes of the Ray that this process is connected to, those that it may add included."""
    more = [{"CPU": float(node.cpus), "GPU": float(node.gpus)} for node in addable(spec)]
    return whole(spec, [*_nodes(), *more], rollouts, useful_cpus)


def fit(wanted: Sequence[Bundle], nodes: Iterable[Mapping[str, float]]) -> bool:
    """Whether all bundles find a place, the largest first, each on the first node that has room.

    >>> fit([{"CPU": 1, "GPU": 1}] * 2, [{"CPU": 8}, {"CPU": 8, "GPU": 1}])
    False
    """
    room = [dict(node) for node in nodes]
    for bundle in sorted(wanted, key=lambda one: (one.get("GPU", 0), one.get("CPU", 0)), reverse=True):
        place = next((node for node in room if all(node.get(kind, 0) + 1e-9 >= amount for kind, amount in bundle.items())), None)
        if place is None:
            return False
        for kind, amount in bundle.items():
            place[kind] -= amount
    return True


@contextmanager
def grown(spec: ComputeSpec, say: Callable[[str], None], rollouts: int = 0) -> Iterator[None]:
    """Has a joined cluster the nodes that a run needs for the time of the block, and waits until they are up.

    Args:
        rollouts: CPUs that verl will hold.

    Raises:
        EnvironmentMissing: they are not up after `compute.wait_minutes`, or no node can hold a step that has to be done on one.
    """
    together = [whole_here(spec, rollouts)] if spec.on_one_node else []
    if not addable(spec):
        yield
        return
    from ray.autoscaler.sdk import request_resources

    wanted = together or bundles(spec, cpus(spec), rollouts)
    try:
        _wait(wanted, spec.wait_minutes, say)
        yield
    finally:
        request_resources(bundles=[])


def _wait(wanted: Sequence[Bundle], minutes: float, say: Callable[[str], None]) -> None:
    """Asks for nodes, and returns when those that are up can hold all that is wanted."""
    from ray.autoscaler.sdk import request_resources

    seen: list[dict[str, float]] | None = None
    began, told, asked = time.monotonic(), float("-inf"), float("-inf")
    while True:
        now = time.monotonic()
        if now - asked > ASK_SECONDS:
            request_resources(bundles=[dict(bundle) for bundle in wanted])
            asked = now
        if fit(wanted, there := _nodes()):
            return
        if there != seen or now - told > TELL_SECONDS:
            say(f"waiting for nodes: {_in_words(wanted)} are needed, {_in_words(there)} are there")
            told, seen = now, there
        if now - began > 60 * minutes:
            what = f"{_in_words(wanted)} are needed, and after {minutes:g} minutes {_in_words(there)} are there"
            way_out = "look at the autoscaler (`ray status`), its limits and quota, or raise compute.wait_minutes"
            raise EnvironmentMissing("compute", what, way_out)
        time.sleep(POLL_SECONDS)


def _nodes() -> list[dict[str, float]]:
    """CPUs and GPUs of each node that is up."""
    import ray

    return [{kind: node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]]


def _in_words(resources: Iterable[Mapping[str, float]]) -> str:
    every = list(resources)
    total = {kind: sum(one.get(kind, 0) for one in every) for kind in ("CPU", "GPU")}
    return f"{total['CPU']:g} CPUs" + (f" and {total['GPU']:g} GPUs" if total["GPU"] else "")

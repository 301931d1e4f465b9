"""The machines of a cluster that was joined, each kind looked at once by a short task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hba_ray.cluster.machine import Machine
from hba_ray.specs.sections.compute import ComputeSpec

LOOK_SECONDS = 60.0
"""How long a machine has to answer, the start of a Ray worker included."""
HEAD = "node:__internal_head__"
"""The resource that Ray gives to the head of a cluster, and to no other machine."""
KINDS = ("CPU", "GPU", HEAD)
"""Resources by which machines are of one kind, beside the names of their GPUs."""


def look_at_nodes(look: Callable[[], Machine], compute: ComputeSpec, *, head_leads: bool = False) -> list[Machine]:
    """One machine of each kind that is up: those with as many CPUs and as many GPUs of the same name are alike. None is started for it.

    Args:
        look: is done on the machine.
        compute: says what a worker holds.
        head_leads: see `placed`.

    Raises:
        ray.exceptions.GetTimeoutError: one does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alike = {_kind(node["Resources"]): node for node in ray.nodes() if node["Alive"]}
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alike.values()]

    def look_there() -> Machine:
        return look()

    tasks = [ray.remote(look_there).options(num_cpus=0, scheduling_strategy=place).remote() for place in places]
    machines: list[Machine] = ray.get(tasks, timeout=LOOK_SECONDS)
    nodes = zip(machines, alike.values(), strict=True)
    return [placed(machine, node["Resources"], compute, head_leads=head_leads) for machine, node in nodes]


def _kind(resources: Mapping[str, float]) -> tuple[object, ...]:
    return (*(resources.get(kind, 0) for kind in KINDS), *sorted(name for name in resources if name.startswith("accelerator_type:")))


def placed(machine: Machine, resources: Mapping[str, float], compute: ComputeSpec, *, head_leads: bool = False) -> Machine:
    """A machine of a cluster, with what of a run Ray can place on it.

    Args:
        resources: that Ray gives out there.
        compute: says what a worker holds.
        head_leads: whether the head leads, as it does the trials of a sweep; else a process does that joined the cluster.
    """
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    fits = cpus / compute.cpus_per_worker
    fits = min(fits, gpus / compute.gpus_per_worker) if compute.gpus_per_worker else fits
    return replace(machine, leads=head_leads and HEAD in resources, tasks=cpus > 0, workers=int(fits + 1e-9))

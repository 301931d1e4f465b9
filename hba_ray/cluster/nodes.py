"""The machines of a cluster that was joined, each kind looked at once by a short task."""

from __future__ import annotations

from collections.abc import Callable

from hba_ray.cluster.machine import Machine

LOOK_SECONDS = 60.0
"""How long a machine has to answer, the start of a Ray worker included."""
KINDS = ("CPU", "GPU")
"""Resources by which machines are of one kind."""


def look_at_nodes(look: Callable[[], Machine]) -> list[Machine]:
    """One machine of each kind that is up: those with as many CPUs and as many GPUs are alike. None is started for it.

    Args:
        look: is done on the machine.

    Raises:
        ray.exceptions.GetTimeoutError: one does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alike = {tuple(node["Resources"].get(kind, 0) for kind in KINDS): node["NodeID"] for node in ray.nodes() if node["Alive"]}
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alike.values()]

    def look_there() -> Machine:
        return look()

    tasks = [ray.remote(look_there).options(num_cpus=0, scheduling_strategy=place).remote() for place in places]
    return ray.get(tasks, timeout=LOOK_SECONDS)

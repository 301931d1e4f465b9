"""Waits until a cluster is there, with all of its nodes: what batch scripts call between starting Ray and starting a run."""

from __future__ import annotations

import time
from collections.abc import Callable

from hba_ray.cluster.session import check_reachable, joined
from hba_ray.errors import EnvironmentMissing
from hba_ray.specs import ComputeSpec

POLL_SECONDS = 1.0


def wait_for_nodes(address: str, nodes: int, seconds: float, say: Callable[[str], None]) -> None:
    """Returns when a head listens at the address and so many nodes, itself among them, have joined it.

    Raises:
        EnvironmentMissing: they are not there after so many seconds, or it is no address of a Ray cluster.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            check_reachable(address)
            break
        except EnvironmentMissing:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
    if nodes > 1:
        _wait_for_others(address, nodes, deadline, say)


def _wait_for_others(address: str, nodes: int, deadline: float, say: Callable[[str], None]) -> None:
    import ray

    told = 0
    with joined(ComputeSpec(address=address)):
        while (there := sum(bool(node["Alive"]) for node in ray.nodes())) < nodes:
            if there != told:
                say(f"{there} of {nodes} nodes are there")
                told = there
            if time.monotonic() > deadline:
                way_out = "look at what `ray start` said on the others, or give --seconds a larger number"
                raise EnvironmentMissing(address, f"{there} of {nodes} nodes have joined the cluster", way_out)
            time.sleep(POLL_SECONDS)

"""What a step costs an hour: the GPUs that its workers hold and, where the prices of nodes are stated, their share of a node.

Nodes that wait, the head, disks and traffic come on top. `store/spending.py` adds up what has been held.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from hba_ray.cluster.growth import known_nodes
from hba_ray.specs.sections.compute import ComputeSpec
from hba_ray.store.spending import Rate


def rate_of(spec: ComputeSpec, environ: Mapping[str, str] = os.environ) -> Rate:
    """What a step with a model holds.

    On which kind of node its workers are placed is not known beforehand, so the dearest that they could be on counts: those with GPUs
    where workers have such, and otherwise those without, where there are any.

    Args:
        environ: see `known_nodes`.

    Raises:
        EnvironmentMissing: what the head says of its nodes cannot be read.
    """
    (cpus, gpus), nodes = spec.held, known_nodes(spec, environ)
    fitting = [node for node in nodes if bool(node.gpus) == bool(gpus)] or ([] if gpus else nodes)
    prices: list[float] = []
    for node in fitting:
        if node.dollars_per_hour is None:
            return Rate(gpus)
        prices.append(node.dollars_per_hour * max(cpus / node.cpus, gpus / max(1, node.gpus)))
    return Rate(gpus, max(prices, default=None))

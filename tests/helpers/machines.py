"""Machines as a test wants them, rich or poor."""

from collections.abc import Mapping
from typing import Any

from hba_ray.cluster.machine import Machine, look


def machine(*, packages: Mapping[str, str] | None = None, **facts: Any) -> Machine:
    """A machine with room, memory and no GPU.

    Args:
        packages: that are installed; those of this environment by default.
        facts: attributes of `Machine` that are otherwise.
    """
    installed = look("/tmp").packages if packages is None else packages
    usual: dict[str, Any] = {"name": "here", "cores": 16, "memory": 64 * 2**30, "disk": 10**12, "cache": 10**12}
    return Machine(**{**usual, "packages": installed, **facts})

"""The CPUs and the memory that this process may use: of a machine, or of a container, pod or job on it.

A container or a batch system limits a process by control groups of Linux, of version 1 or 2, which neither `os.cpu_count` nor
psutil looks at; Ray does, in private functions only, and joblib for CPUs. Files: https://docs.kernel.org/admin-guide/cgroup-v2.html
and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_ROOT = Path("/")


def usable_cpus(root: Path = _ROOT) -> int:
    """CPUs that this process may run on, or fewer, at least one, where its groups get less time than that; parts of a CPU are left out.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *map(int, _shares(root))]))


def free_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that are free, or taken by caches that give way, on the machine and within the limits of this process; 0
    where the system does not say.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    machine = _numbers(root / "proc/meminfo")
    return min([machine["MemAvailable:"] * 2**10, *_rooms(root)]) if "MemAvailable:" in machine else 0


def _shares(root: Path) -> Iterator[float]:
    """CPUs whose time each of the groups gets at most; groups without a limit are left out."""
    for group in _groups(root, ""):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit():
            yield int(quota) / int(period)
    for group in _groups(root, "cpu"):
        quota = _text(group / "cpu.cfs_quota_us")  # -1 without a limit
        if quota.isdigit():
            yield int(quota) / int(_text(group / "cpu.cfs_period_us"))


def _rooms(root: Path) -> Iterator[int]:
    """Bytes that each of the groups has left."""
    versions = (
        ("", "memory.max", "memory.current", ("active_file", "inactive_file")),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    )
    for controller, limit, usage, caches in versions:
        for group in _groups(root, controller):
            most = _text(group / limit)
            if most.isdigit():
                taken = _numbers(group / "memory.stat")
                yield int(most) - int(_text(group / usage)) + sum(taken[name] for name in caches)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in: its own, and those above it, whose limits hold for it too.

    Within a container the folder of the machine's group is often not there, and the container's own is at the top.

    Args:
        controller: of version 1; empty for the groups of version 2.
    """
    top = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            own = top / name.lstrip("/")
            yield from (place for place in (own, *own.parents) if place.is_relative_to(top))


def _text(file: Path) -> str:
    """What a file of the kernel says; nothing where it is not there, as at the top of a machine, which has no limits."""
    return file.read_text().strip() if file.is_file() else ""


def _numbers(file: Path) -> Mapping[str, int]:
    """The lines of a file that begin with a name and a number."""
    lines = (line.split() for line in _text(file).splitlines())
    return {line[0]: int(line[1]) for line in lines}

"""What a process may use where the files of the kernel are as a machine, a container or a batch job has them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hba_ray.limits import free_memory, usable_cpus

GIB = 2**30
MACHINE = {"proc/meminfo": f"MemTotal:  {128 * 2**20} kB\nMemAvailable:  {100 * 2**20} kB\nHugePages_Total:  0\n"}
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def kernel(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {**MACHINE, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def used_v2(group: str, limit: str, gib: int) -> dict[str, str]:
    """Of which two GiB are caches."""
    cached = f"anon {(gib - 2) * GIB}\nactive_file {GIB}\ninactive_file {GIB}\n"
    return {f"{group}/memory.max": f"{limit}\n", f"{group}/memory.current": f"{gib * GIB}\n", f"{group}/memory.stat": cached}


def used_v1(group: str, limit: int, gib: int) -> dict[str, str]:
    cached = f"active_file 0\ninactive_file 0\ntotal_active_file {GIB}\ntotal_inactive_file {GIB}\n"
    return {
        f"{group}/memory.limit_in_bytes": f"{limit}\n",
        f"{group}/memory.usage_in_bytes": f"{gib * GIB}\n",
        f"{group}/memory.stat": cached,
    }


MEMORY = {
    "a machine without limits": ({"proc/self/cgroup": "0::/\n"}, 100),
    "a container of version 2": ({"proc/self/cgroup": "0::/\n", **used_v2(V2, str(16 * GIB), 6)}, 12),
    "a container without a limit": ({"proc/self/cgroup": "0::/\n", **used_v2(V2, "max", 6)}, 100),
    "a limit above the machine": ({"proc/self/cgroup": "0::/\n", **used_v2(V2, str(500 * GIB), 6)}, 100),
    "a job below a smaller group": (
        {"proc/self/cgroup": "0::/slurm/job\n", **used_v2(f"{V2}/slurm/job", "max", 3), **used_v2(f"{V2}/slurm", str(16 * GIB), 6)},
        12,
    ),
    "a group that only its machine sees": ({"proc/self/cgroup": "0::/kubepods/pod1\n", **used_v2(V2, str(16 * GIB), 6)}, 12),
    "a container of version 1": ({"proc/self/cgroup": "5:memory:/docker/1\n0::/\n", **used_v1(V1, 8 * GIB, 3)}, 7),
    "version 1 without a limit": ({"proc/self/cgroup": "5:memory:/\n", **used_v1(V1, 9223372036854771712, 3)}, 100),
}


@pytest.mark.parametrize("case", MEMORY)
def test_free_memory_is_what_the_tightest_limit_leaves(case: str, tmp_path: Path) -> None:
    files, gib = MEMORY[case]
    assert free_memory(kernel(tmp_path, files)) == gib * GIB


CPUS = {
    "a machine without limits": ({"proc/self/cgroup": "0::/\n"}, None),
    "no limit in version 2": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
    "one CPU and a half": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 1),
    "half a CPU": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 1),
    "more than there are": ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "99900000 100000\n"}, None),
    "a job below a smaller group": (
        {"proc/self/cgroup": "0::/slurm/job\n", f"{V2}/slurm/job/cpu.max": "max 100000\n", f"{V2}/slurm/cpu.max": "100000 100000\n"},
        1,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/1\n",
            f"{V2}/cpu/cpu.cfs_quota_us": "50000\n",
            f"{V2}/cpu/cpu.cfs_period_us": "50000\n",
        },
        1,
    ),
    "no limit in version 1": (
        {"proc/self/cgroup": "3:cpu,cpuacct:/\n", f"{V2}/cpu/cpu.cfs_quota_us": "-1\n", f"{V2}/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
}


@pytest.mark.parametrize("case", CPUS)
def test_cpus_are_those_that_the_tightest_limit_leaves(case: str, tmp_path: Path) -> None:
    files, cpus = CPUS[case]
    assert usable_cpus(kernel(tmp_path, files)) == (cpus or len(os.sched_getaffinity(0)))


def test_a_system_without_such_files_says_nothing_of_memory_and_has_its_cpus(tmp_path: Path) -> None:
    assert (free_memory(tmp_path), usable_cpus(tmp_path)) == (0, len(os.sched_getaffinity(0)))


def test_cpus_that_this_process_is_kept_from_do_not_count(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)

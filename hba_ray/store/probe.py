"""What runs ask of a storage, tried before the first step: that locks hold, that lines are appended whole, that a rename replaces.

File systems that lack one of them say so late or never: a lock that does not hold lets two processes do one step, and each is sure
that it is alone. Of a bucket the same is asked: that a write on condition is refused where it must be (`Mirror.check`).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hba_ray.errors import EnvironmentMissing
from hba_ray.store.mirror import mirror_of

Flock = Callable[[int, int], object]
MOUNTS = Path("/proc/self/mounts")
LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
"""Options of NFS and Lustre with which a lock is known to one machine alone."""
WAY_OUT = (
    "give another folder as compute.storage=FOLDER, on a local disk, on NFS 4 or on Lustre with flock, or a bucket as s3://BUCKET/FOLDER"
)


def check_storage(folder: Path, *, by_several: bool = False, flock: Flock = fcntl.flock, mounts: Path = MOUNTS) -> None:
    """Refuses a storage on which runs would not be safe.

    Args:
        folder: `Storage.folder`.
        by_several: several machines write to it.
        flock: locks an open file, as the system's own.
        mounts: the system's list of mounted file systems.

    Raises:
        EnvironmentMissing: says what does not work there.
    """
    if (mirror := mirror_of(folder)) is not None:
        mirror.check()
        return
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as place:
        for probe in (lambda file: _lock(file, flock), _append, _replace):
            if what := probe(Path(place) / "file"):
                raise EnvironmentMissing(str(folder), f"{what}, and runs rely on it", WAY_OUT)
    if by_several and (options := LOCAL_LOCKS & _options(folder.resolve(), mounts)):
        what = f"it is mounted with {', '.join(sorted(options))}, so that a lock is known to one machine alone"
        raise EnvironmentMissing(str(folder), what, "mount it with locks that all machines see, or " + WAY_OUT)


def _lock(file: Path, flock: Flock) -> str:
    """What is wrong with locks; "" where they hold."""
    with _opened(file, os.O_RDWR) as first, _opened(file, os.O_RDWR) as second:
        try:
            flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            return f"its files cannot be locked ({cause.strerror})"
        try:
            flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        return "a lock on a file there does not keep others out"


def _append(file: Path) -> str:
    """What is wrong with appending; "" where lines of two writers are all there, in their order."""
    file.write_bytes(b"")
    try:
        with _opened(file, os.O_WRONLY | os.O_APPEND) as first, _opened(file, os.O_WRONLY | os.O_APPEND) as second:
            for number, line in ((first, b"1\n"), (second, b"2\n"), (first, b"3\n")):
                os.write(number, line)
    except OSError as cause:
        return f"lines cannot be appended to its files ({cause.strerror})"
    return "" if file.read_bytes() == b"1\n2\n3\n" else "lines that two processes append to a file there overwrite each other"


def _replace(file: Path) -> str:
    """What is wrong with renaming; "" where it puts a file in the place of another."""
    draft = file.with_name("draft")
    file.write_bytes(b"old")
    draft.write_bytes(b"new")
    try:
        os.replace(draft, file)
    except OSError as cause:
        return f"its files cannot be replaced by a rename ({cause.strerror})"
    return "" if file.read_bytes() == b"new" and not draft.exists() else "a rename there does not replace a file"


@contextmanager
def _opened(file: Path, how: int) -> Iterator[int]:
    number = os.open(file, how | os.O_CREAT, 0o600)
    try:
        yield number
    finally:
        os.close(number)


def _options(folder: Path, mounts: Path) -> set[str]:
    """The options of the file system that holds a folder; none where the system keeps no list."""
    lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines() if mounts.exists() else []
    entries = [line.split(" ") for line in lines]
    holding = [(Path(entry[1].replace("\\040", " ")), entry[3]) for entry in entries if len(entry) > 3]
    found = [(len(place.parts), options) for place, options in holding if folder.is_relative_to(place)]
    return set(max(found)[1].split(",")) if found else set()

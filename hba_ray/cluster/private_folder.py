"""The folder of a private Ray's sockets and logs: this user's alone, held while it is used, and removed by a later start where it was left.

Ray opens its own folder to everybody (mode 0777). So it gets one within a folder of mode 0700, which keeps others out of both:

    <temporary folder>/hba-ray-xxxxxxxx/          mode 0700; sockets, locks and logs of the fork server, Ray's token
    <temporary folder>/hba-ray-xxxxxxxx/r/        Ray's
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hba_ray.cluster.forkserver import open_private
from hba_ray.errors import EnvironmentMissing

PREFIX, OF_RAY, TOKEN = "hba-ray-", "r", "token"
SOCKET_PATH_BYTES = 107
"""Longest path of a unix socket, Linux's `sun_path` less its closing zero."""
RAY_SOCKET_SUFFIX = "/hba-ray-xxxxxxxx/r/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.00"
"""The longest path that is made in the temporary folder."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that nobody else can read or write, for the time of the block; those of killed runs are removed first.

    Raises:
        EnvironmentMissing: no temporary folder can be written to and has a path that is short enough for Ray's sockets.
    """
    place = _place()
    remove_leftovers(place)
    folder, held = _held(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def check_private(folder: Path) -> None:
    """Refuses a folder that is not this user's alone.

    Raises:
        EnvironmentMissing: it is another user's or open to others, or no folder.
    """
    try:
        os.close(open_private(str(folder)))
    except OSError as cause:
        way_out = "another user may be at work there: set RAY_TMPDIR to a short folder that only you can write to"
        raise EnvironmentMissing(str(folder), f"cannot hold the sockets of a private Ray: {cause}", way_out) from None


def write_token(folder: Path) -> Path:
    """A file with a new token for one private Ray, in a private folder."""
    file = folder / TOKEN
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as text:
        text.write(secrets.token_hex(32))
    return file


def keep_logs(folder: Path, log_folder: Path) -> None:
    """Copies the logs of Ray's processes, with the mode that `log_folder` has for their folders and without writing by others for files."""
    mode = stat.S_IMODE(log_folder.stat().st_mode)
    for logs in (folder / OF_RAY).glob("session_2*/logs"):
        for path in (logs, *logs.rglob("*")):
            if not path.is_symlink():
                path.chmod(mode if path.is_dir() else stat.S_IMODE(path.stat().st_mode) & ~0o022)
        shutil.copytree(logs, log_folder / logs.parent.name, symlinks=True, dirs_exist_ok=True)


def remove_leftovers(place: Path) -> None:
    """Removes the folders of private Rays whose run has been killed. A run holds a lock on its folder, which the system frees with it."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            held = open_private(str(folder))
        except OSError:  # another user's, or of an earlier version, which held no lock
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(held)


def _place() -> Path:
    for place in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"):
        if place and len(os.fsencode(place)) + len(RAY_SOCKET_SUFFIX) <= SOCKET_PATH_BYTES and os.access(place, os.W_OK):
            return Path(place)
    limit = SOCKET_PATH_BYTES - len(RAY_SOCKET_SUFFIX)
    raise EnvironmentMissing(
        "RAY_TMPDIR",
        "no writable temporary folder has a path short enough for Ray's sockets",
        f"set RAY_TMPDIR to one of at most {limit} bytes",
    )


def _held(place: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        check_private(folder)
        held = open_private(str(folder))
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.is_dir() and os.path.samestat(folder.stat(), os.fstat(held)):
            return folder, held
        os.close(held)  # another start took it for a leftover before it was held

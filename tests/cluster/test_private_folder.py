"""The folder of a private Ray: nobody else's, found out where it is, and removed after a kill."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hba_ray.cluster import forkserver
from hba_ray.cluster.private_folder import OF_RAY, check_private, keep_logs, private_folder, remove_leftovers, write_token
from hba_ray.errors import EnvironmentMissing
from tests.helpers.other_user import OTHER, as_other, needs_root
from tests.helpers.waiting import wait_until


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder that everybody can write to, as /tmp is; `tmp_path` is too long for sockets, and closed to others."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_a_long_temporary_folder_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with private_folder() as folder:
        longest = f"{folder}/{OF_RAY}/session_2026-11-20_11-23-31_873735_4194304/sockets/plasma_store.1"
        assert len(longest.encode()) <= 107


def test_the_folder_and_its_token_are_this_users_alone_and_go_with_the_block(place: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == place and stat.S_IMODE(folder.stat().st_mode) == 0o700
        check_private(folder)
        token = write_token(folder)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
        with pytest.raises(FileExistsError):
            write_token(folder)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("what", ["open to others", "link", "file", "missing"])
def test_a_folder_that_others_may_have_planted_is_refused(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if what == "open to others":
        folder.mkdir()
        folder.chmod(0o711)
    elif what == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    elif what == "file":
        folder.touch(mode=0o600)
    with pytest.raises(EnvironmentMissing, match=r"cannot hold the sockets(.|\n)*RAY_TMPDIR"):
        check_private(folder)


@needs_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(EnvironmentMissing, match=f"user {OTHER}"):
        check_private(folder)


def test_leftovers_of_killed_runs_are_removed_and_those_of_living_ones_are_not(place: Path) -> None:
    script = (
        "import time\nfrom hba_ray.cluster.private_folder import private_folder\n"
        "with private_folder() as folder:\n  (folder / 'r').mkdir()\n  print(folder, flush=True)\n  time.sleep(600)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [Path(run.stdout.readline().strip()) for run in runs if run.stdout]
    older, link = place / "hba-ray-ofearlier", place / "hba-ray-planted"
    older.mkdir()
    older.chmod(0o777)
    (place / "precious").mkdir(mode=0o700)
    link.symlink_to(place / "precious")
    try:
        runs[0].send_signal(signal.SIGKILL)
        runs[0].wait()
        assert folders[0].exists()
        with private_folder() as folder:
            assert sorted(place.iterdir()) == sorted([folder, folders[1], older, link, place / "precious"])
    finally:
        for run in runs:
            run.kill()
            run.communicate()


@needs_root
def test_a_folder_that_another_user_planted_is_left_alone_and_a_fresh_one_is_taken(place: Path) -> None:
    as_other("os.mkdir(sys.argv[1], 0o700)", str(place / "hba-ray-abcdefgh"))
    remove_leftovers(place)
    with private_folder() as folder:
        assert sorted(place.iterdir()) == sorted([folder, place / "hba-ray-abcdefgh"])
        assert folder.stat().st_uid == os.geteuid()


def test_logs_are_kept_with_the_modes_of_their_new_place(tmp_path: Path) -> None:
    logs, kept = tmp_path / "folder" / OF_RAY / "session_2026-11-20_1" / "logs", tmp_path / "kept"
    (logs / "old").mkdir(parents=True)
    (logs / "old" / "worker.out").write_text("said")
    for path, mode in ((logs, 0o777), (logs / "old", 0o777), (logs / "old" / "worker.out", 0o666)):
        path.chmod(mode)
    kept.mkdir(mode=0o750)
    kept.chmod(0o750)
    keep_logs(tmp_path / "folder", kept)
    copied = kept / "session_2026-11-20_1"
    assert [stat.S_IMODE((copied / part).stat().st_mode) for part in (".", "old", "old/worker.out")] == [0o750, 0o750, 0o644]


ASK = [sys.executable, "-c", "import sys; from hba_ray.cluster import forkserver; forkserver.main(['ask', sys.argv[1], 'worker.py'])"]


def asked(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ASK, str(folder)], env={**os.environ, "SECRET_KEY": "sk-1"}, capture_output=True, text=True, timeout=60)


LISTEN = """
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
server.listen()
print("listening", flush=True)
client, _ = server.accept()
print(len(client.recv(100)))
"""


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_the_client_sends_nothing_to_a_server_of_another_user(place: Path, mode: int) -> None:
    with private_folder() as folder:
        socket_file = folder / f"{forkserver.stem(dict(os.environ))}.sock"
        become = f"import os, socket, sys; os.setresuid({OTHER}, {OTHER}, {OTHER})\n"
        folder.chmod(0o777)
        thief = subprocess.Popen([sys.executable, "-c", become + LISTEN, str(socket_file)], stdout=subprocess.PIPE, text=True, cwd="/")
        assert thief.stdout and thief.stdout.readline() == "listening\n"
        folder.chmod(mode)
        done = asked(folder)
        assert done.returncode == 1
        assert ("another user's process answers" if mode == 0o700 else "is not this user's alone") in done.stderr
        assert str(folder) in done.stderr and "Traceback" not in done.stderr
        if mode == 0o700:
            assert thief.communicate(timeout=30)[0] == "0\n"
        else:
            thief.kill()
            assert thief.communicate()[0] == ""


def test_a_link_in_place_of_the_lock_or_the_log_is_not_followed(place: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    with private_folder() as folder:
        for suffix in (".lock", ".log"):
            planted = folder / (forkserver.stem(dict(os.environ)) + suffix)
            planted.symlink_to(precious)
            done = asked(folder)
            assert done.returncode == 1 and "workers are not forked here" in done.stderr and "Traceback" not in done.stderr
            planted.unlink()
        assert precious.read_text() == "kept"


SERVE = "import sys; from hba_ray.cluster import forkserver; forkserver.MODULES = (); forkserver.main(['serve', *sys.argv[1:]])"
INTRUDE = """
def tried(act):
    try:
        return str(act())
    except OSError as error:
        return type(error).__name__
folder, name = sys.argv[1:3]
def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect(os.path.join(folder, name))
    client.sendall(bytes(8))
    return "closed" if not client.recv(1) else "answered"
def overwrite():
    os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
    return "overwritten"
print(tried(lambda: len(os.listdir(folder))), tried(connect), tried(overwrite))
"""


@needs_root
def test_another_user_cannot_read_connect_or_overwrite_and_is_hung_up_on_were_the_folder_open(place: Path) -> None:
    raylet = subprocess.Popen(["sleep", "600"])
    try:
        with private_folder() as folder:
            name = forkserver.stem({})
            words = [sys.executable, "-c", SERVE, str(folder), name]
            server = subprocess.Popen(words, env={**os.environ, "RAY_RAYLET_PID": str(raylet.pid)})
            wait_until((folder / f"{name}.sock").exists, seconds=30)
            assert as_other(INTRUDE, str(folder), f"{name}.sock").split() == ["PermissionError"] * 3
            folder.chmod(0o777)  # what nobody does any more
            (folder / f"{name}.sock").chmod(0o777)
            assert as_other(INTRUDE, str(folder), f"{name}.sock").split()[1] in ("closed", "ConnectionResetError", "BrokenPipeError")
            folder.chmod(0o700)
            raylet.kill()
            raylet.wait()
            assert server.wait(timeout=30) == 0
    finally:
        raylet.kill()
        raylet.wait()


def test_both_ends_of_a_socket_of_ones_own_are_known_as_such() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert forkserver.is_own(one) and forkserver.is_own(other)

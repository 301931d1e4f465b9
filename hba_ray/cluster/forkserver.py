"""Starts the workers of a private Ray by forking a process that has already imported torch, transformers and Ray.

A worker needs some twenty CPU seconds to import them, and an experiment has dozens of workers, one after the
other. With this server they are imported once, and all workers share that memory:

    raylet ── starts ──> client (this file; waits, and passes on how the worker ended)
                            │ arguments, variables, folder, standard streams
                            v
                         server (this file; imports once) ── forks ──> worker

It is used where `compute.fork` is set and no worker has a GPU, since CUDA does not survive a fork. The server ends
with its raylet. Variables hold keys: before any is sent, each side makes sure that the other, and the folder of their
socket, are this user's. This file is run as a script, and imports nothing but the standard library at its top, since
the client has to start in milliseconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

MODULES = (
    "ray.data",
    "ray.train.torch",
    "deepspeed",
    "peft",
    "transformers.models.qwen2_5_omni.processing_qwen2_5_omni",
    "hba_ray.training.sft",
    "hba_ray.models.omni",
)
"""Modules that the server imports; those that are not installed are left out."""
VERL_MODULES = (
    "verl.trainer.main_ppo",
    "verl.experimental.agent_loop",
    "verl.workers.engine_workers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "hba_ray.rl.trainer",
    "hba_ray.rl.rollouts",
)
"""Modules that the server of verl's processes imports beside these."""
_OF_VERL = "VERL_USE_EXTERNAL_MODULES"
"""Variable that processes of verl have; it names our plugin."""
_READ_BY_IMPORTS = ("DS_", "HF_", "KMP_", "MKL_", "OMP_", "OPENBLAS_", "PYTORCH_", "TORCH", "TRANSFORMERS_", "VERL_", "VLLM_")
"""Beginnings of names of variables that modules read only when they are imported: for other values there is another server."""
_START_SECONDS = 30.0
_POLL_SECONDS = 0.5
_STREAMS = (0, 1, 2)
FAILED = ".failed"
"""End of the name of an empty file that says that a server could not import what it has to."""
_KILLED = 128 + signal.SIGKILL
"""Exit status of a worker that was killed, as a shell says it."""


class Request(NamedTuple):
    """A worker to be started: the words of its command line, its folder and its variables."""

    argv: list[str]
    cwd: str
    environ: dict[str, str]


def executable(folder: str) -> str:
    """The command that Ray runs in place of Python to start a worker (`py_executable`): the client.

    Args:
        folder: holds the socket and the server's log. It is private to the user, and its path is short enough for sockets.
    """
    import shlex

    return shlex.join([sys.executable, "-I", "-S", os.path.abspath(__file__), "ask", folder])


def ask(folder: str, argv: list[str]) -> int:
    """Asks the server for a worker and waits for its end. The worker of a client that is killed is killed, too.

    Where the server could not import what it has to, this process becomes the worker, as Ray would have started it.

    Args:
        argv: the worker's command line.

    Returns:
        The worker's exit status.
    """
    message, name, answer = json.dumps(Request(argv, os.getcwd(), dict(os.environ))).encode(), stem(os.environ), b""
    server = _connection(folder, name)
    with suppress(ConnectionError), server or nullcontext():
        if server is not None:
            socket.send_fds(server, [len(message).to_bytes(8, "big")], _STREAMS)
            server.sendall(message)
            answer = server.recv(4)
    if not answer and _has_failed(folder, name):
        sys.stderr.write(f"{folder}/{name}.log: workers cannot be forked here, so this one is started by itself\n")
        os.execv(sys.executable, [sys.executable, *argv])
    return int.from_bytes(answer, "big") if answer else _KILLED


def _has_failed(folder: str, name: str) -> bool:
    """Whether the server could not import what it has to."""
    with _private(folder) as private:
        return name + FAILED in os.listdir(private)


def stem(environ: Mapping[str, str]) -> str:
    """Name, without suffix, of the socket, the lock and the log of the server for workers with these environment variables."""
    heeded = sorted((name, value) for name, value in environ.items() if name.startswith(_READ_BY_IMPORTS))
    return f"forking-{zlib.crc32(repr(heeded).encode()):08x}"


def open_private(folder: str) -> int:
    """A descriptor of a folder that nobody else can read or write; through it, a name stays in that folder, whatever takes its place.

    Raises:
        PermissionError: it is another user's, or its mode lets others in.
        OSError: there is no such folder, or a link or a file stands in its place.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(number)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(number)
        raise PermissionError(f"{folder} is not this user's alone: user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}")
    return number


def _open_file(folder: int, name: str, flags: int) -> int:
    """A descriptor of a file in an open folder, which is made where there is none; a link is not followed."""
    return os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)


def is_own(other: socket.socket) -> bool:
    """Whether the process on the other side of a unix socket is of the same user."""
    _, user, _ = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user == os.geteuid()


@contextmanager
def _private(folder: str) -> Iterator[int]:
    """`open_private` for the time of the block, in which the system's errors end the process with a message."""
    try:
        private = open_private(folder)
        yield private
        os.close(private)
    except OSError as cause:
        sys.exit(f"{folder}: workers are not forked here: {cause}")


def _connection(folder: str, name: str) -> socket.socket | None:
    """A connection to the server of a name, which is started where there is none; None where it has failed.

    Raises:
        SystemExit: the folder is not this user's alone, the server is another user's, or it does not start.
    """
    with _private(folder) as private, os.fdopen(_open_file(private, name + ".lock", os.O_RDWR)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = _try(private, name)
        if server is None and name + FAILED in os.listdir(private):
            return None
        if server is None:
            _start(private, name, folder)
        deadline = time.monotonic() + _START_SECONDS
        while server is None:
            if time.monotonic() > deadline:
                sys.exit(f"{folder}/{name}.log: the process that workers are forked from did not start in {_START_SECONDS:g} s")
            time.sleep(0.02)
            server = _try(private, name)
    return server


def _try(private: int, name: str) -> socket.socket | None:
    """A connection to the server, where there is one.

    Raises:
        PermissionError: another user's process answers.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(f"/proc/self/fd/{private}/{name}.sock")
    except (FileNotFoundError, ConnectionRefusedError):
        server.close()
        return None
    if not is_own(server):
        raise PermissionError(f"another user's process answers at {name}.sock")
    return server


def _start(private: int, name: str, folder: str) -> None:
    """Starts a server in a session of its own, so that neither Ctrl-C nor the end of a client's process group reaches it."""
    log = _open_file(private, name + ".log", os.O_WRONLY | os.O_APPEND)
    if os.fork():
        os.close(log)
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for stream, file in zip(_STREAMS, (null, log, log), strict=True):
        os.dup2(file, stream)
    os.closerange(3, 1024)
    os.execv(sys.executable, [sys.executable, "-P", os.path.abspath(__file__), "serve", folder, name])


def serve(folder: str, name: str) -> tuple[Request, list[int]]:
    """Forks a worker for every request of this user, until the raylet has ended.

    Raises:
        SystemExit: the raylet has ended; or the folder is not this user's alone.

    Returns:
        In a worker, its request and its standard streams. In the server this function does not return.
    """
    raylet = f"/proc/{int(os.environ['RAY_RAYLET_PID'])}"
    listener = _listener(folder, name)  # before the imports: clients wait in the queue, instead of starting another server
    before = dict(os.environ)
    with _failure_noted(folder, name):
        import_all = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "forkable.py"))["import_all"]
        import_all(MODULES + (VERL_MODULES if _OF_VERL in before else ()))
    set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    clients: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as waiting, _woken_by_ends() as ends:
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(ends, selectors.EVENT_READ)
        while os.path.exists(raylet):
            for key, _ in waiting.select(_POLL_SECONDS):
                if key.fileobj is ends:
                    ends.recv(4096)
                elif key.fileobj is listener:
                    client, _ = listener.accept()
                    if not is_own(client):
                        client.close()
                        continue
                    received = _receive(client)
                    if received is None:
                        continue
                    pid = os.fork()
                    if not pid:
                        for other in (listener, client, *clients.values()):
                            other.close()
                        request, streams = received
                        return request._replace(environ=set_by_imports | request.environ), streams
                    for file in received[1]:
                        os.close(file)
                    clients[pid] = client
                    waiting.register(client, selectors.EVENT_READ, pid)
                else:  # a client ended before its worker did
                    waiting.unregister(key.fileobj)
                    with suppress(ProcessLookupError):
                        os.killpg(key.data, signal.SIGKILL)
            for pid, status in _ended():
                client = clients.pop(pid)
                with suppress(KeyError):
                    waiting.unregister(client)
                with suppress(OSError), client:
                    client.sendall((status & 0xFFFFFFFF).to_bytes(4, "big"))
    sys.exit(0)


@contextmanager
def _failure_noted(folder: str, name: str) -> Iterator[None]:
    """Notes beside the socket that the block has raised, so that clients neither wait for the server nor start it again."""
    whole = False
    try:
        yield
        whole = True
    finally:
        if not whole:
            with _private(folder) as private:
                os.close(_open_file(private, name + FAILED, os.O_WRONLY))


def _listener(folder: str, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    with _private(folder) as private:
        with suppress(FileNotFoundError):
            os.unlink(name + ".sock", dir_fd=private)
        listener.bind(f"/proc/self/fd/{private}/{name}.sock")
    listener.listen(256)
    return listener


@contextmanager
def _woken_by_ends() -> Iterator[socket.socket]:
    """A socket that becomes readable when a child process ends."""
    readable, writable = socket.socketpair()
    writable.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable.fileno())
    with readable, writable:
        yield readable


def _receive(client: socket.socket) -> tuple[Request, list[int]] | None:
    """A request and the worker's standard streams; None where the client was killed before it had sent all of it."""
    size, streams, _, _ = socket.recv_fds(client, 8, len(_STREAMS))
    message = bytearray()
    while size and len(message) < int.from_bytes(size, "big"):
        part = client.recv(1 << 16)
        if not part:
            break
        message += part
    if size and len(message) == int.from_bytes(size, "big"):
        return Request(*json.loads(message)), streams
    for file in streams:
        os.close(file)
    client.close()
    return None


def _ended() -> Iterator[tuple[int, int]]:
    """(process id, exit status as a shell says it) of each child that has ended."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            yield pid, code if code >= 0 else 128 - code


def become_worker(request: Request, streams: list[int]) -> None:
    """Runs the worker's program, as if Python had been started with it."""
    os.setpgid(0, 0)  # Ray ends workers by their process group
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, file in zip(_STREAMS, streams, strict=True):
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environ)
    os.chdir(request.cwd)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # the global generator was copied with the memory; Python's own sees to itself
    sys.argv = request.argv
    sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    runpy.run_path(request.argv[0], run_name="__main__")


def main(words: list[str]) -> None:
    part, folder, *others = words
    if part == "ask":
        sys.exit(ask(folder, others))
    become_worker(*serve(folder, others[0]))


if __name__ == "__main__":
    main(sys.argv[1:])

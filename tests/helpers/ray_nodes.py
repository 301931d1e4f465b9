"""Starts nodes of a real Ray cluster by `ray start`, as its users do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.waiting import wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STARTS = 3
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
Process = subprocess.Popen[bytes]


def of_a_cluster(folder: Path) -> dict[str, str]:
    """Variables of the nodes of a cluster, and of whoever talks to it.

    Args:
        folder: for Ray's own files; short enough for sockets.
    """
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return environ | {
        **TOKEN,
        "RAY_TMPDIR": str(folder),
        "RAY_idle_worker_killing_time_threshold_ms": "120000",  # a second would have them import torch again
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def start_node(words: Sequence[str], log: Path, environ: Mapping[str, str], *, within: Sequence[str] = ()) -> Process:
    """A node that is up. Ray gives one 30 seconds to start, and ends it where the machine is too busy for that; then it is tried again.

    Args:
        words: of `ray start`.
        within: a command that starts another one, in a network namespace for example.
    """
    command = [*within, str(BIN / "ray"), "start", *words, "--block", "--object-store-memory=100000000", "--disable-usage-stats"]
    for _ in range(STARTS):
        with log.open("wb") as said:
            node = subprocess.Popen(command, env=dict(environ), cwd=log.parent, stdout=said, stderr=said, start_new_session=True)
        if _is_up(node, log):
            return node
    pytest.fail(log.read_text())


def _is_up(node: Process, log: Path) -> bool:
    """Waits until `ray start` has started a node or has given it up."""
    wait_until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, said=lambda: str(log), seconds=180)
    return node.poll() is None


@contextmanager
def ended(started: list[Process]) -> Iterator[None]:
    """Ends, after the block, all processes that it has added to the list, the last ones first, and what they have started."""
    try:
        yield
    finally:
        for process in reversed(started):
            with suppress(ProcessLookupError):  # a node that Ray has given up
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

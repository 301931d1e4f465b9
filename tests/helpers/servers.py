"""Ports of this machine, and a server of MLflow on one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.waiting import wait_until

LOOPBACK = "127.0.0.1"


def free_port(host: str = LOOPBACK) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]


def answers(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


@contextmanager
def mlflow_server(folder: Path, host: str = LOOPBACK) -> Iterator[str]:
    """The address of a server whose store is in a folder, for the time of the block.

    Args:
        host: the address of this machine at which it listens.
    """
    port = free_port(host)
    store = ("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"))
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1", *store]
    environ = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # processes that wait for work of another kind
    with (folder / "mlflow.log").open("w") as said:
        server = subprocess.Popen(command, env=environ, stdout=said, stderr=said, text=True)
    try:
        wait_until(lambda: answers(port, host), server, seconds=180)
        yield f"http://{host}:{port}"
    finally:
        server.terminate()
        server.wait()

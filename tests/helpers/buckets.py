"""A real server of object storage on this machine, and folders of it that belong to one test."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.servers import LOOPBACK, answers, free_port
from tests.helpers.waiting import wait_until

ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}


@contextmanager
def s3_server(host: str = LOOPBACK) -> Iterator[dict[str, str]]:
    """moto's server for the time of the block; yields the variables by which clients find it.

    Args:
        host: the address of this machine at which it listens.
    """
    port = free_port(host)
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: answers(port, host), server, seconds=60)
        yield ACCESS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    finally:
        server.terminate()
        server.wait()


def make_bucket(endpoint: str) -> str:
    """The address of a new folder in a new bucket."""
    import urllib.request

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return f"s3://{name}/runs"


def on_host(folder: Path) -> dict[str, str]:
    """Variables of a process as if it ran on a host of its own, which has no folder in common with others."""
    return {**os.environ, "HBA_SCRATCH": str(folder)}

"""Waiting for what other processes and threads do."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

PATIENCE_SECONDS = 400


def wait_until(
    holds: Callable[[], bool],
    driver: subprocess.Popen[str] | None = None,
    said: Callable[[], str] = str,
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.1,
) -> None:
    """Returns once something holds; fails, with what was said, where it does not in so many seconds or where its driver ends before."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert driver is None or driver.poll() is None, f"ended with {driver and driver.returncode}: {said()}"
        assert time.monotonic() < deadline, said()
        time.sleep(pause)

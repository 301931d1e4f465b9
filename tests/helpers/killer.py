"""Kills a worker of Ray Train in the middle of its work."""

import os
import signal
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 240


class Killer(threading.Thread):
    """Kills one training worker as soon as `ready` says so."""

    def __init__(self, ready: Callable[[], bool]):
        super().__init__(daemon=True)
        self.ready, self.killed = ready, 0

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            workers = training_workers()
            if workers and self.ready():
                os.kill(workers[-1], signal.SIGKILL)
                self.killed = workers[-1]
                return
            time.sleep(0.1)


def training_workers() -> list[int]:
    """Process ids of the Ray Train workers that this process's Ray runs now."""
    from ray.util import state

    alive = state.list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    return [actor.pid for actor in alive]

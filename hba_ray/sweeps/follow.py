"""Follows a file of JSON lines while a step writes it, wherever its workers run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Metrics = dict[str, float | int | bool]
_POLL_SECONDS = 0.5


@contextmanager
def followed(path: Path, take: Callable[[Metrics], None]) -> Iterator[None]:
    """Hands every line to `take`, once, in order, from a thread; the rest when the block ends.

    A resumed run takes lines back and writes them again: steps that `take` has seen are not repeated.
    """
    follower = _Follower(path, take)
    thread = threading.Thread(target=follower.run, name=f"follow {path.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        follower.stop.set()
        thread.join()
        follower.read()


class _Follower:
    def __init__(self, path: Path, take: Callable[[Metrics], None]):
        self.path, self.take, self.stop = path, take, threading.Event()
        self.seen: set[tuple[float, bool]] = set()
        self.offset = 0

    def run(self) -> None:
        while not self.stop.wait(_POLL_SECONDS):
            self.read()

    def read(self) -> None:
        if not self.path.exists():
            return
        if self.path.stat().st_size < self.offset:  # lines were taken back
            self.offset = 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        metrics: Metrics = json.loads(line)
        key = (float(metrics["step"]), "epochs_done" in metrics)
        if key not in self.seen:
            self.seen.add(key)
            self.take(metrics)

"""Follows a log of metrics, a JSON object a line, while a step's workers write it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from hba_ray.errors import HbaError
from hba_ray.store.folders import object_in

Metrics = dict[str, float | int | bool]
"""A line of the log: `step`, the optimiser step, and values by name."""
_POLL_SECONDS = 0.5


@contextmanager
def followed(path: Path, take: Callable[[Metrics], None]) -> Iterator[None]:
    """Hands every line of a log to `take`, once and in order, from a thread; what is left, when the block ends.

    A resumed run removes lines and writes them again; lines of steps that `take` has seen are not handed over twice. A line whose
    writer died within it is left out.
    A line on which `take` fails is tried again half a second later, and for the last time when the block ends.

    Raises:
        HbaError: `take` failed in that last try, and the block itself did not fail.
    """
    follower = _Follower(path, take)
    thread = threading.Thread(target=follower.run, name=f"follow {path.name}", daemon=True)
    thread.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        follower.stop.set()
        thread.join()
        with suppress(HbaError) if failed else nullcontext():  # the block's own error says more
            follower.read()


class _Follower:
    """Reads what was added to a log since the last time.

    Attributes:
        seen: optimiser steps that were handed over, and whether the line was that of an epoch's end.
        file: inode of the log; a resumed run replaces the file.
        offset: bytes that were handed over.
    """

    def __init__(self, path: Path, take: Callable[[Metrics], None]):
        self.path, self.take, self.stop = path, take, threading.Event()
        self.seen: set[tuple[float, bool]] = set()
        self.file: int | None = None
        self.offset = 0

    def run(self) -> None:
        while not self.stop.wait(_POLL_SECONDS):
            with suppress(HbaError):
                self.read()

    def read(self) -> None:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if number != self.file:  # a new file, in which a resumed run has removed lines
                self.file, self.offset = number, 0
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._take(line)
                self.offset += len(line)

    def _take(self, line: bytes) -> None:
        metrics: Metrics | None = object_in(line)
        if metrics is None or "step" not in metrics:
            return
        key = (float(metrics["step"]), "epochs_done" in metrics)
        if key not in self.seen:
            self.take(metrics)
            self.seen.add(key)

"""Leases: locks in an object storage, which knows nothing of processes and their deaths.

A lease is an object that names its holder and that the holder writes again at every heartbeat, on condition that nobody else has.
Whoever waits sees it change. When it has not changed for two heartbeats, the holder is taken for dead, and who waits writes its own
name into it, on the same condition: of several, one succeeds. A holder that was only asleep finds out at its next heartbeat, or when
it asks (`Lease.check`). No clocks are compared: each waiter measures silence by its own.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from hba_ray.errors import EnvironmentMissing
from hba_ray.store.bucket import Bucket, Version

BEAT_SECONDS = 15.0
"""Between two heartbeats of a holder."""
SILENT_BEATS = 2
"""So many heartbeats without a sign, and a holder is taken for dead."""
LOOKS_PER_BEAT = 10
"""How often those who wait look at a lease, and at least once a second."""
FREE = b'{"holder": null}\n'
"""Content of a lease that nobody holds. It is not deleted, since no storage deletes on condition."""


@dataclass
class Lease:
    """A lease that this process holds.

    Attributes:
        version: of its object, as this process has last written it.
        is_lost: another process has taken it over.
    """

    bucket: Bucket
    key: str
    version: Version
    is_lost: bool = False
    _holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    _beats: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Makes sure that the lease is still held, by a heartbeat.

        Raises:
            EnvironmentMissing: another process has taken it over, since this one gave no sign for long; or the storage does not answer.
        """
        with self._lock:
            written = None if self.is_lost else self.bucket.replace(self.key, self.sign(), self.version)
            if written is None:
                self.is_lost = True
                what = "this process gave no sign for so long that another one has taken over its work"
                raise EnvironmentMissing(f"{self.bucket.address}/{self.key}", what, "what is finished is kept; run the same command again")
            self.version = written

    def free(self) -> None:
        """Gives the lease back, so that others need not wait; one that was lost is left to its new holder."""
        with self._lock:
            if not self.is_lost:
                self.bucket.replace(self.key, FREE, self.version)

    def sign(self) -> bytes:
        """The object's next content, which no other process writes: it names this holder and counts its heartbeats."""
        self._beats += 1
        return json.dumps({"holder": self._holder, "beat": self._beats, "host": socket.gethostname(), "pid": os.getpid()}).encode() + b"\n"


@contextmanager
def leased(
    bucket: Bucket,
    key: str,
    *,
    wait_seconds: float,
    on_wait: Callable[[], None] | None = None,
    beat_seconds: float = BEAT_SECONDS,
) -> Iterator[Lease]:
    """Holds a lease for the time of the block, with heartbeats from a thread.

    Args:
        wait_seconds: how long to wait where another process holds it; long enough to find out that it is dead in any case.
        on_wait: called before waiting; not called where the lease is free.

    Raises:
        EnvironmentMissing: another process holds it for longer, or the storage does not answer.
    """
    lease = _taken(bucket, key, wait_seconds, on_wait, beat_seconds)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(lease, ended, beat_seconds), name=f"lease {key}", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        ended.set()
        heart.join()
        with suppress(EnvironmentMissing):  # who comes next waits until it is silent
            lease.free()


def _beat(lease: Lease, ended: threading.Event, beat_seconds: float) -> None:
    while not ended.wait(beat_seconds) and not lease.is_lost:
        with suppress(EnvironmentMissing):  # lost, which the holder is told when it asks; or no answer, and the next one may be heard
            lease.check()


def _taken(bucket: Bucket, key: str, wait_seconds: float, on_wait: Callable[[], None] | None, beat_seconds: float) -> Lease:
    """The lease, once it is free or its holder is silent."""
    lease, silence, look = Lease(bucket, key, Version(None)), SILENT_BEATS * beat_seconds, min(1.0, beat_seconds / LOOKS_PER_BEAT)
    began, changed, seen, is_waiting = time.monotonic(), time.monotonic(), None, False
    while True:
        found = bucket.read(key)
        if found is None:
            written = bucket.create(key, lease.sign())
        else:
            if found[1] != seen:
                seen, changed = found[1], time.monotonic()
            is_free = found[0] == FREE or time.monotonic() - changed > silence
            written = bucket.replace(key, lease.sign(), found[1]) if is_free else None
        if written is not None:
            lease.version = written
            return lease
        if time.monotonic() - began > max(wait_seconds, silence + 2 * look):
            raise EnvironmentMissing(f"{bucket.address}/{key}", "another process works on this", "wait for it, or stop it")
        if on_wait is not None and not is_waiting:
            on_wait()
        is_waiting = True
        time.sleep(look)

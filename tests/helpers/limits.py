"""Limits of the system, for a while: what a small or a full disk does, little memory, and a clock that runs out."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    with _limited(resource.RLIMIT_FSIZE, size):
        yield


@contextmanager
def memory_of_at_most(size: int) -> Iterator[None]:
    """This process gets so many bytes of address space beyond what it has; what asks for more sees a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + size):
        yield


@contextmanager
def seconds_of_at_most(seconds: float) -> Iterator[None]:
    """What takes longer is interrupted by an AssertionError, as soon as Python gets a word in. For the main thread only."""

    def ring(signum: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeIsUp:
        raise AssertionError(f"took more than {seconds:g} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, before)


class TimeIsUp(BaseException):
    """Passes through libraries that catch every Exception."""


@contextmanager
def _limited(which: int, size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))

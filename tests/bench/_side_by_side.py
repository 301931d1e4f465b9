"""Measuring two ways of doing the same on a noisy machine: by turns, several times, median of the ratios."""

import time
from collections.abc import Callable
from statistics import median


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def speed_up(ours: Callable[[], object], theirs: Callable[[], object], pairs: int = 5) -> float:
    """How many times faster `ours` is: the median over A/B pairs; both are warmed up once."""
    ours(), theirs()
    return median(seconds(theirs) / seconds(ours) for _ in range(pairs))

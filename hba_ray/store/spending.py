"""What the steps of a run have held, in GPU-hours and dollars, by the run's ledger; interrupted attempts are counted, reused steps not.

The ledger has a line where a step begins, with what it holds, and one where it ends, with its seconds. A process that is killed writes
no last line, so there are signs of life in between.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hba_ray.errors import EnvironmentMissing
from hba_ray.store.folders import note

SIGN_SECONDS = 300.0
"""Between two signs of life of a step that costs something."""
ENDS = ("done", "interrupted")
"""Events that end a step."""
_GPUS, _PRICE = "gpus", "dollars_per_hour"
"""Keys of a ledger's line where a step begins."""
SO_FAR = "spent so far: "
"""Begins a line in which a run says what it has cost; `hba status` shows the last one of a job."""
_SAID = re.compile(rf"^{SO_FAR}(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Rate:
    """What work holds at a time.

    Attributes:
        dollars_per_hour: its price; None where it is not known.
    """

    gpus: float = 0.0
    dollars_per_hour: float | None = None

    def __bool__(self) -> bool:
        """Whether it costs anything that can be counted."""
        return bool(self.gpus or self.dollars_per_hour)


@dataclass(frozen=True)
class Spent:
    """What work has held so far.

    Attributes:
        dollars: None where the price of a part of it is not known.
    """

    gpu_hours: float = 0.0
    dollars: float | None = 0.0

    def __add__(self, other: Spent) -> Spent:
        is_known = self.dollars is not None and other.dollars is not None
        return Spent(self.gpu_hours + other.gpu_hours, (self.dollars or 0.0) + (other.dollars or 0.0) if is_known else None)

    def __bool__(self) -> bool:
        return bool(self.gpu_hours or self.dollars)

    def in_words(self) -> str:
        """
        >>> Spent(12.345, 40.0).in_words(), Spent(0.5, None).in_words(), Spent(0.0, 1.5).in_words()
        ('12.35 GPU-hours, 40.00 dollars', '0.50 GPU-hours', '1.50 dollars')
        """
        hours = [f"{self.gpu_hours:.2f} GPU-hours"] if self.gpu_hours or not self.dollars else []
        return ", ".join([*hours, *([f"{self.dollars:.2f} dollars"] if self.dollars else [])])

    def metrics(self) -> dict[str, float]:
        """The same under the names that MLflow shows; what is not known, or is nothing, is left out."""
        values = {"cost/gpu_hours": self.gpu_hours, "cost/dollars": self.dollars}
        return {name: value for name, value in values.items() if value}


def last_said(log: str) -> str | None:
    """What a run has last said of its cost in its log; None where it has said nothing.

    >>> last_said("sft: started\\nspent so far: 0.50 GPU-hours\\n  spent so far: 9.00 GPU-hours\\n")
    '0.50 GPU-hours'
    """
    said = _SAID.findall(log)
    return said[-1].strip() if said else None


@contextmanager
def on_record(run: Path, rate: Rate, *, sign_seconds: float = SIGN_SECONDS, **step: str) -> Iterator[None]:
    """Tells the ledger of a run that a step is begun and what it holds, and when the block has ended, how and after how many seconds.

    Args:
        step: the keys by which the ledger names it.
    """
    held = {_GPUS: rate.gpus, _PRICE: rate.dollars_per_hour} if rate else {}
    note(run, event="started", **step, **{key: value for key, value in held.items() if value is not None})
    began, event, ended = time.monotonic(), "interrupted", threading.Event()

    def sign() -> None:
        while not ended.wait(sign_seconds):
            with suppress(EnvironmentMissing, OSError):  # no room, or no answer: the step itself will find out
                note(run, event="alive", **step)

    thread = threading.Thread(target=sign, name=f"signs of {run.name}", daemon=True)
    if rate:
        thread.start()
    try:
        yield
        event = "done"
    finally:
        ended.set()
        if rate:
            thread.join()
        note(run, event=event, **step, seconds=round(time.monotonic() - began, 1))


def spent(lines: Iterable[Mapping[str, Any]], now: float, price: float | None = None) -> Spent:
    """What the steps of a run have held, those that are being done included.

    A step without an end counts until its last sign of life and one interval beyond, which is too much by less than that where its
    process was killed.

    Args:
        lines: of the run's ledger.
        now: seconds since 1970.
        price: dollars for a GPU-hour of steps that were begun when no price was stated.
    """
    total, begun = Spent(), dict[str, tuple[Rate, float, float]]()
    for line in lines:
        event, step = line.get("event"), line.get("fingerprint", "")
        if event == "started" and "step" in line:
            total += _until(begun.pop(step, None), now, price)
            begun[step] = (Rate(line.get(_GPUS, 0.0), line.get(_PRICE)), at := _seconds(line), at)
        elif event == "alive" and step in begun:
            begun[step] = (*begun[step][:2], _seconds(line))
        elif event in ENDS and step in begun:
            total += _held(begun.pop(step)[0], line.get("seconds", 0.0), price)
    for one in begun.values():
        total += _until(one, now, price)
    return total


def _until(begun: tuple[Rate, float, float] | None, now: float, price: float | None) -> Spent:
    """What a step without an end has held."""
    if begun is None:
        return Spent()
    rate, start, sign = begun
    return _held(rate, max(0.0, min(now, sign + SIGN_SECONDS) - start), price)


def _held(rate: Rate, seconds: float, price: float | None) -> Spent:
    if not rate:
        return Spent()
    hours, stated = seconds / 3600, rate.dollars_per_hour
    known = stated if stated is not None else None if price is None else rate.gpus * price
    return Spent(rate.gpus * hours, None if known is None else known * hours)


def _seconds(line: Mapping[str, Any]) -> float:
    """When a line of a ledger was written, in seconds since 1970."""
    return datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()

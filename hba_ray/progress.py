"""A bar for every step that takes more than a few seconds, on standard error.

On a terminal it moves; elsewhere (a file, a job's log) a plain line appears now and then.

    with progress("sft", total=steps) as bar:
        for step in range(steps):
            bar.advance()
            bar.show(loss=loss)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines."""


class Bar:
    """A step's progress: `advance` counts, `show` names values beside it."""

    def __init__(self, description: str, total: int | None, console: Console):
        self._description, self._console, self._said = description, console, time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(description, total=total, values="")

    def advance(self, by: float = 1) -> None:
        """`by` more units are done."""
        self._progress.advance(self._task, by)
        self._say_now_and_then()

    def reach(self, done: float) -> None:
        """`done` units are done in all."""
        self._progress.update(self._task, completed=done)
        self._say_now_and_then()

    def show(self, **values: float | int | str) -> None:
        """Shows `name value` pairs beside the bar until the next call."""
        text = "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
        self._progress.update(self._task, values=text)

    def _say_now_and_then(self) -> None:
        if not self._console.is_terminal and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)

    def _line(self) -> str:
        task = self._progress.tasks[self._task]
        done = f"{task.completed:g}" + ("" if task.total is None else f"/{task.total:g}")
        left = task.time_remaining
        ends = f"{task.elapsed or 0:.0f} s" + ("" if left is None else f", {left:.0f} s left")
        return f"{self._description}: {done} ({ends})  {task.fields['values']}".rstrip()


@contextmanager
def progress(description: str, total: int | None = None, *, console: Console | None = None) -> Iterator[Bar]:
    """A bar for the time of the block.

    Args:
        total: units of work; None where it is not known beforehand.
        console: where to draw; standard error by default.
    """
    bar = Bar(description, total, console or Console(stderr=True))
    with bar._progress:
        yield bar


@contextmanager
def phases(description: str, *, console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """One bar after the other, for work that tells (phase, done, total) as it goes; a new phase ends the bar before it."""
    with ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                stack.close()
                bars[phase] = stack.enter_context(progress(f"{description} {phase}", total, console=console))
            bars[phase].reach(done)

        yield tell

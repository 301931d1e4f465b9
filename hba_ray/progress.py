"""Progress bars on standard error, for all that takes more than a few seconds.

On a terminal a bar moves; elsewhere (a file, the log of a job) a plain line is printed every ten seconds.

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

from hba_ray.escaping import PlainConsole

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines where there is no terminal."""


class Bar:
    """A progress bar that `progress` has opened: `advance` and `reach` move it, `show` writes values beside it, `say` a line above it."""

    def __init__(self, description: str, total: int | None, console: Console):
        self._description, self._console, self._printed = description, console, time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(description, total=total, values="")

    def advance(self, by: float = 1) -> None:
        """Counts `by` more units as done."""
        self._progress.advance(self._task, by)
        self._print_now_and_then()

    def reach(self, done: float) -> None:
        """Counts `done` units in all as done."""
        self._progress.update(self._task, completed=done)
        self._print_now_and_then()

    def show(self, **values: float | int | str) -> None:
        """Shows `name value` pairs beside the bar until the next call."""
        text = "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
        self._progress.update(self._task, values=text)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _print_now_and_then(self) -> None:
        if not self._console.is_terminal and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._console.print(self._line(), soft_wrap=True)

    def _line(self) -> str:
        task = self._progress.tasks[self._task]
        done = f"{task.completed:g}" + ("" if task.total is None else f"/{task.total:g}")
        left = task.time_remaining
        ends = f"{task.elapsed or 0:.0f} s" + ("" if left is None else f", {left:.0f} s left")
        return f"{self._description}: {done} ({ends})  {task.fields['values']}".rstrip()


@contextmanager
def progress(description: str, total: int | None = None, *, console: Console | None = None) -> Iterator[Bar]:
    """Shows a bar for the time of the block.

    Args:
        description: names the work, before the bar.
        total: units of work; None where the number is not known beforehand.
        console: where to draw; standard error by default.
    """
    bar = Bar(description, total, console or PlainConsole(stderr=True))
    with bar._progress:
        yield bar


@contextmanager
def phases(description: str, *, console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Shows one bar after the other for work in phases, which calls the yielded function with (phase, done, total) as it goes."""
    with ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                stack.close()
                bars[phase] = stack.enter_context(progress(f"{description} {phase}", total, console=console))
            bars[phase].reach(done)

        yield tell

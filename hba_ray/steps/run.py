"""Does a step: the only place that claims one, does it, stores how long it took and marks it as finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hba_ray.steps.base import Context, Result, Step, StepKind
from hba_ray.store.folders import LOCK_SECONDS, Storage, claimed, done, finish, note, reopen

Say = Callable[[str], None]


def do_step(context: Context, say: Say, *, run: Path | None = None, again: Callable[[Result], bool] = lambda result: False) -> Result:
    """Does a step unless it is done already; where another process is doing it, waits for that one.

    Args:
        say: takes a line for people.
        run: folder of the run whose ledger is told.
        again: whether a step that is done has to be done again, from what it says of itself.

    Returns:
        What the step says of itself, whoever did it.

    Raises:
        HbaError: what the step could not do.
        EnvironmentMissing: another process holds the step for hours, or its folder cannot be written to.
    """
    step = context.step
    if settled := _settled(step, again):
        _tell(step, "done before", "reused", say, run)
        return settled
    with claimed(step.folder, wait_seconds=LOCK_SECONDS):
        if settled := _settled(step, again):  # by the process that held the lock
            _tell(step, "done by another run", None, say, run)
            return settled
        _tell(step, step.what, "started", say, run)
        reopen(step.folder)
        began = time.monotonic()
        result = step.kind.make(context)
        seconds = round(time.monotonic() - began, 1)
        finish(step.folder, {**step.to_json(result), "seconds": seconds})
        if run is not None:
            note(run, event="done", step=step.name, fingerprint=step.fingerprint)
    return step.result()


def _settled(step: Step, again: Callable[[Result], bool]) -> Result | None:
    if not step.is_done:
        return None
    result = step.result()
    return None if again(result) else result


def _tell(step: Step, words: str, event: str | None, say: Say, run: Path | None) -> None:
    say(f"{step.name} {step.fingerprint}: {words}")
    if run is not None and event is not None:
        note(run, event=event, step=step.name, fingerprint=step.fingerprint)


def done_again(steps: Iterable[Step], storage: Storage) -> list[str]:
    """One line for each kind of step that has finished steps in the storage which a newer version cannot take over, with the reason."""
    kinds: dict[str, StepKind[Any]] = {step.kind.name: step.kind for step in steps if not step.is_done and step.kind.raised}
    lines = []
    for name, kind in kinds.items():
        folders = storage.steps_of(name)
        former = [said for folder in folders if (said := done(folder)) and (said.get("version") or kind.unversioned) < kind.version]
        if former:
            count = f"{len(former)} finished step{'s are' if len(former) > 1 else ' is'}"
            lines.append(f"{name}: {count} of an older version and will be done again: {kind.raised}")
    return lines

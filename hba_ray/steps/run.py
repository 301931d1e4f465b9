"""Does a step: the only place that claims one, does it, stores how long it took and marks it as finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from hba_ray.cluster.machine import gpus as gpus_here
from hba_ray.cluster.prices import rate_of
from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.steps.away import do_away, goes_away
from hba_ray.steps.base import Context, Result, Step, StepKind
from hba_ray.steps.needs.model import Rows, expected_rows
from hba_ray.store.finished import FILES, MADE_FROM, list_files
from hba_ray.store.folders import LOCK_SECONDS, Storage, claimed, clear, done, finish, note, reopen
from hba_ray.store.spending import Rate, on_record

Say = Callable[[str], None]
WORK = "work"
"""Key of `done.json`: the operations that the step took, and a name for what it took them on."""


def do_step(
    context: Context,
    say: Say,
    *,
    run: Path | None = None,
    again: Callable[[Result], bool] = lambda result: False,
    begun: Callable[[], None] = lambda: None,
) -> Result:
    """Does a step unless it is done already; where another process is doing it, waits for that one.

    A step that was made from steps which hold something else by now is done again, from its beginning.

    Args:
        say: takes a line for people.
        run: folder of the run whose ledger is told.
        again: whether a step that is done has to be done again, from what it says of itself.
        begun: called where this process holds the step and begins to do it.

    Returns:
        What the step says of itself, whoever did it.

    Raises:
        HbaError: what the step could not do.
        DataError: it is finished, and a file that it made is not what it was; so are those of a step that it reads.
        EnvironmentMissing: another process holds the step for hours, or its folder cannot be written to.
    """
    step = context.step
    if settled := _settled(step, again):
        _tell(step, "done before", "reused", say, run)
        return settled
    if goes_away(context):
        return _done_away(context, say, run)
    with claimed(step.folder, wait_seconds=LOCK_SECONDS) as check_held:
        if settled := _settled(step, again):  # by the process that held the lock
            _tell(step, "done by another run", None, say, run)
            return settled
        if outdated := step.outdated_by():
            say(f"{step.name}: is done again, since it was made from another {' and '.join(outdated)}")
            clear(step.folder)
        _tell(step, step.what + (f"; was interrupted at {at}" if (at := step.progress) else ""), None, say, run)
        with _recorded(step, run):
            begun()
            reopen(step.folder)
            began = time.monotonic()
            result = step.kind.make(context)
            seconds = round(time.monotonic() - began, 1)
            check_held()
            finish(step.folder, {**step.to_json(result), "seconds": seconds, **measured(context), **_known(context)})
    return step.result()


def _done_away(context: Context, say: Say, run: Path | None) -> Result:
    """Has a step done on a node. What it costs counts from when its process begins to work there."""
    step = context.step
    with ExitStack() as stack:
        records = [_recorded(step, run)]

        def begun() -> None:
            if records:  # the first of its processes begins
                stack.enter_context(records.pop())

        do_away(context, say, run=step.name if run is None else run.name, again=step.is_done, begun=begun)
    return step.result()


def _recorded(step: Step, run: Path | None) -> AbstractContextManager[None]:
    """Tells a run's ledger, where there is one, that a step is done for the time of the block, and what it holds."""
    if run is None:
        return nullcontext()
    rate = rate_of(step.spec.compute) if step.spec is not None and step.holds_workers else Rate()
    return on_record(run, rate, step=step.name, fingerprint=step.fingerprint)


def measured(context: Context) -> dict[str, Any]:
    """What a step with a model has done, by which later plans know how fast such steps are: `work` of its `done.json`."""
    work = context.step.kind.work(context.step, rows_of(context.spec, context.earlier.get("atlas")))
    return {} if work is None or not work.is_known else {WORK: {"setting": setting_of(context.spec), "operations": work.operations}}


def rows_of(spec: ExperimentSpec, atlas: Step | None) -> Rows:
    """The rows of an experiment: those that its atlas step has found or, before it is done, those that are expected.

    Args:
        atlas: the atlas step; None where there is none.
    """
    if atlas is None or not atlas.is_done:
        return expected_rows(spec)
    counts: dict[str, dict[str, int]] = atlas.kind.said(atlas.folder).counts
    found = {name: (splits.get("train", 0), splits.get("validation", 0), splits.get("test", 0)) for name, splits in counts.items()}
    return Rows(found, "what the atlas step found")


def setting_of(spec: ExperimentSpec) -> str:
    """A name for the model and the processors that a spec trains or samples with: rates of one tell nothing of another."""
    model, compute = spec.model, spec.compute
    named = model.tiny.identity() if model.backbone == "tiny" else model.small.identity() if model.backbone == "small" else {}
    gpus = sorted({gpu.name for gpu in gpus_here()}) if compute.gpus_per_worker else ["CPU"]
    return fingerprint(
        [model.backbone, named, model.train, spec.precision, gpus, max(1, compute.workers), compute.threads, compute.gpus_per_worker]
    )


def _known(context: Context) -> dict[str, Any]:
    """What the step's `done.json` says of its files, and of the steps that it has read."""
    files = list_files(context.folder, without=context.step.kind.working, memory=context.storage.folder)
    sources = {context.earlier[name].folder.name: context.earlier[name].state() for name in sorted(context.read)}
    return {FILES: files, MADE_FROM: sources}


def undo(trials: Iterable[Sequence[Step]], names: Sequence[str], say: Say) -> None:
    """Removes what steps have made, so that the next run does them again.

    Steps that were made from them are done again by that run where their content changes. Of steps behind them that are half
    done, or that a former version of hba_ray finished, nobody knows what they read: those are removed too.

    Args:
        trials: the steps of each experiment, in order.
        names: of steps, or their fingerprints.

    Raises:
        SpecError: no step has such a name.
        EnvironmentMissing: another process holds a step for hours.
    """
    chosen = [list(steps) for steps in trials]
    known = dict.fromkeys(step.name for steps in chosen for step in steps)
    for name in names:
        if not any(name in (step.name, step.fingerprint) for steps in chosen for step in steps):
            raise SpecError("--redo", f"there is no step '{name}'", f"steps: {', '.join(known)}")
    removed: set[Path] = set()
    for steps in chosen:
        named = [place for place, step in enumerate(steps) if step.name in names or step.fingerprint in names]
        for place, step in enumerate(steps):
            if place in named or (named and place > named[0] and _may_have_read(step)):
                if step.folder not in removed and step.folder.is_dir():
                    with claimed(step.folder, wait_seconds=LOCK_SECONDS):
                        clear(step.folder)
                    say(f"{step.name} {step.fingerprint}: removed, to be done again")
                removed.add(step.folder)


def _may_have_read(step: Step) -> bool:
    """Whether a step may rest on an earlier one without saying so: it is half done, or of a former version."""
    said = done(step.folder)
    return said is None or MADE_FROM not in said


def _settled(step: Step, again: Callable[[Result], bool]) -> Result | None:
    if not step.is_done:
        return None
    result = step.result()
    return None if again(result) else result


def _version(said: Mapping[str, Any], kind: StepKind[Any]) -> int:
    version = said.get("version")
    return version if isinstance(version, int) else kind.unversioned


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
        former = [said for folder in folders if (said := done(folder)) is not None and _version(said, kind) < kind.version]
        if former:
            count = f"{len(former)} finished step{'s are' if len(former) > 1 else ' is'}"
            lines.append(f"{name}: {count} of an older version and will be done again: {kind.raised}")
    return lines

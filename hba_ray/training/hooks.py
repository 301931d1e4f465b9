"""The hooks of the training loop: a log of every step, checkpoints from which training goes on, and early stopping.

A worker on Ray and one in this process differ only in where checkpoints are kept: `CheckpointStore` says what both offer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.specs import ComputeSpec
from hba_ray.store.files import file_digests
from hba_ray.store.finished import keep
from hba_ray.store.folders import append_line, copy_folder, keep_lines, read_object
from hba_ray.training.loop import Hook, Run, State, fit, gather_drops

_STATE, _LAYOUT, _ENGINE, _BEST, _TAG = "state.json", "layout.json", "engine", "best", "engine"
_DIGESTS = "digests-{rank}.json"
"""File of a checkpoint with the digests of all that a rank has written."""
RAY_RUN = "train"
"""Name under which Ray Train keeps checkpoints in the folder of a run, and finds them when the driver is started again."""
_START_OVER = "delete the step's folder to train from the start"


class CheckpointStore(Protocol):
    """Where checkpoints are kept."""

    def latest(self) -> Path | None:
        """The folder of the newest complete checkpoint, which stays readable while this process lives; None if there is none."""

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        """Keeps the content of this worker's folder as part of the next checkpoint; the folder may be deleted afterwards."""


@dataclass
class StepLog(Hook):
    """Writes one JSON line a step and one an epoch, on rank 0.

    Lines of steps after the checkpoint that training goes on from are removed, since those steps are done again.

    Attributes:
        every: steps between lines.
    """

    path: Path
    every: int = 1

    def start(self, step: int, epoch: int) -> None:
        """Removes the lines of steps and epochs after those with which training now starts."""
        keep_lines(self.path, lambda facts: _before(facts, step, epoch))

    def after_step(self, run: Run, metrics: dict[str, float]) -> None:
        if run.rank == 0 and run.state.step % self.every == 0:
            where = {"step": run.state.step, "epoch": run.state.epoch}
            append_line(self.path, {**where, **metrics, **_gpu_peak()}, durable=False)

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        if run.rank == 0:
            facts = {"step": run.state.step, "epochs_done": run.state.epoch, "improved": run.improved, **metrics}
            append_line(self.path, facts, durable=False)


def _gpu_peak() -> dict[str, float]:
    """The most GiB that tensors of this process have held on its GPU; empty on a CPU."""
    import torch

    return {"gpu_peak_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


def _before(facts: Mapping[str, Any], step: int, epoch: int) -> bool:
    return facts["epochs_done"] <= epoch if "epochs_done" in facts else facts["step"] <= step


@dataclass
class StopWhenFlat(Hook):
    """Ends training after `patience` epochs without a lower validation loss."""

    patience: int

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        run.should_stop = run.should_stop or run.state.flat_epochs >= self.patience


@dataclass
class Checkpoints(Hook):
    """Saves and restores where training stands.

    A checkpoint holds DeepSpeed's engine, the loop's state and the model of the best epoch so far: all that a new set of
    workers needs.

    Attributes:
        save_best: writes the model into a folder; is called on all ranks and writes on rank 0.
        scratch: an empty folder of this process, for the best model so far.
        layout: settings of `compute` on which the files of a checkpoint, or its place in an epoch, depend.
        every: optimiser steps between checkpoints inside an epoch; None saves at the end of epochs only.
        other: a checkpoint of an earlier attempt that is not in the store, since that one ran on Ray and this one does not, or the
            other way round. Training goes on from the newer of the two.
    """

    store: CheckpointStore
    save_best: Callable[[Path, State], None]
    scratch: Path
    layout: Mapping[str, int]
    every: int | None = None
    other: Path | None = None

    @property
    def _best(self) -> Path:
        return self.scratch / _BEST

    def restore(self, run: Run) -> None:
        """Puts engine and state back to the newest checkpoint, if there is one.

        A place inside an epoch is counted in micro-batches. A checkpoint is written between two steps, whose rows do not depend
        on the size of a micro-batch, so the place is the same number of rows whatever that size is now.

        Raises:
            CheckpointError: it is damaged, or was written with other settings of `compute`.
        """
        folder = newest((self.store.latest(), self.other))
        if folder is None:
            return
        state, before = state_of(folder), _read_json(folder, _LAYOUT)
        _check_engine(folder)
        _check_digests(folder, run.rank)
        self._check_layout(folder, before)
        state.micro_batch = state.micro_batch * before["micro_batch"] // self.layout["micro_batch"]
        path, _ = run.engine.load_checkpoint(str(folder / _ENGINE), tag=_TAG, load_module_strict=False)
        if path is None:
            raise CheckpointError(str(folder), "cannot be read by DeepSpeed", _START_OVER)
        run.state = state
        if (folder / _BEST).is_dir() and run.rank == 0:
            copy_folder(folder / _BEST, self._best)

    def _check_layout(self, folder: Path, before: Mapping[str, Any]) -> None:
        """Refuses a checkpoint of another number of workers or ZeRO stage, whose shards would not fit."""
        if damaged := [name for name in self.layout if not isinstance(before.get(name), int)]:
            raise CheckpointError(str(folder / _LAYOUT), f"is damaged: it does not say compute.{damaged[0]}", _START_OVER)
        other = [name for name in ("workers", "zero") if before[name] != self.layout[name]]
        if other:
            written = ", ".join(f"compute.{name}={before[name]}, and is now {self.layout[name]}" for name in other)
            raise CheckpointError(str(folder), f"was written with {written}", f"run with that again, or {_START_OVER}")

    def after_step(self, run: Run, metrics: dict[str, float]) -> None:
        ends_epoch = run.state.micro_batch == run.feed.micro_batches_per_epoch
        if self.every and run.state.step % self.every == 0 and not ends_epoch:
            self._save(run, metrics)

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        if run.improved:
            self.save_best(self._best, run.state)
        self._save(run, metrics)

    def _save(self, run: Run, metrics: dict[str, float]) -> None:
        run.state.drops = gather_drops(run.state.drops)
        with _scratch() as folder:
            with written(folder):
                run.engine.save_checkpoint(str(folder / _ENGINE), tag=_TAG, exclude_frozen_parameters=True)
            if run.rank == 0:
                (folder / _STATE).write_text(json.dumps(run.state.to_json()))
                (folder / _LAYOUT).write_text(json.dumps(dict(self.layout)))
                if self._best.is_dir():
                    copy_folder(self._best, folder / _BEST)
            (folder / _DIGESTS.format(rank=run.rank)).write_text(json.dumps(_digests(folder, sorted(_files(folder)))))
            self.store.save(folder, {"step": float(run.state.step), "epoch": float(run.state.epoch), **metrics})


def fit_from_newest(
    run: Run,
    store: CheckpointStore,
    save_best: Callable[[Path, State], None],
    log: Path,
    compute: ComputeSpec,
    *,
    world: int = 1,
    other: Path | None = None,
    hooks: Sequence[Hook] = (),
) -> State:
    """Trains from the newest checkpoint, or from the start, to the end, with a log of every step; the engine is destroyed then.

    Args:
        save_best, other: see `Checkpoints`.
        log: file of the step log.
        world: number of workers.
        hooks: besides log and checkpoints.

    Raises:
        DataError, TrainingError: as `loop.fit` raises them.
        CheckpointError: the newest checkpoint is damaged, or of other settings of `compute`.
    """
    layout = {"workers": world, "zero": compute.zero, "micro_batch": compute.micro_batch}
    with tempfile.TemporaryDirectory(prefix="hba-best-") as scratch:
        checkpoints = Checkpoints(store, save_best, Path(scratch), layout, compute.checkpoint_every, other)
        steps = StepLog(log)
        run.hooks = [steps, *hooks, checkpoints]
        checkpoints.restore(run)
        if run.rank == 0:
            steps.start(run.state.step, run.state.epoch)
        state = fit(run)
    run.engine.destroy()
    return state


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hba-checkpoint-") as folder:
        yield Path(folder)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Turns a failed write into an error that names the folder: torch's own says neither which file nor why.

    Raises:
        EnvironmentMissing: a file could not be written.
    """
    try:
        yield
    except RuntimeError as cause:
        if "inline_container" not in str(cause) and "PytorchStreamWriter" not in str(cause):
            raise
        way_out = "make room there, or name a larger folder by the variable TMPDIR"
        raise EnvironmentMissing(str(folder), f"a checkpoint cannot be written: {str(cause).splitlines()[0]}", way_out) from cause


def newest(checkpoints: Iterable[Path | None]) -> Path | None:
    """The checkpoint of the furthest step among these; None where there is none.

    Raises:
        CheckpointError: one of them is damaged.
    """
    return max((folder for folder in checkpoints if folder), key=lambda folder: _place(state_of(folder)), default=None)


def _place(state: State) -> tuple[int, int]:
    return state.step, state.epoch


def best_of(checkpoint: Path) -> tuple[Path, State]:
    """The folder of the best model, and the final state, in the last checkpoint of a finished stage.

    Raises:
        CheckpointError: the checkpoint is damaged or holds no model.
    """
    if not (checkpoint / _BEST).is_dir():
        raise CheckpointError(str(checkpoint), "holds no model", _START_OVER)
    _check_digests(checkpoint, 0)
    return checkpoint / _BEST, state_of(checkpoint)


def state_of(checkpoint: Path) -> State:
    """Where training stood when a checkpoint was written.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    facts = _read_json(checkpoint, _STATE)
    try:
        return State.from_json(facts)
    except (TypeError, KeyError) as cause:
        raise CheckpointError(str(checkpoint / _STATE), f"is no state of training: {cause}", _START_OVER) from None


def _read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    file = checkpoint / name
    if not file.is_file():
        raise CheckpointError(str(checkpoint), f"is not a complete checkpoint: it holds no {name}", _START_OVER)
    try:
        return read_object(file)
    except ValueError as cause:
        raise CheckpointError(str(file), f"is damaged: {cause}", _START_OVER) from None


def _check_engine(checkpoint: Path) -> None:
    """Refuses an engine whose files were cut off: torch's archives have their table of contents at the end.

    Raises:
        CheckpointError: a file is missing or cut off.
    """
    files = sorted((checkpoint / _ENGINE / _TAG).glob("*.pt"))
    if not files:
        raise CheckpointError(str(checkpoint), "is not a complete checkpoint: it holds no engine", _START_OVER)
    for file in files:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(str(file), "is damaged: it was cut off", _START_OVER)


def _files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, file_digests([folder / name for name in names]), strict=True))


def _check_digests(checkpoint: Path, rank: int) -> None:
    """Refuses a checkpoint in which a file of this rank is gone or holds other bytes than were written; a former version wrote no digests.

    Raises:
        CheckpointError: names the file.
    """
    if not (checkpoint / _DIGESTS.format(rank=rank)).exists():
        return
    known = _read_json(checkpoint, _DIGESTS.format(rank=rank))
    there = [name for name in known if (checkpoint / name).is_file()]
    found = _digests(checkpoint, there)
    for name, digest in known.items():
        if found.get(name) != digest:
            what = "holds other bytes than were written" if name in found else "is gone"
            raise CheckpointError(str(checkpoint / name), what, _START_OVER)


def in_folder(folder: Path) -> FolderCheckpointStore:
    """Where a stage keeps checkpoints in its own folder."""
    return FolderCheckpointStore(folder / "checkpoint")


@dataclass
class FolderCheckpointStore:
    """Keeps a stage's newest checkpoint in one folder, and replaces it as a whole."""

    folder: Path

    def latest(self) -> Path | None:
        if not self.folder.exists() and self._former.exists():  # cut off between the two renames of `save`
            os.replace(self._former, self.folder)
        return self.folder if self.folder.exists() else None

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        self.put(folder)
        keep(self.folder.parent)

    def put(self, folder: Path) -> None:
        """Keeps the content of a folder here; a bucket gets it from the process that leads the run."""
        draft = self.folder.with_name(self.folder.name + ".draft")
        for leftover in (draft, self._former):
            shutil.rmtree(leftover, ignore_errors=True)
        copy_folder(folder, draft)
        if self.folder.exists():
            os.replace(self.folder, self._former)
        os.replace(draft, self.folder)
        shutil.rmtree(self._former, ignore_errors=True)

    @property
    def _former(self) -> Path:
        return self.folder.with_name(self.folder.name + ".former")

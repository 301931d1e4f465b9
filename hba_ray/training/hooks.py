"""The loop's extras: a log of every step, checkpoints to go on from, and an early end.

Where checkpoints are kept is the only thing that differs between a Ray worker and this process:
`Store` says what both offer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.store.folders import copy_folder, read_lines, write_text
from hba_ray.training.loop import Hook, Run, State, gather_drops

_STATE, _LAYOUT, _ENGINE, _BEST, _TAG = "state.json", "layout.json", "engine", "best", "engine"
_START_OVER = "delete the step's folder to train from the start"


class Store(Protocol):
    """Where checkpoints are kept."""

    def latest(self) -> Path | None:
        """Folder of the newest complete checkpoint, readable for as long as the process lives."""

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        """Keep the folder, which every worker has filled with its share; it may be deleted afterwards."""


@dataclass
class StepLog(Hook):
    """Writes one JSON line a step; rank 0 only. Lines after the checkpoint that a run resumes from are taken back."""

    path: Path
    every: int = 1

    def start(self, step: int, epoch: int) -> None:
        """Keeps only the lines that come before where training now starts."""
        if self.path.exists():
            kept = [facts for facts in read_lines(self.path) if _before(facts, step, epoch)]
            write_text(self.path, "".join(json.dumps(facts) + "\n" for facts in kept))

    def after_step(self, run: Run, metrics: dict[str, float]) -> None:
        if run.rank == 0 and run.state.step % self.every == 0:
            where = {"step": run.state.step, "epoch": run.state.epoch, "lr": run.engine.get_lr()[0]}
            self._write({**where, **metrics, **_gpu_peak()})

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        if run.rank == 0:
            self._write({"step": run.state.step, "epochs_done": run.state.epoch, "improved": run.improved, **metrics})

    def _write(self, facts: dict[str, float | int | bool]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")


def _gpu_peak() -> dict[str, float]:
    """GiB that tensors of this process held on its GPU at most so far; nothing on a CPU."""
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
    """Saves where training stands, and the best model so far with it; restores both.

    A checkpoint holds DeepSpeed's engine, the loop's state and the model of the best epoch, so that
    it is all that a new set of workers needs.

    Attributes:
        save_best: writes the model into a folder; called on all ranks, writes on rank 0.
        scratch: an empty folder of this process, for the best model so far.
        layout: settings of `compute` that the checkpoint's files and its place in an epoch depend on.
        every: optimiser steps between checkpoints inside an epoch; None is at epoch ends only.
    """

    store: Store
    save_best: Callable[[Path, State], None]
    scratch: Path
    layout: Mapping[str, int]
    every: int | None = None

    @property
    def _best(self) -> Path:
        return self.scratch / _BEST

    def restore(self, run: Run) -> None:
        """Puts the engine and the state back to the newest checkpoint, if there is one."""
        folder = self.store.latest()
        if folder is None:
            return
        state = _state_of(folder)
        _check_engine(folder)
        self._check_layout(folder, state)
        path, _ = run.engine.load_checkpoint(str(folder / _ENGINE), tag=_TAG, load_module_strict=False)
        if path is None:
            raise CheckpointError(str(folder), "cannot be read by DeepSpeed", _START_OVER)
        run.state = state
        if (folder / _BEST).is_dir() and run.rank == 0:
            copy_folder(folder / _BEST, self._best)

    def _check_layout(self, folder: Path, state: State) -> None:
        """Between epochs the size of a micro-batch may change; shards and places inside an epoch would not fit."""
        before = _read_json(folder, _LAYOUT)
        other = [name for name, value in before.items() if self.layout[name] != value and (name != "micro_batch" or state.micro_batch)]
        if other:
            written = ", ".join(f"compute.{name}={before[name]}" for name in other)
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
            self.store.save(folder, {"step": float(run.state.step), "epoch": float(run.state.epoch), **metrics})


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hba-checkpoint-") as folder:
        yield Path(folder)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Names the folder where torch's writer, which keeps the system's reason to itself, could not write into it."""
    try:
        yield
    except RuntimeError as cause:
        if "inline_container" not in str(cause) and "PytorchStreamWriter" not in str(cause):
            raise
        way_out = "make room there, or name a larger folder by the variable TMPDIR"
        raise EnvironmentMissing(str(folder), f"a checkpoint cannot be written: {str(cause).splitlines()[0]}", way_out) from cause


def best_of(checkpoint: Path) -> tuple[Path, State]:
    """The best model and the final state that a finished stage's last checkpoint holds."""
    if not (checkpoint / _BEST).is_dir():
        raise CheckpointError(str(checkpoint), "holds no model", _START_OVER)
    return checkpoint / _BEST, _state_of(checkpoint)


def _state_of(checkpoint: Path) -> State:
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
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as cause:
        raise CheckpointError(str(file), f"is damaged: {cause}", _START_OVER) from None
    return facts


def _check_engine(checkpoint: Path) -> None:
    """Refuses files that were cut off: torch's archives have their table of contents at the end."""
    files = sorted((checkpoint / _ENGINE / _TAG).glob("*.pt"))
    if not files:
        raise CheckpointError(str(checkpoint), "is not a complete checkpoint: it holds no engine", _START_OVER)
    for file in files:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(str(file), "is damaged: it was cut off", _START_OVER)


@dataclass
class FolderStore:
    """Checkpoints of a run without Ray: the newest one, replaced whole."""

    folder: Path

    def latest(self) -> Path | None:
        if not self.folder.exists() and self._former.exists():  # cut off between the two renames of `save`
            os.replace(self._former, self.folder)
        return self.folder if self.folder.exists() else None

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
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

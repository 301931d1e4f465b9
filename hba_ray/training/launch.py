"""Starts supervised stages, on Ray Train workers fed by Ray Data (on_ray.py) or in this process.

Either way a stage that is started again goes on from the last checkpoint in its folder, whichever way it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hba_ray.data.feed.batches import BatchMaker, MicroBatch
from hba_ray.data.feed.order import Window
from hba_ray.data.feed.stream import make_here
from hba_ray.errors import TrainingError
from hba_ray.models.tensors import new_folder
from hba_ray.store.folders import copy_folder
from hba_ray.training.hooks import RAY_RUN, best_of, in_folder, newest, state_of
from hba_ray.training.job import Stage, StageJob
from hba_ray.training.loop import State


@dataclass(frozen=True)
class TrainedStage:
    """What a finished stage leaves.

    Attributes:
        model: folder of the best epoch's model.
        state: how training ended.
    """

    model: Path
    state: State


def left_in(folder: Path, run: Path) -> tuple[Path | None, Path | None]:
    """The newest checkpoint of a stage in its folder, and the newest that Ray Train keeps of it; None where there is none.

    Args:
        run: folder of the run of Ray Train that the stage is of; see `launch_stages`.

    Raises:
        CheckpointError: Ray Train's list of checkpoints is damaged.
    """
    on_ray = None
    if (run / RAY_RUN).is_dir():
        from hba_ray.training.on_ray import last_committed

        on_ray = last_committed(folder, run)
    return in_folder(folder).latest(), on_ray


def state_in(folder: Path, run: Path | None = None) -> State | None:
    """Where training goes on in the folder of a stage; None where it starts.

    Args:
        run: see `left_in`; by default the stage has one of its own.

    Raises:
        CheckpointError: a checkpoint is damaged.
    """
    checkpoint = newest(left_in(folder, run or folder))
    return None if checkpoint is None else state_of(checkpoint)


def launch_stage(job: StageJob, folder: Path) -> TrainedStage:
    """Runs a stage that has a run of its own to its end; see `launch_stages`."""
    launch_stages([(job, folder)], folder)
    return left_by(folder, folder)


def launch_stages(stages: Sequence[Stage], run: Path) -> None:
    """Runs stages to their ends, each from where an earlier attempt in its folder stopped, whether that one ran on Ray or without.

    Those with the same number of workers run in the same processes, one after the other, so what their jobs share stays loaded.

    Args:
        run: folder in which Ray Train keeps the checkpoints of the stage at which it is: that of the only one, or one that holds theirs.

    Raises:
        DataError, TrainingError, CheckpointError: as the job raises them, on whichever worker.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    groups: dict[int, list[Stage]] = {}
    for job, folder in stages:
        folder.mkdir(parents=True, exist_ok=True)
        here, on_ray = left_in(folder, run)
        checkpoint, workers = newest((here, on_ray)), job.spec.compute.workers
        if checkpoint is None or not state_of(checkpoint).finished:
            other = here if workers else on_ray
            groups.setdefault(workers, []).append((replace(job, checkpoint=None if other is None else str(other)), folder))
    for workers, group in groups.items():
        train = _train_on_ray if workers else _train_here
        train(group, run)


def left_by(folder: Path, run: Path) -> TrainedStage:
    """What a stage leaves that is at its end; its best model is copied into its folder.

    Args:
        run: as for `launch_stages`.

    Raises:
        TrainingError: there is no checkpoint of it.
        CheckpointError: its last checkpoint is damaged, or no model was ever the best.
    """
    checkpoint = newest(left_in(folder, run))
    if checkpoint is None:
        raise TrainingError(str(folder), "training ended without a checkpoint", "delete the folder to train from the start")
    best, state = best_of(checkpoint)
    model = folder / "model"
    with new_folder(model) as draft:
        copy_folder(best, draft)
    return TrainedStage(model, state)


def _train_here(stages: Sequence[Stage], run: Path) -> None:
    import torch

    from hba_ray.models.backbone import load_processor

    for job, folder in stages:
        torch.set_num_threads(job.spec.compute.threads)
        make_batches = partial(_make_here, job, load_processor(job.backbone))
        job.train(make_batches, in_folder(folder))


def _make_here(job: StageJob, processor: Any, split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
    return make_here(BatchMaker(job.index, job.settings_for(split), processor, split), windows)


def _train_on_ray(stages: Sequence[Stage], run: Path) -> None:
    from hba_ray.training.on_ray import train_on_ray

    train_on_ray(stages, run)

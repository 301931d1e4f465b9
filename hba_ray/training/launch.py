"""Starts a supervised stage, on Ray Train workers fed by Ray Data (on_ray.py) or in this process.

Either way a stage that is started again goes on from the last checkpoint in the step's folder, whichever way it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hba_ray.data.feed.batches import BatchMaker, MicroBatch
from hba_ray.data.feed.order import Window
from hba_ray.data.feed.stream import make_here
from hba_ray.models.checkpoints import new_folder
from hba_ray.store.folders import copy_folder
from hba_ray.training.hooks import RAY_RUN, FolderCheckpointStore, best_of, newest, state_of
from hba_ray.training.job import StageJob
from hba_ray.training.loop import State

_CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class TrainedStage:
    """What a finished stage leaves.

    Attributes:
        model: folder of the best epoch's model.
        state: how training ended.
    """

    model: Path
    state: State


def left_in(folder: Path) -> tuple[Path | None, Path | None]:
    """The newest checkpoint that earlier attempts have left in the folder of a stage without Ray, and the newest that they have
    left on Ray; None where there is none.

    Raises:
        CheckpointError: Ray Train's list of checkpoints is damaged.
    """
    on_ray = None
    if (folder / RAY_RUN).is_dir():
        from hba_ray.training.on_ray import last_committed

        on_ray = last_committed(folder)
    return FolderCheckpointStore(folder / _CHECKPOINT).latest(), on_ray


def state_in(folder: Path) -> State | None:
    """Where training goes on in the folder of a stage; None where it starts.

    Raises:
        CheckpointError: a checkpoint is damaged.
    """
    checkpoint = newest(left_in(folder))
    return None if checkpoint is None else state_of(checkpoint)


def launch_stage(job: StageJob, folder: Path) -> TrainedStage:
    """Runs a stage to its end, from where an earlier attempt in `folder` stopped, whether that one ran on Ray or without.

    Raises:
        DataError, TrainingError, CheckpointError: as the job raises them, on whichever worker.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here, on_ray = left_in(folder)
    checkpoint = newest((here, on_ray))
    if checkpoint is None or not state_of(checkpoint).finished:
        other = here if job.spec.compute.workers else on_ray
        train = _train_on_ray if job.spec.compute.workers else _train_here
        checkpoint = train(replace(job, checkpoint=None if other is None else str(other)), folder)
    best, state = best_of(checkpoint)
    model = folder / "model"
    with new_folder(model) as draft:
        copy_folder(best, draft)
    return TrainedStage(model, state)


def _train_here(job: StageJob, folder: Path) -> Path:
    import torch

    from hba_ray.models.backbone import load_processor

    torch.set_num_threads(job.spec.compute.threads)
    processor = load_processor(job.backbone)

    def make_batches(split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
        return make_here(BatchMaker(job.index, job.settings_for(split), processor, split), windows)

    job.train(make_batches, FolderCheckpointStore(folder / _CHECKPOINT))
    return folder / _CHECKPOINT


def _train_on_ray(job: StageJob, folder: Path) -> Path:
    from hba_ray.training.on_ray import train_on_ray

    return train_on_ray(job, folder)

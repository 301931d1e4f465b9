"""Starts a supervised stage: on Ray Train workers fed by Ray Data, or in this process.

Lost workers are replaced and go on from the last committed checkpoint; a driver that is started again
finds the checkpoints of its predecessor by the step's folder.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hba_ray.data.batches import BatchMaker, MicroBatch
from hba_ray.data.stream import make_here, make_on_ray
from hba_ray.data.windows import Window
from hba_ray.errors import EnvironmentMissing, HbaError, TrainingError
from hba_ray.training.hooks import FolderStore, best_of
from hba_ray.training.loop import State
from hba_ray.training.sft import SftJob, train_sft

_CHECKPOINT, _RAY_RUN, _FATAL = "checkpoint", "train", "fatal.pickle"


@dataclass(frozen=True)
class Trained:
    """A finished stage.

    Attributes:
        model: folder of the best epoch's model.
        state: how training ended.
    """

    model: Path
    state: State


def launch_sft(job: SftJob, folder: Path) -> Trained:
    """Runs a stage to its end, from where an earlier attempt in `folder` stopped.

    Raises:
        DataError, TrainingError: as the worker met it, wherever the worker was.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _train_here(job, folder) if job.spec.compute.workers == 0 else _train_on_ray(job, folder)
    best, state = best_of(checkpoint)
    model = folder / "model"
    draft = folder / "model.draft"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(best, draft)
    shutil.rmtree(model, ignore_errors=True)
    os.replace(draft, model)
    return Trained(model, state)


def _train_here(job: SftJob, folder: Path) -> Path:
    import torch

    from hba_ray.models.backbone import load_processor

    torch.set_num_threads(1)
    processor = load_processor(job.backbone)

    def make(split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
        return make_here(BatchMaker(job.index, job.settings_for(split), processor, split), windows)

    train_sft(job, make, FolderStore(folder / _CHECKPOINT))
    return folder / _CHECKPOINT


def _train_on_ray(job: SftJob, folder: Path) -> Path:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = job.spec.compute
    fatal = folder / _FATAL
    fatal.unlink(missing_ok=True)
    resources = {"CPU": compute.cpus_per_worker, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": pickle.dumps(job), "fatal": str(fatal)},
        torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_RAY_RUN,
            storage_path=str(folder.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as cause:
        _raise_fatal(fatal)
        reason = str(cause).strip().splitlines()[-1]
        logs = "the workers' logs are in the run's logs folder; run the same command to go on from the last checkpoint"
        raise EnvironmentMissing(str(folder), f"training was given up after {compute.max_failures} failures: {reason}", logs) from cause
    _raise_fatal(fatal)
    if result.checkpoint is None:
        raise TrainingError(str(folder), "training ended without a checkpoint", "delete the folder to train from the start")
    return Path(result.checkpoint.path)


def _raise_fatal(fatal: Path) -> None:
    if fatal.exists():
        raise pickle.loads(fatal.read_bytes())


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs.

    An error that no other worker could do better with is written down rather than raised for good:
    the workers that replace this one see it and end at once, instead of failing again and again.
    """
    import ray.train
    import torch

    from hba_ray.models.backbone import load_processor

    fatal = Path(config["fatal"])
    if fatal.exists():
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    context = ray.train.get_context()
    job: SftJob = pickle.loads(config["job"])
    compute = job.spec.compute

    def make(split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
        return make_on_ray(
            job.index,
            job.settings_for(split),
            split,
            partial(load_processor, job.backbone),
            windows,
            loaders=compute.loaders,
            cpus_per_loader=compute.cpus_per_loader,
            prefetch=compute.prefetch,
        )

    try:
        train_sft(job, make, _RayStore(), rank=context.get_world_rank(), world=context.get_world_size())
    except HbaError as error:
        draft = fatal.with_suffix(f".{context.get_world_rank()}")
        draft.write_bytes(pickle.dumps(error))
        os.replace(draft, fatal)
        if context.get_world_size() > 1:
            raise


class _RayStore:
    """Checkpoints in Ray Train's storage."""

    def latest(self) -> Path | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.to_directory())

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        import ray.train

        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))

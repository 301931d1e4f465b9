"""Supervised stages, one after the other, on Ray Train workers, each fed by its own Ray Data pipeline.

Lost workers are replaced and go on from the last committed checkpoint. Errors that new workers would meet again end
training at once: one of `hba_ray.errors`, a mistake in the code, a GPU that is too small.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import RayTrainError  # pyright: ignore[reportPrivateImportUsage]

from hba_ray.cluster.failures import as_final
from hba_ray.data.feed.batches import MicroBatch
from hba_ray.data.feed.order import Window
from hba_ray.data.feed.stream import loaders_here, make_on_ray
from hba_ray.errors import CheckpointError, EnvironmentMissing, HbaError
from hba_ray.store.finished import kept
from hba_ray.training.hooks import RAY_RUN, in_folder, state_of
from hba_ray.training.job import Stage, StageJob

_START_ATTEMPTS = 10
"""Times that workers may fail to start, or wait a minute for a free place; by default Ray would try for ever."""
_STAGE = "stage"
"""Key of a checkpoint's metadata that says which stage it is of."""
_COMMITTED = "checkpoint_manager_snapshot.json"
"""Ray Train's list of whole checkpoints; it is not there before the first one."""


def last_committed(folder: Path, run: Path) -> Path | None:
    """The newest whole checkpoint that Ray Train keeps, where it is that of a stage; otherwise None. It needs no running Ray.

    Args:
        folder: of the stage.
        run: folder of the run that trains it.

    Raises:
        CheckpointError: Ray Train's list of checkpoints is damaged, or names one that is gone.
    """
    kept_in = run / RAY_RUN
    if not (kept_in / _COMMITTED).exists():
        return None
    try:
        checkpoint = ray.train.Result.from_path(str(kept_in.resolve())).checkpoint
    except (RuntimeError, RayTrainError) as cause:
        reason, way_out = str(cause).strip().splitlines()[0], "delete the step's folder to train from the start"
        raise CheckpointError(str(kept_in / _COMMITTED), f"cannot be read by Ray Train: {reason}", way_out) from cause
    return Path(checkpoint.path) if checkpoint is not None and _is_of(checkpoint, _name(folder, run)) else None


def _name(folder: Path, run: Path) -> str:
    """What a stage's checkpoints are marked with: it stays the same where the folder of the run is moved."""
    return folder.relative_to(run).as_posix()


def _is_of(checkpoint: ray.train.Checkpoint, stage: str) -> bool:
    return checkpoint.get_metadata().get(_STAGE, stage) == stage  # a former version had one stage a run, and did not name it


def train_on_ray(stages: Sequence[Stage], run: Path) -> None:
    """Trains stages of the same `compute` to their ends.

    Args:
        run: folder in which Ray Train keeps checkpoints: that of the only stage, or one that holds those of the stages, into each of
            which its last checkpoint is copied.

    Raises:
        HbaError: as the worker met it.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    compute = stages[0][0].spec.compute
    resources = {"CPU": compute.cpus_per_worker, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}
    trainer = _Trainer(
        _worker,
        train_loop_config={"stages": pickle.dumps(stages), "run": str(run)},
        torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=RAY_RUN,
            storage_path=str(run.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures, controller_failure_limit=_START_ATTEMPTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[_NoRetry()],
        ),
    )
    try:
        with kept(run, run / RAY_RUN / _COMMITTED):
            trainer.fit()
    except ray.train.TrainingFailedError as cause:
        own = getattr(cause, "controller_failure", None)
        if isinstance(own, HbaError):
            raise own from None
        reason = str(cause).strip().splitlines()[-1]
        logs = "the workers' logs are in the run's logs folder; run the same command to go on from the last checkpoint"
        raise EnvironmentMissing(str(run), f"training was given up after {compute.max_failures} failures: {reason}", logs) from cause
    except ray.exceptions.RayError as cause:  # not a worker but the controller is gone: memory, or the node
        reason, way_out = str(cause).strip().splitlines()[0], "free some memory or use a larger node; the same command goes on from here"
        raise EnvironmentMissing(str(run), f"Ray lost the process that leads training: {reason}", way_out) from cause
    except KeyboardInterrupt:
        if trainer.controller is not None:
            ray.kill(trainer.controller)
        raise


class _Trainer(TorchTrainer):
    """A trainer that leaves Ctrl-C to Python. Ray Train's own handler exits with code 0, and stays in place after training."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller


class _NoRetry(ray.train.UserCallback):
    """Raises final errors of workers in the controller, which ends training at once."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for worker, error in worker_exceptions.items():
            final = as_final(error, f"worker {worker}")
            if final is not None:
                raise final


def _worker(config: dict[str, Any]) -> None:
    """Runs in each Ray Train worker."""
    import torch

    context, run = ray.train.get_context(), Path(config["run"])
    stages: list[Stage] = pickle.loads(config["stages"])  # at once, so that the jobs share what they shared
    for job, folder in stages:
        if _is_finished(folder):
            continue
        torch.set_num_threads(job.spec.compute.threads)
        store = _RayCheckpointStore(_name(folder, run))
        job.train(partial(_make_batches, job), store, rank=context.get_world_rank(), world=context.get_world_size())
        if folder != run and context.get_world_rank() == 0:  # before checkpoints of the next stage take its place
            _keep_last(folder)


def _is_finished(folder: Path) -> bool:
    """Whether workers that were lost had already come to the end of a stage."""
    checkpoint = in_folder(folder).latest()
    return checkpoint is not None and state_of(checkpoint).finished


def _keep_last(folder: Path) -> None:
    """Copies the last checkpoint of a stage into the stage's own folder."""
    reported = ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
    with reported[-1].checkpoint.as_directory() as last:
        in_folder(folder).put(Path(last))


def _make_batches(job: StageJob, split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
    from hba_ray.models.backbone import load_processor

    compute = job.spec.compute
    return make_on_ray(
        job.index,
        job.settings_for(split),
        split,
        partial(load_processor, job.backbone),
        windows,
        loaders=loaders_here(compute),
        cpus_per_loader=compute.cpus_per_loader,
        prefetch=compute.prefetch,
    )


@dataclass(frozen=True)
class _RayCheckpointStore:
    """Keeps the checkpoints of a stage in Ray Train's storage."""

    stage: str

    def latest(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None or not _is_of(checkpoint, self.stage) else Path(checkpoint.to_directory())

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        checkpoint.set_metadata({_STAGE: self.stage})
        ray.train.report(metrics, checkpoint=checkpoint)

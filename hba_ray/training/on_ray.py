"""A supervised stage on Ray Train workers, each fed by its own Ray Data pipeline.

Lost workers are replaced and go on from the last committed checkpoint. Errors that new workers would meet again end
training at once: one of `hba_ray.errors`, a mistake in the code, a GPU that is too small.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
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
from hba_ray.errors import CheckpointError, EnvironmentMissing, HbaError, TrainingError
from hba_ray.store.finished import kept
from hba_ray.training.hooks import RAY_RUN
from hba_ray.training.job import StageJob

_START_ATTEMPTS = 10
"""Times that workers may fail to start, or wait a minute for a free place; by default Ray would try for ever."""
_COMMITTED = "checkpoint_manager_snapshot.json"
"""Ray Train's list of whole checkpoints; it is not there before the first one."""


def last_committed(folder: Path) -> Path | None:
    """The newest whole checkpoint that Ray Train keeps in the folder of a stage; None where there is none. It needs no running Ray.

    Raises:
        CheckpointError: Ray Train's list of them is damaged, or names one that is gone.
    """
    run = folder / RAY_RUN
    if not (run / _COMMITTED).exists():
        return None
    try:
        checkpoint = ray.train.Result.from_path(str(run.resolve())).checkpoint
    except (RuntimeError, RayTrainError) as cause:
        reason, way_out = str(cause).strip().splitlines()[0], "delete the step's folder to train from the start"
        raise CheckpointError(str(run / _COMMITTED), f"cannot be read by Ray Train: {reason}", way_out) from cause
    return None if checkpoint is None else Path(checkpoint.path)


def train_on_ray(job: StageJob, folder: Path) -> Path:
    """Trains to the end, and returns the folder of the last checkpoint.

    Raises:
        HbaError: as the worker met it.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    compute = job.spec.compute
    resources = {"CPU": compute.cpus_per_worker, **({"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else {})}
    trainer = _Trainer(
        _worker,
        train_loop_config={"job": pickle.dumps(job)},
        torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=RAY_RUN,
            storage_path=str(folder.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures, controller_failure_limit=_START_ATTEMPTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[_NoRetry()],
        ),
    )
    try:
        with kept(folder, folder / RAY_RUN / _COMMITTED):
            result = trainer.fit()
    except ray.train.TrainingFailedError as cause:
        own = getattr(cause, "controller_failure", None)
        if isinstance(own, HbaError):
            raise own from None
        reason = str(cause).strip().splitlines()[-1]
        logs = "the workers' logs are in the run's logs folder; run the same command to go on from the last checkpoint"
        raise EnvironmentMissing(str(folder), f"training was given up after {compute.max_failures} failures: {reason}", logs) from cause
    except ray.exceptions.RayError as cause:  # not a worker but the controller is gone: memory, or the node
        reason, way_out = str(cause).strip().splitlines()[0], "free some memory or use a larger node; the same command goes on from here"
        raise EnvironmentMissing(str(folder), f"Ray lost the process that leads training: {reason}", way_out) from cause
    except KeyboardInterrupt:
        if trainer.controller is not None:
            ray.kill(trainer.controller)
        raise
    if result.checkpoint is None:
        raise TrainingError(str(folder), "training ended without a checkpoint", "delete the folder to train from the start")
    return Path(result.checkpoint.path)


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

    from hba_ray.models.backbone import load_processor

    context = ray.train.get_context()
    job: StageJob = pickle.loads(config["job"])
    compute = job.spec.compute
    torch.set_num_threads(compute.threads)

    def make_batches(split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
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

    job.train(make_batches, _RayCheckpointStore(), rank=context.get_world_rank(), world=context.get_world_size())


class _RayCheckpointStore:
    """Keeps checkpoints in Ray Train's storage."""

    def latest(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.to_directory())

    def save(self, folder: Path, metrics: dict[str, float]) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))

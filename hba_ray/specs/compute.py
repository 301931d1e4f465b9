"""The `compute` and `tracking` sections: where an experiment runs and where it is recorded.

Nothing here changes what a result is, so nothing here enters a fingerprint.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hba_ray.specs.base import Spec


class PythonsSpec(Spec):
    """Environments of extractors that are already there, on all nodes; null builds one where it is needed."""

    pose: str | None = None
    """Path of a Python that holds MediaPipe."""
    acoustic: str | None = None
    """Path of a Python that holds openSMILE."""
    transcripts: str | None = None
    """Path of a Python that holds Whisper."""


class ComputeSpec(Spec):
    """The cluster, the workers and how the data reaches them."""

    address: str = Field(default="local", min_length=1)
    """`local` starts a private Ray on this machine, `auto` joins the running one, or an address."""
    cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local Ray; null is the number of cores, at least four. Where the stage `grpo` runs, verl's come on top."""
    fork: bool = False
    """Start the processes of a local Ray without GPUs as forks of one that has imported torch and the like: each saves some twenty
    seconds of CPU time. It replaces parts of Ray (`hba_ray/cluster/forkserver.py`), so it is on only in `clusters/local.yaml`."""
    object_store_mib: int = Field(default=512, ge=80)
    """Shared memory of a local Ray, MiB."""
    storage: str = Field(default="runs", min_length=1)
    """Folder of runs, steps and the MLflow store; on a cluster a folder that all nodes see."""
    workers: int = Field(default=1, ge=0)
    """Training processes. 0 runs the loop in this process, without Ray."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    micro_batch: int = Field(default=2, ge=1)
    """Rows that one worker holds at a time; `sft.batch` is reached by accumulation."""
    zero: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage: what is sharded over the workers (1 optimiser, 2 gradients, 3 weights)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    loaders: int = Field(default=1, ge=1)
    """Ray Data tasks that decode for one worker at a time."""
    cpus_per_loader: float = Field(default=1.0, gt=0)
    prefetch: int = Field(default=2, ge=1)
    """Micro-batches decoded ahead of a worker."""
    extractors: int | None = Field(default=None, ge=1)
    """Processes of a descriptor extractor, a CPU each; null is one for each CPU but one."""
    pythons: PythonsSpec = PythonsSpec()
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints inside an epoch; one is always written at its end."""
    max_failures: int = Field(default=3, ge=0)
    """Times that lost workers are replaced before a stage gives up."""


class TrackingSpec(Spec):
    """Where runs are recorded."""

    mlflow: str | None = None
    """MLflow tracking URI; null is an sqlite store in `compute.storage`."""
    experiment: str = Field(default="hba_ray", min_length=1)
    """MLflow experiment."""

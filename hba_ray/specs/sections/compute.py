"""The `compute`, `tracking` and `report` sections: where an experiment runs, where it is recorded, what is shown of it.

Nothing here enters a fingerprint, since nothing here changes what is computed: the rows of every optimiser step are the same, and
each weighs the same in its gradient, whatever `micro_batch`, `workers` and `zero` are. What may still differ between two settings:

    rounding   sums are taken in another order, by more threads too. In fp32 the gradient of a step is equal to 1e-5; in bf16, in
               which the gradient of each micro-batch is rounded before it is added up in fp32, less so
    dropout    of LoRA (`model.lora.dropout`; in BAM where `bam.backbone_mode` is `train`): its masks are drawn for each micro-batch
               of each worker, so another split is another draw, as another seed would be
    sampling   in GRPO vLLM draws responses for all prompts that it holds at a time
    precision  of `model.precision: auto`, which is bf16 where workers have GPUs; fingerprints hold what it comes to. They hold
               `micro_batch` where answers are sampled by transformers, whose rows share a stream of random numbers
"""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated, Literal

from pydantic import Field, field_validator

from hba_ray.specs.base import Spec, TakesSecrets, folder_or_bucket
from hba_ray.specs.reading.secrets import holds_secret, revealed, shown

LOADERS_PER_GPU = 12
"""A 7B model on an H200 takes about ten rows a second, and one loader decodes one clip of 720p in a second at worst."""
STORE_MIB, STORE_MIB_PER_LOADER = 512, 160
CHANGE_NO_RESULT = ("compute", "tracking", "report")
"""The sections of this file."""


class PythonsSpec(Spec):
    """Python environments of descriptor extractors which exist on all nodes; where null, one is built when it is needed."""

    pose: str | None = None
    """Path of a Python interpreter that can import MediaPipe."""
    acoustic: str | None = None
    """Path of a Python interpreter that can import openSMILE."""
    transcripts: str | None = None
    """Path of a Python interpreter that can import Whisper."""


class NodesSpec(Spec):
    """A kind of node that the autoscaler of a cluster may add."""

    cpus: int = Field(ge=1)
    """CPUs that Ray counts on."""
    gpus: int = Field(default=0, ge=0)
    """GPUs that Ray counts on."""
    most: int = Field(ge=1)
    """Nodes of this kind that there may be at a time."""
    dollars_per_hour: float | None = Field(default=None, ge=0)
    """Price of one, in US dollars an hour; null where it is not known."""


class ComputeSpec(Spec):
    """The Ray cluster, the workers, and how data reaches them."""

    address: str = Field(default="local", min_length=1)
    """`local` starts a private Ray on this machine, `auto` joins the one that runs here, HOST:PORT joins that cluster."""
    grows_to: tuple[NodesSpec, ...] | None = None
    """Kinds of nodes that the autoscaler of a joined cluster may add; null is what its head says, in the variable HBA_GROWS_TO, which
    the files of `hba cluster render` set. Ray itself does not tell."""
    wait_minutes: float = Field(default=30.0, ge=0)
    """How long a run waits for nodes that such a cluster has to add, before it begins."""
    cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local Ray; null is the number of cores, at least four. Those that verl needs in the stage `grpo` are added."""
    fork: bool = False
    """Start the processes of a local Ray without GPUs as forks of one that has imported torch and the like: each saves some twenty
    seconds of CPU time. It replaces parts of Ray (`hba_ray/cluster/forkserver.py`), so it is on only in `clusters/local.yaml`."""
    object_store_mib: int | None = Field(default=None, ge=80)
    """Shared memory of a local Ray, in MiB; null is 512, or 160 for each loader where there are more than three."""
    storage: str = Field(default="runs", min_length=1)
    """Folder of runs, their steps and the MLflow store; on a cluster it must be one that all nodes see. Or the address of one in a
    bucket, such as s3://BUCKET/FOLDER, for any number of machines; of a cluster, each step that uses Ray is then done whole on one of
    the nodes."""
    workers: int = Field(default=1, ge=0)
    """Training processes; 0 trains in this process, without Ray."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that each worker holds, and threads that torch computes with in it."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs that each worker holds; 0 trains on CPUs."""
    micro_batch: int = Field(default=2, ge=1)
    """Rows that a worker processes at a time; gradients are accumulated until `sft.batch` rows have been seen."""
    zero: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage, what is sharded over the workers: 1 the optimiser's state, 2 gradients too, 3 weights too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: it needs less memory and about a third more time."""
    loaders: int | None = Field(default=None, ge=1)
    """Ray Data tasks that decode clips for one worker side by side; null is 12 for each of its GPUs, as far as there are CPUs that
    no worker holds, and one where it has no GPU."""
    cpus_per_loader: float = Field(default=1.0, gt=0)
    """CPUs that each of them holds."""
    prefetch: int = Field(default=2, ge=1)
    """Micro-batches that are decoded before a worker asks for them."""
    pack: bool = False
    """Decode every clip once, before the first stage, and keep frames and sound as the model is shown them, in `storage`: about 2 MB
    a row of four frames and ten seconds. All stages and trials read them there, ten times faster, and get the same numbers."""
    extractors: int | None = Field(default=None, ge=1)
    """Processes of a descriptor extractor, with a CPU each; null is one fewer than there are CPUs."""
    pythons: PythonsSpec = PythonsSpec()
    """Python interpreters of descriptor extractors."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints within an epoch; null writes none there. One is always written at an epoch's end."""
    max_failures: int = Field(default=3, ge=0)
    """How often lost workers are replaced before a stage gives up and, where a step is done whole on one node, how often lost nodes."""

    @field_validator("storage")
    @classmethod
    def _is_known(cls, storage: str) -> str:
        return folder_or_bucket(storage, "runs")

    @property
    def on_one_node(self) -> bool:
        """Whether each step is done whole on one node of a cluster: its nodes have a bucket in common, and no folder."""
        return self.address != "local" and "://" in self.storage

    @property
    def of_this_machine(self) -> ComputeSpec:
        """For work on files that this machine has fetched from a bucket: with a Ray of its own, where other nodes do not see them.

        >>> ComputeSpec(address="auto", storage="s3://bucket/runs").of_this_machine.address
        'local'
        >>> ComputeSpec(address="auto", storage="/shared/runs").of_this_machine.address
        'auto'
        """
        small = {"address": "local", "workers": 1, "gpus_per_worker": 0.0, "loaders": None}
        return self.model_copy(update=small) if self.on_one_node else self

    @property
    def threads(self) -> int:
        """Threads that torch computes with in a worker, and in this process where there are no workers."""
        return max(1, int(self.cpus_per_worker))

    @property
    def worker_cpus(self) -> float:
        """CPUs that all workers hold together."""
        return self.workers * self.cpus_per_worker

    @property
    def loader_cpus(self) -> float:
        """CPUs that the loaders of all workers hold together; where `loaders` is null, the fewest that will do."""
        return self.workers * (self.loaders or 1) * self.cpus_per_loader

    def loaders_on(self, cpus: float) -> int:
        """Loaders of each worker on a Ray with so many CPUs.

        >>> ComputeSpec(workers=8, gpus_per_worker=1).loaders_on(96), ComputeSpec(workers=1).loaders_on(96)
        (11, 1)
        """
        if self.loaders is not None:
            return self.loaders
        free = (cpus - self.worker_cpus) / max(1, self.workers) / self.cpus_per_loader
        return max(1, min(int(free + 1e-9), ceil(LOADERS_PER_GPU * self.gpus_per_worker)))

    def store_mib(self, cpus: float) -> int:
        """MiB of the object store of a local Ray with so many CPUs."""
        return self.object_store_mib or max(STORE_MIB, STORE_MIB_PER_LOADER * self.workers * self.loaders_on(cpus))

    @property
    def worker_gpus(self) -> float:
        """GPUs that all workers hold together."""
        return self.workers * self.gpus_per_worker

    @property
    def held(self) -> tuple[float, float]:
        """CPUs and GPUs that a step with a model holds: of all workers and their loaders or, where there are none, of this process."""
        workers = max(1, self.workers)
        return workers * self.cpus_per_worker + self.loader_cpus, workers * self.gpus_per_worker


_WITHOUT_SCHEME = re.compile(r"[\w.-]+:\d+(/.*)?")
"""A host and its port."""


class TrackingSpec(Spec):
    """Where runs are recorded in MLflow."""

    mlflow: Annotated[str | None, TakesSecrets()] = None
    """MLflow tracking URI; null is an sqlite store in `compute.storage`. A password in it is given as `${oc.env:NAME}`, the name
    of an environment variable, and never written down."""
    experiment: str = Field(default="hba_ray", min_length=1)
    """Name of the MLflow experiment."""

    @field_validator("mlflow")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        if uri is not None and holds_secret(uri):
            raise ValueError("it holds a password or a token, which would be written to disk: give it as ${oc.env:NAME}")
        if uri is not None and _WITHOUT_SCHEME.fullmatch(uri):
            raise ValueError(f"MLflow would take it for a folder: give it as http://{uri}")
        return uri

    @property
    def uri(self) -> str | None:
        """The tracking URI with its secrets, for who connects.

        Raises:
            EnvironmentMissing: the environment lacks a variable that the URI refers to.
        """
        return None if self.mlflow is None else revealed(self.mlflow, "tracking.mlflow")

    @property
    def shown(self) -> str | None:
        """The tracking URI as it can be printed: `http://***:***@host`."""
        return None if self.mlflow is None else shown(self.mlflow)


class ReportSpec(Spec):
    """What is shown of a run: in its page, in lists of differing rows, and in MLflow."""

    show_sensitive: bool = False
    """Show texts and clips of sensitive datasets (DAIC-WOZ, MMPsy, own ones that are declared so), which are those of patients or
    minors. Errors and logs never do. What a run has recorded with it stays in MLflow until it is deleted there."""

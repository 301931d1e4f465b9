"""What all ways of training BAM's adapters have in common: the job, what a dataset's training starts with, and what it leaves.

Letters: R rows of the split, H hidden size, D features of a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.order import Order, steps_of
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import CheckpointError
from hba_ray.models.bam import Bam, DecoderTail, DescriptorBatch, Head, lm_head_copy, task_head
from hba_ray.models.checkpoints import load_adapters, load_class_heads, model_identity, save_adapters
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.store.scratch import folder_here
from hba_ray.training.sources import Source, stored_answers, stored_classes
from hba_ray.training.states import Kind, StatesJob, StateStore, device_of, load_sft

_SHUFFLE_WINDOW = 256
"""Rows of a dataset that a worker with the backbone in the loop reads at a time; the order of rows depends on it."""


@dataclass(frozen=True)
class BamJob:
    """What the adapters of all datasets have in common. Picklable.

    Attributes:
        backbone: folder or hub id.
        model: folder of the SFT checkpoint.
        states: split -> folder of its stored states; none where they are live.
        names: line of the index -> sample id, of the rows that could be read; what orders the rows.
    """

    spec: ExperimentSpec
    bam: BamSpec
    backbone: str
    model: str
    index: AtlasIndex
    states: Mapping[str, str]
    names: Mapping[int, str] = field(default_factory=dict)

    def kind(self, *, open_answers: bool) -> Kind:
        """The kind of states that rows with open answers, or with classes, are trained on."""
        return self.bam.decoder_injection if open_answers else "pooled"

    def states_job(self, split: str, *, open_answers: bool) -> StatesJob:
        kind = self.kind(open_answers=open_answers)
        return StatesJob(self.spec, self.bam, self.backbone, self.model, self.index, split, kind)

    def states_folder(self, split: str, *, open_answers: bool) -> Path:
        """The folder of a split's stored states of one kind."""
        return Path(self.states[split]) / self.kind(open_answers=open_answers)

    @property
    def seed(self) -> int:
        return self.spec.seed if self.bam.seed is None else self.bam.seed

    def lines(self, dataset: str) -> np.ndarray:
        """The lines of the index that belong to a dataset."""
        return np.flatnonzero(self.index.table.column("dataset").to_numpy(zero_copy_only=False) == dataset)

    def order(self, dataset: str, micro_batch: int) -> Order:
        """The order in which the training rows of a dataset are taken."""
        return Order("train", _SHUFFLE_WINDOW, micro_batch, seed=self.seed, batch=self.bam.batch_of(dataset))

    def steps(self, dataset: str, epoch: int) -> list[list[str]]:
        """The sample ids of each optimiser step of an epoch."""
        lines = self.lines(dataset)
        own = steps_of(self.index.take(lines), self.order(dataset, 1), epoch)
        return [[self.names[line] for line in lines[step].tolist() if line in self.names] for step in own]

    @cached_property
    def base(self) -> str:
        """The identity of the SFT model, which checkpoints of adapters name."""
        return model_identity(self.backbone, Path(self.model), memory=folder_here(self.spec.compute.storage))


@dataclass(frozen=True)
class TrainedBam:
    """A dataset's trained adapters.

    Attributes:
        folder: what `models.checkpoints.load_adapters` reads.
        losses: mean loss per row of each optimiser step.
        validation: mean loss per row of the validation split after each epoch; empty where there is none.
        best_epoch: the epoch that is kept, counted from 0.
        without_gradients: every gradient was 0.
    """

    dataset: str
    folder: Path
    losses: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    without_gradients: bool = False


class Supply:
    """Gives each dataset of a job its source of states and a fresh head. Loads the SFT model once, and only if it is needed.

    Until then it can be pickled, and be sent to where the model will be.
    """

    def __init__(self, job: BamJob):
        self.job = job
        self.class_weight, self.class_bias, self.classes = load_class_heads(Path(job.model))
        self.hidden = self.class_weight.shape[1]
        self.stores: dict[Path, StateStore] = {}

    @cached_property
    def device(self) -> str:
        return device_of(self.job.spec)

    @cached_property
    def sft(self) -> OmniSapiens:
        return load_sft(self.job.spec, self.job.backbone, self.job.model)

    @cached_property
    def tail(self) -> DecoderTail:
        """The end of the SFT model, the rest of which is freed again."""
        return DecoderTail(load_sft(self.job.spec, self.job.backbone, self.job.model))

    def columns(self, dataset: str) -> list[int]:
        """Global class indices of a dataset's task."""
        return [index for index, (task, _) in enumerate(self.classes) if task == DATASETS[dataset].task.id]

    def head(self, dataset: str) -> Head | None:
        """A trainable copy of the task's head, or of lm_head for open answers; None where lm_head is not trained."""
        if not DATASETS[dataset].task.is_open:
            return task_head(self.class_weight, self.class_bias, self.columns(dataset)).to(self.device)
        if not self.job.bam.train_lm_head:
            return None
        return lm_head_copy(self.sft.thinker.lm_head if self.job.bam.live else self.tail.lm_head)

    def source(self, dataset: str, split: str) -> Source:
        """The stored states of a dataset's split.

        Raises:
            DataError: they are missing, incomplete or stale.
        """
        job, is_open = self.job, DATASETS[dataset].task.is_open
        folder = job.states_folder(split, open_answers=is_open)
        if folder not in self.stores:
            self.stores[folder] = StateStore.open(job.states_job(split, open_answers=is_open), folder)
        if is_open:
            return stored_answers(self.stores[folder], dataset, self.tail, job.bam.decoder_injection)
        return stored_classes(self.stores[folder], dataset, self.columns(dataset), self.hidden, self.device)


@dataclass(frozen=True)
class Outset:
    """What the training of a dataset's adapters starts with. Picklable.

    Attributes:
        widths: stream -> D, of the streams that a training row has.
        norms: mean and deviation of norms of kind z-score, as in the adapters' state dict.
        identity: names all that the adapters depend on.
    """

    widths: Mapping[str, int]
    norms: Mapping[str, Tensor]
    identity: str

    @classmethod
    def of(cls, job: BamJob, dataset: str, described: Mapping[str, Mapping[str, DescriptorBatch]]) -> Outset | None:
        """The outset that descriptors lead to; None where no training row has one.

        Args:
            described: split -> the descriptors of its rows.
        """
        descriptors = described["train"]
        widths = {stream: given.vectors_BD.shape[1] for stream, given in descriptors.items() if bool(given.present_B.any())}
        if not widths:
            return None
        digests = {split: _digest(given) for split, given in described.items()}
        with torch.random.fork_rng():
            bam = Bam(job.bam, widths, 1, None).to(descriptors[next(iter(widths))].vectors_BD.device)
        bam.fit_norms(descriptors)
        norms = {name: buffer.cpu() for name, buffer in bam.named_buffers()}
        return cls(widths, norms, fingerprint([job.bam.identity(), job.seed, job.base, dataset, digests]))

    def bam(self, job: BamJob, dataset: str, supply: Supply) -> Bam:
        """Fresh adapters and a fresh head, always the same."""
        head = supply.head(dataset)  # may load a model, which draws random numbers
        with torch.random.fork_rng():
            torch.manual_seed(int(fingerprint([job.seed, dataset]), 16))
            bam = Bam(job.bam, self.widths, supply.hidden, head)
        bam.load_state_dict(dict(self.norms), strict=False)
        return bam.to(supply.device)


def save_trained(job: BamJob, made: TrainedBam, outset: Outset, bam: Bam) -> None:
    """Writes a dataset's adapters into their folder, with how they were trained."""
    facts = {name: getattr(made, name) for name in ("losses", "validation", "best_epoch", "without_gradients")}
    save_adapters(bam, made.folder, base=job.base, dataset=made.dataset, meta={"identity": outset.identity, **facts}, spec=job.spec)


def finished(folder: Path, dataset: str, outset: Outset, base: str, hidden: int) -> TrainedBam | None:
    """The adapters that an earlier attempt finished, if they are of the same job and descriptors."""
    try:
        _, manifest = load_adapters(folder, base=base, hidden=hidden)
    except CheckpointError:
        return None
    meta = manifest["meta"]
    if meta.get("identity") != outset.identity:
        return None
    unmoved = meta.get("without_gradients", False)  # a former version did not say
    return TrainedBam(dataset, folder, tuple(meta["losses"]), tuple(meta["validation"]), meta["best_epoch"], unmoved)


def _digest(descriptors: Mapping[str, DescriptorBatch]) -> str:
    digest = hashlib.sha256()
    for stream, (vectors, present) in sorted(descriptors.items()):
        digest.update(f"{stream} {tuple(vectors.shape)}".encode())
        digest.update(torch.where(present[:, None], vectors, 0.0).cpu().numpy().tobytes())
        digest.update(present.cpu().numpy().tobytes())
    return digest.hexdigest()


def optimizer_of(bam: Bam) -> torch.optim.Optimizer:
    """Adam on the adapters and the head, each with its own constant rate."""
    groups = [{"params": list(bam.adapters.parameters()), "lr": bam.spec.lr}]
    if bam.head is not None:
        groups.append({"params": list(bam.head.parameters()), "lr": bam.spec.head_lr})
    return torch.optim.Adam(groups, fused=True)  # on a CPU half of a stored step would go into Adam otherwise

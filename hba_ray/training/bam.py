"""BAM's training: one set of adapters per dataset, on the frozen SFT model (paper section 3.6, appendix C.2).

Only the adapters, and a copy of the task's head or of lm_head, have gradients. Where the backbone's states are stored
(states.py), the backbone itself is not loaded, so each dataset is a small job, and datasets train side by side.

A step's gradient is that of its rows' mean loss, however they are divided; `compute.micro_batch` only bounds how many the
backbone computes on at a time. `bam.backbone_mode=train` without `bam.cache` is the exception: there the masks of LoRA's
dropout are drawn for each share of the rows.

Letters: R rows of the split, B rows of a step, H hidden size, D features of a stream.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import CheckpointError, DataError, EnvironmentMissing, TrainingError
from hba_ray.models.backbone import load_processor
from hba_ray.models.bam import Bam, DecoderTail, DescriptorBatch, Head, lm_head_copy, task_head
from hba_ray.models.checkpoints import load_adapters, load_class_heads, model_identity, save_adapters
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.training.sources import ClassSource, LiveAnswers, LiveBackbone, Source, live_classes, stored_answers, stored_classes
from hba_ray.training.states import Kind, StatesJob, StateStore, device_of, load_sft

Describe = Callable[[str, Sequence[str]], Mapping[str, DescriptorBatch]]
"""(split, sample ids) -> stream -> vectors float32 [R, D] and whether each row has the stream."""


_STORED_SHARE = 1024
"""Rows of a share with stored pooled states; where the backbone or lm_head runs, it is `compute.micro_batch`."""


@dataclass(frozen=True)
class BamJob:
    """What the adapters of all datasets have in common. Picklable.

    Attributes:
        backbone: folder or hub id.
        model: folder of the SFT checkpoint.
        states: split -> folder of its stored states; unused where `bam.cache` is off.
    """

    spec: ExperimentSpec
    bam: BamSpec
    backbone: str
    model: str
    index: AtlasIndex
    states: Mapping[str, str]

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

    @cached_property
    def base(self) -> str:
        """The identity of the SFT model, which checkpoints of adapters name."""
        return model_identity(self.backbone, Path(self.model), memory=Path(self.spec.compute.storage).expanduser())


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
    """Gives each dataset of a job its source of states and a fresh head. Loads the SFT model once, and only if it is needed."""

    def __init__(self, job: BamJob):
        self.job, self.device = job, device_of(job.spec)
        self.class_weight, self.class_bias, self.classes = load_class_heads(Path(job.model))
        self.hidden = self.class_weight.shape[1]
        self.stores: dict[Path, StateStore] = {}

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
        return lm_head_copy(self.tail.lm_head if self.job.bam.cache else self.sft.thinker.lm_head)

    def source(self, dataset: str, split: str) -> Source:
        """Where training takes the states of a dataset's split from.

        Raises:
            DataError: the stored states are missing, incomplete or stale.
        """
        job, is_open = self.job, DATASETS[dataset].task.is_open
        states = job.states_job(split, open_answers=is_open)
        if job.bam.cache:
            folder = job.states_folder(split, open_answers=is_open)
            if folder not in self.stores:
                self.stores[folder] = StateStore.open(states, folder)
            if is_open:
                return stored_answers(self.stores[folder], dataset, self.tail, job.bam.decoder_injection)
            return stored_classes(self.stores[folder], dataset, self.columns(dataset), self.hidden, self.device)
        live = LiveBackbone(states, dataset, self.sft, load_processor(job.backbone), in_training=job.bam.backbone_mode == "train")
        return LiveAnswers(live, job.bam.decoder_injection) if is_open else live_classes(live, self.columns(dataset))


def train_bam(
    job: BamJob, datasets: Iterable[str], describe: Describe, folder: Path, on_done: Callable[[str], None] = lambda dataset: None
) -> list[TrainedBam]:
    """Trains the adapters of these datasets one after the other, each into a folder of its name; finished ones are kept.

    A dataset of which no training row has a descriptor gets no adapters: its rows are answered by the SFT model alone.

    Args:
        on_done: is called with each dataset that is finished or left out.

    Raises:
        DataError: descriptors or states are not what they should be.
        TrainingError: a loss is not finite.
    """
    supply = Supply(job)
    trained: list[TrainedBam] = []
    for dataset in datasets:
        one = _train_dataset(job, dataset, supply, describe, folder / dataset)
        trained += [one] if one else []
        on_done(dataset)
    return trained


def train_bam_on_ray(
    job: BamJob, datasets: Sequence[str], describe: Describe, folder: Path, on_done: Callable[[str], None] = lambda dataset: None
) -> list[TrainedBam]:
    """Trains as `train_bam` does, in one Ray task per dataset and as many at a time as the cluster has room for.

    Raises:
        DataError, TrainingError: as `train_bam` raises them.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    from hba_ray.cluster.session import ANYWHERE

    compute = job.spec.compute
    resources = {"num_cpus": compute.cpus_per_worker, "num_gpus": compute.gpus_per_worker, "max_retries": compute.max_failures}
    task: Any = ray.remote(**resources, **ANYWHERE)(_train_one)
    shared = ray.put((job, describe))
    tasks = {task.remote(shared, dataset, folder): dataset for dataset in datasets}
    made: dict[str, list[TrainedBam]] = {}
    try:
        while len(made) < len(tasks):
            waiting = [one for one, dataset in tasks.items() if dataset not in made]
            (ready, *_), _ = ray.wait(waiting, num_returns=1)
            made[tasks[ready]] = ray.get(ready)
            on_done(tasks[ready])
    except RayTaskError as failed:
        raise failed.cause from None
    except RayError as lost:
        what = f"lost its worker more than {compute.max_failures} times: {str(lost).splitlines()[0]}"
        raise EnvironmentMissing("BAM", what, "look at the logs of the run, then start it again: what is finished is kept") from None
    return [one for dataset in datasets for one in made[dataset]]


def _train_one(shared: tuple[BamJob, Describe], dataset: str, folder: Path) -> list[TrainedBam]:
    torch.set_num_threads(1)
    job, describe = shared
    return train_bam(job, [dataset], describe, folder)


def _train_dataset(job: BamJob, dataset: str, supply: Supply, describe: Describe, folder: Path) -> TrainedBam | None:
    parts: dict[str, DescribedSplit] = {}
    for split in ("train", "validation"):
        if has_rows(job.index, dataset, split):
            source = supply.source(dataset, split)
            if not source.samples:  # all of them were bad rows
                continue
            parts[split] = DescribedSplit(source, describe_source(describe, job.bam, source, dataset, split, supply.device))
    if "train" not in parts:
        return None
    descriptors = parts["train"].descriptors
    widths = {stream: given.vectors_BD.shape[1] for stream, given in descriptors.items() if bool(given.present_B.any())}
    if not widths:
        return None
    described = {split: _digest(part.descriptors) for split, part in parts.items()}
    identity = fingerprint([job.bam.identity(), job.seed, job.base, dataset, described])
    finished = _finished(folder, dataset, identity, job.base, supply.hidden)
    if finished is not None:
        return finished
    with torch.random.fork_rng():
        torch.manual_seed(int(fingerprint([job.seed, dataset]), 16))
        bam = Bam(job.bam, widths, supply.hidden, supply.head(dataset)).to(supply.device)
        bam.fit_norms(descriptors)
        run = _Run(job, dataset, bam, parts["train"], parts.get("validation"))
        run.fit()
    facts = {"losses": run.losses, "validation": run.validation, "best_epoch": run.best_epoch, "without_gradients": run.without_gradients}
    save_adapters(bam, folder, base=job.base, dataset=dataset, meta={"identity": identity, **facts}, spec=job.spec)
    return TrainedBam(dataset, folder, tuple(run.losses), tuple(run.validation), run.best_epoch, run.without_gradients)


def has_rows(index: AtlasIndex, dataset: str, split: str) -> bool:
    return split in index.counts().get(dataset, {})


def _finished(folder: Path, dataset: str, identity: str, base: str, hidden: int) -> TrainedBam | None:
    """The adapters that an earlier attempt finished, if they are of the same job and descriptors."""
    try:
        _, manifest = load_adapters(folder, base=base, hidden=hidden)
    except CheckpointError:
        return None
    meta = manifest["meta"]
    if meta.get("identity") != identity:
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


def describe_source(describe: Describe, bam: BamSpec, source: Source, dataset: str, split: str, device: str) -> dict[str, DescriptorBatch]:
    """Stream -> the descriptors of a source's rows, of the streams that `bam.streams` names.

    Raises:
        DataError: a stream is not there, of another length than the rows, or holds a value that is not finite.
    """
    sample_ids = [str(sample["sample_id"]) for sample in source.samples]
    given = describe(split, sample_ids)
    where = f"descriptors of {dataset} ({split})"
    for stream in bam.streams:
        if stream not in given:
            what = f"hold no stream '{stream}', only {', '.join(given) or 'none'}"
            raise DataError(where, what, "extract it, or leave it out of bam.streams", reason="missing stream")
        vectors, present = given[stream]
        if not len(vectors) == len(present) == len(sample_ids):
            raise DataError(where, f"stream '{stream}' has {len(vectors)} rows for {len(sample_ids)} samples", reason="wrong length")
        broken = (present & ~torch.isfinite(vectors).all(dim=1)).nonzero()
        if len(broken):
            what = f"stream '{stream}' of {sample_ids[int(broken[0])]} holds a value that is not finite"
            raise DataError(where, what, "extract it again", reason="not finite")
    return {stream: given[stream].to(device) for stream in bam.streams}


@dataclass(frozen=True)
class DescribedSplit:
    """One split of a dataset: its rows, and their descriptors in the same order."""

    source: Source
    descriptors: Mapping[str, DescriptorBatch]

    def __len__(self) -> int:
        return len(self.source.samples)

    def described(self, rows: Tensor) -> dict[str, DescriptorBatch]:
        return {stream: given.take(rows) for stream, given in self.descriptors.items()}


class _Run:
    """The training loop of one dataset. When `fit` returns, `bam` holds the weights of the epoch that is kept."""

    def __init__(self, job: BamJob, dataset: str, bam: Bam, train: DescribedSplit, validation: DescribedSplit | None):
        self.job, self.dataset, self.bam, self.parts = job, dataset, bam, (train, validation)
        self.batch = job.bam.batch_of(dataset)
        whole = job.bam.cache and not DATASETS[dataset].task.is_open
        self.share = _STORED_SHARE if whole else job.spec.compute.micro_batch
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best_epoch = 0
        self.without_gradients = True

    def fit(self) -> None:
        (train, validation), spec = self.parts, self.job.bam
        groups = [{"params": list(self.bam.adapters.parameters()), "lr": spec.lr}]
        if self.bam.head is not None:
            groups.append({"params": list(self.bam.head.parameters()), "lr": spec.head_lr})
        optimizer = torch.optim.Adam(groups, fused=True)  # on a CPU half of a stored step would go into Adam otherwise
        best: dict[str, Tensor] = {}
        for epoch in range(spec.epochs):
            order = torch.from_numpy(np.random.default_rng([self.job.seed, epoch]).permutation(len(train)))
            self.bam.train()
            for rows in order.split(self.batch):
                optimizer.zero_grad()
                self.losses.append(self._checked(self._backward(train, rows), f"step {len(self.losses)}"))
                optimizer.step()
            if validation is not None:
                self.validation.append(self._checked(self._loss(validation), f"validation after epoch {epoch}"))
            if spec.keep == "last" or validation is None or self.validation[-1] == min(self.validation):
                self.best_epoch = epoch
                best = {name: tensor.detach().clone() for name, tensor in self.bam.state_dict().items()}
        self.bam.load_state_dict(best)
        self.bam.eval()

    def _backward(self, part: DescribedSplit, rows: Tensor) -> float:
        """Adds the gradients of these rows' mean loss, and returns that loss.

        The adapters see all rows at once, so that their dropout does not depend on the shares in which the rest of the
        graph is built and freed.
        """
        delta_BH = self.bam(part.described(rows))
        leaf_BH = delta_BH.detach().requires_grad_()
        total = 0.0
        for share, share_BH in zip(rows.split(self.share), leaf_BH.split(self.share), strict=True):
            loss = part.source.loss_sum(share, share_BH, self.bam.head) / len(rows)
            loss.backward()
            total += float(loss.detach())
        delta_BH.backward(leaf_BH.grad)
        if self.without_gradients:
            gradients = (weight.grad for weight in self.bam.parameters() if weight.grad is not None)
            self.without_gradients = not any(bool(gradient.any()) for gradient in gradients)
        return total

    @torch.no_grad()
    def _loss(self, part: DescribedSplit) -> float:
        """The mean loss per row, without dropout and gradients."""
        self.bam.eval()
        shares = torch.arange(len(part)).split(self.share)
        return sum(float(part.source.loss_sum(rows, self.bam(part.described(rows)), self.bam.head)) for rows in shares) / len(part)

    def _checked(self, loss: float, when: str) -> float:
        if not math.isfinite(loss):
            raise TrainingError(f"BAM on {self.dataset}, {when}", f"the loss is {loss}", "lower bam.lr, or set bam.norm=layer")
        return loss


@torch.no_grad()
def class_probabilities(bam: Bam, source: ClassSource, descriptors: Mapping[str, DescriptorBatch]) -> Tensor:
    """Probabilities [R, K] of the task's classes for all rows of a source, in its order."""
    assert bam.head is not None
    part = DescribedSplit(source, descriptors)
    shares = torch.arange(len(part)).split(_STORED_SHARE)
    return torch.cat([source.logits(rows, bam(part.described(rows)), bam.head).softmax(dim=1) for rows in shares])

"""BAM's training: one set of adapters per dataset, on the frozen SFT model (paper section 3.6, appendix C.2).

Only the adapters, and a copy of the task's head or of lm_head, have gradients. Here the backbone's states are stored
(states.py) and the backbone itself is not loaded, so each dataset is a small job, and datasets train side by side; `live`
trains the same adapters with the backbone in the loop.

The rows of a step are those that data/feed/order.py gives it, and each of them weighs 1/batch in its gradient, as in SFT;
`compute.micro_batch` only bounds how many lm_head computes on at a time. The dropout of a row depends on the row alone.

Letters: R rows of the split, B rows of a step, H hidden size, D features of a stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import EnvironmentMissing, TrainingError
from hba_ray.models.bam import Bam, DescriptorBatch
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.training.bam_inputs import Describe, describe_rows, dropout_seeds
from hba_ray.training.bam_job import BamJob, Outset, Supply, TrainedBam, finished, optimizer_of, save_trained
from hba_ray.training.sources import Source, read_ahead

_STORED_SHARE = 1024
"""Rows of a share with stored pooled states; where the backbone or lm_head runs, it is `compute.micro_batch`."""


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
    job, describe = shared
    torch.set_num_threads(job.spec.compute.threads)
    return train_bam(job, [dataset], describe, folder)


def _train_dataset(job: BamJob, dataset: str, supply: Supply, describe: Describe, folder: Path) -> TrainedBam | None:
    parts: dict[str, DescribedSplit] = {}
    for split in ("train", "validation"):
        if has_rows(job.index, dataset, split):
            source = supply.source(dataset, split)
            if not source.samples:  # all of them were bad rows
                continue
            parts[split] = DescribedSplit.of(describe, job.bam, source, dataset, split, supply.device)
    if "train" not in parts:
        return None
    outset = Outset.of(job, dataset, {split: part.descriptors for split, part in parts.items()})
    if outset is None:
        return None
    made = finished(folder, dataset, outset, job.base, supply.hidden)
    if made is not None:
        return made
    run = _Run(job, dataset, outset.bam(job, dataset, supply), parts["train"], parts.get("validation"))
    run.fit()
    made = TrainedBam(dataset, folder, tuple(run.losses), tuple(run.validation), run.best_epoch, run.without_gradients)
    save_trained(job, made, outset, run.bam)
    return made


def has_rows(index: AtlasIndex, dataset: str, split: str) -> bool:
    return split in index.counts().get(dataset, {})


@dataclass(frozen=True)
class DescribedSplit:
    """One split of a dataset: its rows, and their descriptors in the same order."""

    source: Source
    descriptors: Mapping[str, DescriptorBatch]

    @classmethod
    def of(cls, describe: Describe, bam: BamSpec, source: Source, dataset: str, split: str, device: str) -> DescribedSplit:
        """
        Raises:
            DataError: as `describe_rows` raises it.
        """
        given = describe_rows(describe, bam, [str(sample["sample_id"]) for sample in source.samples], dataset, split)
        return cls(source, {stream: one.to(device) for stream, one in given.items()})

    def __len__(self) -> int:
        return len(self.source.samples)

    def described(self, rows: Tensor) -> dict[str, DescriptorBatch]:
        return {stream: given.take(rows) for stream, given in self.descriptors.items()}


class _Run:
    """The training loop of one dataset. When `fit` returns, `bam` holds the weights of the epoch that is kept."""

    def __init__(self, job: BamJob, dataset: str, bam: Bam, train: DescribedSplit, validation: DescribedSplit | None):
        self.job, self.dataset, self.bam, self.parts = job, dataset, bam, (train, validation)
        self.batch = job.bam.batch_of(dataset)
        self.is_open = DATASETS[dataset].task.is_open
        self.share = job.spec.compute.micro_batch if self.is_open else _STORED_SHARE
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best_epoch = 0
        self.without_gradients = True

    def fit(self) -> None:
        (train, validation), spec = self.parts, self.job.bam
        optimizer = optimizer_of(self.bam)
        best: dict[str, Tensor] = {}
        for epoch in range(spec.epochs):
            self.bam.train()
            steps = self._steps(train, epoch)
            states = self._states(train, steps)
            for rows in steps:
                optimizer.zero_grad()
                self.losses.append(self._checked(self._backward(train, rows, states, epoch), f"step {len(self.losses)}"))
                optimizer.step()
            if validation is not None:
                self.validation.append(self._checked(self._loss(validation), f"validation after epoch {epoch}"))
            if spec.keep == "last" or validation is None or self.validation[-1] == min(self.validation):
                self.best_epoch = epoch
                best = {name: tensor.detach().clone() for name, tensor in self.bam.state_dict().items()}
        self.bam.load_state_dict(best)
        self.bam.eval()

    def _steps(self, part: DescribedSplit, epoch: int) -> list[Tensor]:
        """The rows of each step; rows whose states could not be computed are left out."""
        place = {str(sample["sample_id"]): row for row, sample in enumerate(part.source.samples)}
        steps = [[place[name] for name in step if name in place] for step in self.job.steps(self.dataset, epoch)]
        return [torch.tensor(rows) for rows in steps if rows]

    def _states(self, part: DescribedSplit, steps: Iterable[Tensor]) -> Iterator[Any]:
        """The states of each share of these steps; those of open answers, which lie on disk, are read one share ahead."""
        shares = (share for rows in steps for share in rows.split(self.share))
        return read_ahead(part.source.load, shares) if self.is_open else map(part.source.load, shares)

    def _backward(self, part: DescribedSplit, rows: Tensor, states: Iterator[Any], epoch: int) -> float:
        """Adds the gradients of these rows' losses, and returns their mean loss.

        The adapters see all rows at once; only the rest of the graph is built and freed in shares.
        """
        samples = [str(part.source.samples[row]["sample_id"]) for row in rows.tolist()]
        delta_BH = self.bam(part.described(rows), dropout_seeds(self.job.seed, self.dataset, epoch, samples))
        leaf_BH = delta_BH.detach().requires_grad_()
        total = 0.0
        for share_BH in leaf_BH.split(self.share):
            loss = part.source.loss_sum(next(states), share_BH, self.bam.head)
            (loss / self.batch).backward()
            total += float(loss.detach())
        delta_BH.backward(leaf_BH.grad)
        if self.without_gradients:
            gradients = (weight.grad for weight in self.bam.parameters() if weight.grad is not None)
            self.without_gradients = not any(bool(gradient.any()) for gradient in gradients)
        return total / len(rows)

    @torch.no_grad()
    def _loss(self, part: DescribedSplit) -> float:
        """The mean loss per row, without dropout and gradients."""
        self.bam.eval()
        shares = torch.arange(len(part)).split(self.share)
        states = self._states(part, [torch.arange(len(part))])
        losses = (part.source.loss_sum(next(states), self.bam(part.described(rows)), self.bam.head) for rows in shares)
        return sum(map(float, losses)) / len(part)

    def _checked(self, loss: float, when: str) -> float:
        if not math.isfinite(loss):
            raise TrainingError(f"BAM on {self.dataset}, {when}", f"the loss is {loss}", "lower bam.lr, or set bam.norm=layer")
        return loss


@torch.no_grad()
def class_probabilities(bam: Bam, part: DescribedSplit) -> Tensor:
    """Probabilities [R, K] of the task's classes for all rows of a split with classes, in its order."""
    shares = torch.arange(len(part)).split(_STORED_SHARE)
    return torch.cat([bam.class_logits(part.source.load(rows).h_BH, bam(part.described(rows))).softmax(dim=1) for rows in shares])

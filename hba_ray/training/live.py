"""BAM with the SFT model in the loop: the frozen model runs in every step, and the adapters on it are trained as SFT trains.

Each dataset is a stage of its own, and all of them are trained by the same workers (launch.py), each of which loads the model once.
Clips and descriptors reach them together, through Ray Data; the engine, the hooks, the checkpoints and the way to go on from one are
those of SFT. It gives the adapters that `bam` trains on
stored states, to rounding: both take the same rows in the same steps, with the same dropout.

Letters: B rows, S positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hba_ray.data.atlas import AtlasIndex, Drop
from hba_ray.data.feed.batches import IGNORED, BatchSettings
from hba_ray.data.tasks import DATASETS
from hba_ray.models.backbone import context_length
from hba_ray.models.bam import Bam, attached
from hba_ray.models.checkpoints import load_adapters, save_adapters
from hba_ray.models.omni import OmniSapiens, Outputs
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.bam import Injection
from hba_ray.store.folders import read_lines
from hba_ray.store.follow import Metrics, followed
from hba_ray.training.bam_inputs import Attach, Describe, describe_rows, streamed
from hba_ray.training.bam_job import BamJob, Outset, Supply, TrainedBam, finished, optimizer_of, save_trained
from hba_ray.training.deepspeed import deepspeed_settings, join_process_group, wrap
from hba_ray.training.hooks import CheckpointStore, fit_from_newest
from hba_ray.training.launch import launch_stages, left_by, state_in
from hba_ray.training.loop import Feed, MakeBatches, Run, State
from hba_ray.training.sft import is_rank_zero, whole

LOG = "metrics.jsonl"
"""A dataset's log of steps, in the folder of its stage."""


@dataclass(frozen=True)
class LiveJob:
    """The training of one dataset's adapters; see `training.job.StageJob`.

    Attributes:
        spec: with the dataset's batch as `sft.batch`.
        index: the dataset's rows.
        supply: of the model, which the jobs of all datasets share; they are pickled together before it is loaded.
        log: file of the step log, which rank 0 writes.
    """

    bam: BamJob
    dataset: str
    outset: Outset
    describe: Describe
    spec: ExperimentSpec
    index: AtlasIndex
    supply: Supply
    log: str
    checkpoint: str | None = None

    @property
    def backbone(self) -> str:
        return self.bam.backbone

    @property
    def folder(self) -> Path:
        """That of the stage, in which it goes on where it was interrupted."""
        return Path(self.log).parent

    def made(self, folder: Path) -> TrainedBam | None:
        """The adapters in a folder of its name in this one, if they were finished from the same job and descriptors."""
        return finished(folder / self.dataset, self.dataset, self.outset, self.bam.base, self.supply.hidden)

    def settings_for(self, split: str) -> BatchSettings:
        """Those of SFT; the loaders attach the rows' descriptors."""
        settings = BatchSettings.of(
            self.spec,
            "train" if split == "train" else "validation",
            context=context_length(self.backbone),
            withheld=self.bam.bam.withheld,
        )
        return replace(settings, attach=Attach(self.describe, self.bam.bam, self.dataset, split, self.bam.seed))

    def train(self, make_batches: MakeBatches, store: CheckpointStore, rank: int = 0, world: int = 1) -> State:
        """Trains in one worker, from the newest checkpoint or from the start, to the end.

        Raises:
            DataError: a bad row, where the spec says to fail; descriptors that are not what they should be.
            TrainingError: the loss is not finite.
            CheckpointError: the newest checkpoint is damaged, or of other settings of `compute`.
        """
        job, spec, compute, supply = self.bam, self.spec, self.spec.compute, self.supply
        join_process_group(gpu=compute.gpus_per_worker > 0)
        bam = self.outset.bam(job, self.dataset, supply)
        columns = None if DATASETS[self.dataset].task.is_open else supply.columns(self.dataset)
        model = Adapted(bam, supply.sft, columns, job.bam.decoder_injection, in_training=job.bam.backbone_mode == "train")
        run = Run(
            engine=wrap(model, optimizer_of(bam), deepspeed_settings(spec, bf16=False)),
            feed=Feed(self.index, replace(job.order(self.dataset, compute.micro_batch), rank=rank, world=world), make_batches),
            epochs=job.bam.epochs,
            accumulation=spec.accumulation,
            micro_batch=compute.micro_batch,
            seed=job.seed,
            keep=job.bam.keep,
            rank=rank,
        )
        save_best, other = partial(self._save, bam), Path(self.checkpoint) if self.checkpoint else None
        return fit_from_newest(run, store, save_best, Path(self.log), compute, world=world, other=other)

    def _save(self, bam: Bam, folder: Path, state: State) -> None:
        with whole(list(bam.parameters()), zero=self.spec.compute.zero):
            if is_rank_zero():
                save_adapters(bam, folder, base=self.bam.base, dataset=self.dataset, meta={"epoch": state.best_epoch})


class Adapted(nn.Module):
    """Adapters on the frozen SFT model, with the losses of SFT's loop.

    The SFT model is no submodule: nothing of it is trained, sharded or saved, and it keeps its own precision, while the adapters
    compute in fp32.

    Args:
        columns: global indices of the task's classes; None where answers are open.
        at: where open answers take delta.
        in_training: leave LoRA's dropout active in training steps.
    """

    place_of_class: Tensor | None
    at: Injection

    def __init__(self, bam: Bam, sft: OmniSapiens, columns: list[int] | None, at: Injection, *, in_training: bool):
        super().__init__()
        self.bam, self.at, self.in_training = bam, at, in_training
        self._sft = (sft,)
        places = None if columns is None else torch.tensor([columns.index(i) if i in columns else IGNORED for i in range(len(sft.classes))])
        self.register_buffer("place_of_class", places, persistent=False)

    @property
    def sft(self) -> OmniSapiens:
        return self._sft[0]

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        self.sft.train(mode and self.in_training)
        return self

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        class_index_B: Tensor,
        task_slot_B: Tensor,
        answer_labels_BS: Tensor,
        weight_B: Tensor,
        attached: Mapping[str, Tensor],
    ) -> Outputs:
        """Losses of a micro-batch, all of classes or all of open answers; see `OmniSapiens.forward`.

        Args:
            attached: descriptors and seeds; see `bam_inputs.Attach`.
        """
        descriptors, seeds_B = streamed(attached)
        delta_BH = self.bam(descriptors, seeds_B)
        if self.place_of_class is None:
            return self._answers(delta_BH, inputs, class_index_B, task_slot_B, answer_labels_BS, weight_B)
        class_B = self.place_of_class[class_index_B.clamp(min=0)].masked_fill(class_index_B == IGNORED, IGNORED)
        with torch.no_grad():
            h_BH = self.sft.pooled(inputs)
        return self._classes(h_BH, delta_BH, class_B)

    def _answers(self, delta_BH: Tensor, inputs: Mapping[str, Tensor], *targets: Tensor) -> Outputs:
        with attached(self.sft, delta_BH, self.bam.head, at=self.at):
            return self.sft(inputs, *targets)

    def _classes(self, h_BH: Tensor, delta_BH: Tensor, class_B: Tensor) -> Outputs:
        nothing = delta_BH.sum() * 0
        logits_BK = self.bam.class_logits(h_BH, delta_BH)
        has_class_B = class_B != IGNORED
        return Outputs(
            class_logits_B25=logits_BK,
            class_loss_sum=F.cross_entropy(logits_BK, class_B, ignore_index=IGNORED, reduction="sum"),
            answer_loss_sum=nothing,
            class_rows=has_class_B.sum(),
            answer_rows=nothing,
            answer_tokens=nothing,
            class_correct=(has_class_B & (logits_BK.argmax(dim=-1) == class_B)).sum(),
        )


def train_live(
    job: BamJob,
    datasets: Iterable[str],
    describe: Describe,
    folder: Path,
    work: Path,
    on_done: Callable[[str], None] = lambda dataset: None,
    on_line: Callable[[str, Metrics], None] = lambda dataset, metrics: None,
) -> tuple[list[TrainedBam], list[Drop]]:
    """Trains the adapters of these datasets one after the other, each into a folder of its name; finished ones are kept.

    Args:
        describe: picklable.
        work: folder of the stages, from which each goes on where it was interrupted.
        on_done: is called with each dataset that is finished or left out.
        on_line: is called with the dataset and each line of its log, while it trains.

    Returns:
        The adapters, and the rows that could not be read. A dataset of which no training row has a descriptor gets no adapters.

    Raises:
        DataError: descriptors are not what they should be, or a bad row, where the spec says to fail.
        TrainingError: a loss is not finite.
        EnvironmentMissing: workers were lost more often than `compute.max_failures` allows.
    """
    supply = Supply(replace(job, index=job.index.take(np.arange(0)), names={}))  # it needs no rows, and is sent to the workers
    jobs = {dataset: live_job(job, dataset, describe, work, supply) for dataset in datasets}
    lives = [live for live in jobs.values() if live is not None]
    left = [live for live in lives if live.made(folder) is None]
    for dataset, live in jobs.items():
        if live not in left:
            on_done(dataset)
    with ExitStack() as logs:
        for live in left:
            logs.enter_context(followed(Path(live.log), partial(_tell, live, on_done, on_line)))
        launch_stages([(live, live.folder) for live in left], work)
    trained = [live.made(folder) or _kept(live, folder / live.dataset, work) for live in lives]
    states = [state_in(live.folder, work) for live in lives]
    return trained, [drop for state in states if state is not None for drop in state.drops]


def _tell(live: LiveJob, on_done: Callable[[str], None], on_line: Callable[[str, Metrics], None], metrics: Metrics) -> None:
    """Hands on a line of a dataset's log, the last of which tells that the dataset is finished."""
    on_line(live.dataset, metrics)
    if metrics.get("epochs_done") == live.bam.bam.epochs:
        on_done(live.dataset)


def live_job(job: BamJob, dataset: str, describe: Describe, work: Path, supply: Supply) -> LiveJob | None:
    """The job of one dataset; None where no training row has a descriptor.

    Args:
        work: in which the stage gets a folder, named by all that the adapters depend on.
    """
    lines = job.lines(dataset)
    index = job.index.take(lines)
    described = {}
    for split in ("train", "validation"):
        names = [job.names[line] for line in lines[index.rows_of(split)].tolist() if line in job.names]
        if names:
            described[split] = describe_rows(describe, job.bam, names, dataset, split)
    outset = Outset.of(job, dataset, described) if "train" in described else None
    if outset is None:
        return None
    spec = job.spec.fitted_to(job.bam.batch_of(dataset), max_gradient_norm=None)
    own = replace(job, index=index, names={})  # workers need no other rows, and the job is sent to each
    return LiveJob(own, dataset, outset, describe, spec, index, supply, str(work / f"{dataset}-{outset.identity}" / LOG))


def _kept(live: LiveJob, folder: Path, work: Path) -> TrainedBam:
    """The adapters that a finished stage has left, written into their folder."""
    job, stage, lines = live.bam, left_by(live.folder, work), read_lines(Path(live.log))
    steps = [line for line in lines if "epochs_done" not in line]
    made = TrainedBam(
        live.dataset,
        folder,
        losses=tuple(line["loss"] for line in steps),
        validation=tuple(line["validation_loss"] for line in lines if "validation_loss" in line),
        best_epoch=stage.state.best_epoch or 0,
        without_gradients=not any(line["gradient_norm"] for line in steps),
    )
    save_trained(job, made, live.outset, load_adapters(stage.model, base=job.base, hidden=live.supply.hidden)[0])
    return made

"""Supervised fine-tuning in one worker: builds model, engine and hooks, and runs the loop (paper section 3.5, appendix B.1).

Both losses are trained together, L = L_cls + L_qa, or as in the released code one after the other: first what the class
rows train, then lm_head alone on the open answers. No Ray here; `launch` calls this in a Ray worker or in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Literal

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.batches import BatchSettings
from hba_ray.data.feed.order import Order
from hba_ray.errors import CheckpointError, TrainingError
from hba_ray.specs import ExperimentSpec
from hba_ray.training.deepspeed import join_process_group, start_engine
from hba_ray.training.hooks import CheckpointStore, StopWhenFlat, fit_from_newest
from hba_ray.training.loop import Feed, MakeBatches, Run, State

ModelPart = Literal["all", "classes", "answers"]
"""What of the model is trained: `all` that the spec makes trainable, `classes` all of it but lm_head, `answers` lm_head alone."""

_RELEASED_ROWS: dict[ModelPart, int] = {"all": 4, "classes": 4, "answers": 2}
"""Rows that the released code's two GPUs take at a time: two each on classes, one each on open answers. With its batches of
512 (paper appendix C.2) and 16 rows (`run_qa.sh`) it accumulates 128 and 8 times."""

_SMALLEST_DEVIATION = 100
"""A dimension of the states is divided by its deviation, but by no less than the average deviation over this."""


@dataclass(frozen=True)
class SftJob:
    """Everything that a worker needs. Picklable.

    Attributes:
        backbone: folder or hub id.
        log: file of the step log, which rank 0 writes.
        init: folder of a trained model to start from; None is the backbone with fresh LoRA and heads.
        part: what of the model is trained.
        checkpoint: folder of a checkpoint besides those of the store; see `hooks.Checkpoints.other`.
    """

    spec: ExperimentSpec
    backbone: str
    index: AtlasIndex
    log: str
    init: str | None = None
    part: ModelPart = "all"
    checkpoint: str | None = None

    def settings_for(self, split: str) -> BatchSettings:
        """How a split's rows become micro-batches."""
        from hba_ray.models.backbone import context_length

        everywhere = self._modalities() if self.spec.compute.workers > 1 and self._needs_one_order else ()
        purpose = "train" if split == "train" else "validation"
        return BatchSettings.of(self.spec, purpose, context=context_length(self.backbone), every_batch_has=everywhere)

    @property
    def _needs_one_order(self) -> bool:
        """Whether workers must run the same modules in the same order.

        ZeRO-3 gathers weights as modules run. ZeRO-2 puts gradients into buckets as they come, and adds up
        the workers' buckets element by element: in another order, it adds what does not belong together.
        """
        model = self.spec.model
        trains_towers = model.train == "all" or (model.train == "lora" and model.lora.scope == "all")
        return self.spec.compute.zero == 3 or (self.spec.compute.zero == 2 and trains_towers)

    def train(self, make_batches: MakeBatches, store: CheckpointStore, rank: int = 0, world: int = 1) -> State:
        return train_sft(self, make_batches, store, rank=rank, world=world)

    def order(self, rank: int, world: int) -> Order:
        """The order of the training rows for one of `world` workers."""
        sft, micro_batch = self.spec.sft, self.spec.compute.micro_batch
        return Order("train", sft.shuffle_window, micro_batch, seed=self.spec.seed, batch=sft.batch, rank=rank, world=world)

    @property
    def schedule_steps(self) -> int:
        """Steps that the cosine is stretched over: the optimiser steps of all epochs, or the released code's micro-batches."""
        sft, rows = self.spec.sft, len(self.index.rows_of("train"))
        return sft.epochs * ceil(rows / (_RELEASED_ROWS[self.part] if sft.scheduler_horizon == "micro_batches" else sft.batch))

    def _modalities(self) -> tuple[str, ...]:
        """The modalities that together run every tower which some row runs; images go through the tower of videos."""
        signatures = self.index.table.column("modality_signature").unique().to_pylist()
        shown = {name for signature in signatures for name in signature.split("_")} & set(self.spec.atlas.modalities)
        return tuple(name for name, uses in (("audio", {"audio"}), ("video", {"video", "image"})) if shown & uses)


def train_sft(job: SftJob, make_batches: MakeBatches, store: CheckpointStore, *, rank: int = 0, world: int = 1) -> State:
    """Trains from the newest checkpoint, or from the start, to the end.

    Raises:
        DataError: a bad row, where the spec says to fail.
        TrainingError: the loss is not finite.
        CheckpointError: the newest checkpoint is damaged, or of other settings of `compute`.
    """
    import torch

    spec, bf16 = job.spec, job.spec.uses_bf16
    feed = Feed(job.index, job.order(rank, world), make_batches)
    torch.manual_seed(spec.seed)  # the same LoRA and heads on every worker
    model = build_model(spec, job.backbone, bf16=bf16)
    if job.init:
        from hba_ray.models.checkpoints import load_model

        load_model(model, Path(job.init))
    kept = freeze_other_parts(model, job.part)
    join_process_group(gpu=spec.compute.gpus_per_worker > 0)
    if spec.model.heads_learn_on == "standardised":
        _standardise(model, feed, keep=bool(job.init), device="cuda" if spec.compute.gpus_per_worker else "cpu")
    engine = start_engine(model, spec, steps=job.schedule_steps, bf16=bf16)
    run = Run(
        engine=engine,
        feed=feed,
        epochs=spec.sft.epochs,
        accumulation=spec.accumulation,
        micro_batch=spec.compute.micro_batch,
        seed=spec.seed,
        class_weight=spec.sft.class_loss_weight,
        answer_weight=spec.sft.answer_loss_weight,
        rank=rank,
    )
    save_best, other = partial(_save_best, model, kept, spec), Path(job.checkpoint) if job.checkpoint else None
    patience = [StopWhenFlat(spec.sft.patience)] if spec.sft.patience else []
    return fit_from_newest(run, store, save_best, Path(job.log), spec.compute, world=world, other=other, hooks=patience)


def _standardise(model: Any, feed: Feed, *, keep: bool, device: str) -> None:
    """Lets heads learn on states whose every dimension has mean 0 and deviation 1 over the rows of the validation split that have a
    class. A run that goes on takes the same ones, from the model as it was before training.

    Raises:
        TrainingError: there are fewer than two such rows.
    """
    import torch

    model.to(device).eval()
    sums_3H = torch.zeros(3, model.hidden, dtype=torch.float64, device=device)
    with torch.no_grad():
        for batch in feed.validation():
            states_BH = model.pooled(batch.inputs_on(device))[(batch.class_index >= 0) & (batch.weight > 0)].double()
            sums_3H += torch.stack([torch.ones_like(states_BH).sum(0), states_BH.sum(0), states_BH.square().sum(0)])
    torch.distributed.all_reduce(sums_3H)
    rows = int(sums_3H[0, 0])
    if rows < 2:
        what = f"the validation split has {rows} rows with a class to take mean and deviation from"
        raise TrainingError("model.heads_learn_on", what, "set it to states, or give a validation split")
    mean_H, square_H = sums_3H[1] / rows, sums_3H[2] / rows
    deviation_H = (square_H - mean_H.square()).clamp_min(0).sqrt()
    smallest = deviation_H.mean() / _SMALLEST_DEVIATION
    model.standardise(mean_H, deviation_H.clamp_min(smallest), keep=keep)


def build_model(spec: ExperimentSpec, backbone: str, *, bf16: bool) -> Any:
    """The model that a spec trains, with fresh LoRA and heads, which are drawn from torch's random state.

    Args:
        bf16: whether its weights are; a model that is loaded to be merged has fp32 ones whatever the spec computes in.
    """
    import torch

    from hba_ray.data.tasks import Heads
    from hba_ray.models.backbone import allow_tf32, apply_training, load_backbone
    from hba_ray.models.omni import OmniSapiens

    allow_tf32(spec.precision == "tf32")
    attention = spec.model.attention if bf16 == spec.uses_bf16 else "sdpa"
    thinker = load_backbone(backbone, dtype=torch.bfloat16 if bf16 else torch.float32, attention=attention)
    hidden = int(getattr(thinker.config.text_config, "hidden_size"))  # noqa: B009 - its type is that of any config
    trained = apply_training(thinker, spec.model, gradient_checkpointing=spec.compute.gradient_checkpointing)
    model = OmniSapiens(trained, hidden, media_to_backbone=spec.model.media_to_backbone, heads=Heads.of(spec.atlas))
    if spec.sft.mode == "staged":
        model.thinker.lm_head.weight.requires_grad_(True)
    return model


def freeze_other_parts(model: Any, part: ModelPart) -> list[Any]:
    """Freezes what `build_model` made trainable, except for one part of it.

    Returns:
        All weights that were trainable before: a checkpoint holds them, whatever part is trained.

    Raises:
        CheckpointError: lm_head is to be trained apart from the rest, but is the same tensor as the backbone's embeddings.
    """
    kept = [weight for weight in model.parameters() if weight.requires_grad]
    lm_head = model.thinker.lm_head.weight
    if part != "all" and model.thinker.get_input_embeddings().weight is lm_head:
        what = "its lm_head is tied to its embeddings, so it cannot be trained apart from them"
        raise CheckpointError("model.backbone", what, "set sft.mode=joint")
    for weight in kept:
        weight.requires_grad_(part == "all" or (weight is lm_head) == (part == "answers"))
    return kept


def _save_best(model: Any, kept: list[Any], spec: ExperimentSpec, folder: Path, state: State) -> None:
    """Writes the weights of all parts on rank 0; under ZeRO-3 all ranks gather them first."""
    from hba_ray.models.checkpoints import save_model

    with whole(kept, zero=spec.compute.zero), _trainable(kept):
        if is_rank_zero():
            save_model(model, folder, {"epoch": state.best_epoch, "validation_loss": state.best_loss, "step": state.step})


def whole(weights: list[Any], *, zero: int) -> AbstractContextManager[object]:
    """A block in which these weights are whole on every rank, under ZeRO-3 too."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=None) if zero == 3 else nullcontext()


@contextmanager
def _trainable(weights: list[Any]) -> Iterator[None]:
    """Makes these weights trainable inside the block, since `save_model` writes what is trainable."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, trained in zip(weights, before, strict=True):
            weight.requires_grad_(trained)


def is_rank_zero() -> bool:
    import torch.distributed

    return torch.distributed.get_rank() == 0

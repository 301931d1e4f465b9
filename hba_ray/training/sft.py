"""Supervised fine-tuning in one worker: model, engine, hooks, loop (paper section 3.5, appendix B.1).

L = L_cls + L_qa, jointly, or the released code's two parts: classes first, then lm_head on the open answers.
No Ray here; `launch` calls it in a Ray worker or in this process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.batches import BatchSettings
from hba_ray.data.order import Order
from hba_ray.errors import CheckpointError
from hba_ray.specs import ExperimentSpec
from hba_ray.training.deepspeed import join_process_group, start_engine
from hba_ray.training.hooks import Checkpoints, StepLog, StopWhenFlat, Store
from hba_ray.training.loop import Feed, Hook, Make, Run, State, fit

Part = Literal["all", "classes", "answers"]
"""What of the model is trained: all that the spec says, that without lm_head, or lm_head alone."""


@dataclass(frozen=True)
class SftJob:
    """Everything a worker needs, picklable.

    Attributes:
        backbone: folder or hub id.
        log: file of the step log, which rank 0 writes.
        init: folder of a trained model to start from; by default the backbone with fresh LoRA and heads.
        part: of a staged recipe.
    """

    spec: ExperimentSpec
    backbone: str
    index: AtlasIndex
    log: str
    init: str | None = None
    part: Part = "all"

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

    def order(self, rank: int, world: int) -> Order:
        window, micro_batch = self.spec.sft.shuffle_window, self.spec.compute.micro_batch
        return Order("train", window, micro_batch, seed=self.spec.seed, rank=rank, world=world)

    def _modalities(self) -> tuple[str, ...]:
        """What sets every tower to work that any row sets to work; images go through the one of videos."""
        signatures = self.index.table.column("modality_signature").unique().to_pylist()
        shown = {name for signature in signatures for name in signature.split("_")} & set(self.spec.atlas.modalities)
        return tuple(name for name, uses in (("audio", {"audio"}), ("video", {"video", "image"})) if shown & uses)


def train_sft(job: SftJob, make: Make, store: Store, *, rank: int = 0, world: int = 1) -> State:
    """Trains from the newest checkpoint of `store`, or from the start, to the end.

    Raises:
        DataError: a bad row, where the spec says to fail.
        TrainingError: the loss is not finite.
        CheckpointError: the newest checkpoint is damaged, or of other settings of `compute`.
    """
    import torch

    spec, bf16 = job.spec, uses_bf16(job.spec)
    feed = Feed(job.index, job.order(rank, world), make)
    torch.manual_seed(spec.seed)  # the same LoRA and heads on every worker
    model = build_model(spec, job.backbone, bf16=bf16)
    if job.init:
        from hba_ray.models.checkpoints import load_model

        load_model(model, Path(job.init))
    kept = freeze_other_parts(model, job.part)
    join_process_group(gpu=spec.compute.gpus_per_worker > 0)
    engine = start_engine(model, spec, steps=schedule_steps(spec, feed, world), bf16=bf16)
    log = StepLog(Path(job.log))
    scratch = tempfile.TemporaryDirectory(prefix="hba-best-")
    layout = {"workers": world, "zero": spec.compute.zero, "micro_batch": spec.compute.micro_batch}
    checkpoints = Checkpoints(store, partial(_save_best, model, kept, spec), Path(scratch.name), layout, spec.compute.checkpoint_every)
    hooks: list[Hook] = [log, *([StopWhenFlat(spec.sft.patience)] if spec.sft.patience else []), checkpoints]
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
        hooks=hooks,
    )
    with scratch:
        checkpoints.restore(run)
        if rank == 0:
            log.start(run.state.step, run.state.epoch)
        state = fit(run)
    engine.destroy()
    return state


def uses_bf16(spec: ExperimentSpec) -> bool:
    return spec.uses_bf16


def build_model(spec: ExperimentSpec, backbone: str, *, bf16: bool) -> Any:
    """The model that a spec trains, with fresh LoRA and heads; seed torch before."""
    import torch

    from hba_ray.models.backbone import apply_training, load_backbone
    from hba_ray.models.omni import OmniSapiens

    thinker = load_backbone(backbone, dtype=torch.bfloat16 if bf16 else torch.float32)
    hidden = int(getattr(thinker.config.text_config, "hidden_size"))  # noqa: B009 - its type is that of any config
    trained = apply_training(thinker, spec.model, gradient_checkpointing=spec.compute.gradient_checkpointing)
    model = OmniSapiens(trained, hidden, media_to_backbone=spec.model.media_to_backbone, split_surprise=spec.atlas.split_surprise)
    if spec.sft.mode == "staged":
        model.thinker.lm_head.weight.requires_grad_(True)
    return model


def freeze_other_parts(model: Any, part: Part) -> list[Any]:
    """Leaves gradients to one part of what `build_model` made trainable.

    Returns:
        all of that, which a checkpoint of any part holds.

    Raises:
        CheckpointError: lm_head is to be trained for itself, and the backbone's embeddings are the same tensor.
    """
    kept = [weight for weight in model.parameters() if weight.requires_grad]
    lm_head = model.thinker.lm_head.weight
    if part != "all" and model.thinker.get_input_embeddings().weight is lm_head:
        what = "its lm_head is tied to its embeddings, so it cannot be trained for itself"
        raise CheckpointError("model.backbone", what, "set sft.mode=joint")
    for weight in kept:
        weight.requires_grad_(part == "all" or (weight is lm_head) == (part == "answers"))
    return kept


def schedule_steps(spec: ExperimentSpec, feed: Feed, world: int) -> int:
    """What the cosine is stretched over: optimiser steps, or the released code's count of micro-batches."""
    per_epoch = feed.micro_batches_per_epoch
    if spec.sft.scheduler_horizon == "micro_batches":
        return spec.sft.epochs * per_epoch * world
    return spec.sft.epochs * -(-per_epoch // spec.accumulation)


def _save_best(model: Any, kept: list[Any], spec: ExperimentSpec, folder: Path, state: State) -> None:
    """Rank 0 writes the trained tensors, those of other parts too; under ZeRO-3 all ranks first bring them together."""
    import deepspeed

    from hba_ray.models.checkpoints import save_model

    gathered = deepspeed.zero.GatheredParameters(kept, modifier_rank=None) if spec.compute.zero == 3 else nullcontext()
    with gathered, _trainable(kept):
        if _is_rank_zero():
            save_model(model, folder, {"epoch": state.best_epoch, "validation_loss": state.best_loss, "step": state.step})


@contextmanager
def _trainable(weights: list[Any]) -> Iterator[None]:
    """What is trainable is what a checkpoint holds; frozen parts are so again afterwards."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, trained in zip(weights, before, strict=True):
            weight.requires_grad_(trained)


def _is_rank_zero() -> bool:
    import torch.distributed

    return torch.distributed.get_rank() == 0

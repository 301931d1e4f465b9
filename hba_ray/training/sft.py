"""Supervised fine-tuning in one worker: model, engine, hooks, loop (paper section 3.5, appendix B.1).

L = L_cls + L_qa, jointly. No Ray here; `launch` calls it in a Ray worker or in this process.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.batches import BatchSettings
from hba_ray.data.windows import Order
from hba_ray.specs import ExperimentSpec
from hba_ray.training.deepspeed import join_process_group, start_engine
from hba_ray.training.feed import Feed, Make
from hba_ray.training.hooks import Checkpoints, StepLog, StopWhenFlat, Store
from hba_ray.training.loop import Hook, Run, State, fit


@dataclass(frozen=True)
class SftJob:
    """Everything a worker needs, picklable.

    Attributes:
        backbone: folder or hub id.
        log: file of the step log, which rank 0 writes.
        init: folder of a trained model to start from; by default the backbone with fresh LoRA and heads.
    """

    spec: ExperimentSpec
    backbone: str
    index: AtlasIndex
    log: str
    init: str | None = None

    def settings_for(self, split: str) -> BatchSettings:
        """How a split's rows become micro-batches."""
        atlas, compute = self.spec.atlas, self.spec.compute
        return BatchSettings(
            media=atlas.media,
            modalities=atlas.modalities,
            micro_batch=compute.micro_batch,
            shuffle=split == "train",
            answer_case=self.spec.sft.answer_case,
            on_bad_row=atlas.on_bad_row,
            every_batch_has=self._modalities() if compute.workers > 1 and self._needs_one_order else (),
        )

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
    join_process_group(gpu=spec.compute.gpus_per_worker > 0)
    engine = start_engine(model, spec, steps=schedule_steps(spec, feed, world), bf16=bf16)
    log = StepLog(Path(job.log))
    scratch = tempfile.TemporaryDirectory(prefix="hba-best-")
    layout = {"workers": world, "zero": spec.compute.zero, "micro_batch": spec.compute.micro_batch}
    checkpoints = Checkpoints(store, partial(_save_best, model, spec), Path(scratch.name), layout, spec.compute.checkpoint_every)
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
    return OmniSapiens(trained, hidden, media_to_backbone=spec.model.media_to_backbone, split_surprise=spec.atlas.split_surprise)


def schedule_steps(spec: ExperimentSpec, feed: Feed, world: int) -> int:
    """What the cosine is stretched over: optimiser steps, or the released code's count of micro-batches."""
    per_epoch = feed.micro_batches_per_epoch
    if spec.sft.scheduler_horizon == "micro_batches":
        return spec.sft.epochs * per_epoch * world
    return spec.sft.epochs * -(-per_epoch // spec.accumulation)


def _save_best(model: Any, spec: ExperimentSpec, folder: Path, state: State) -> None:
    """Rank 0 writes the trained tensors; under ZeRO-3 all ranks first bring them together."""
    import deepspeed

    from hba_ray.models.checkpoints import save_model

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gathered = deepspeed.zero.GatheredParameters(trained, modifier_rank=None) if spec.compute.zero == 3 else nullcontext()
    with gathered:
        if not _is_rank_zero():
            return
        save_model(model, folder, {"epoch": state.best_epoch, "validation_loss": state.best_loss, "step": state.step})


def _is_rank_zero() -> bool:
    import torch.distributed

    return torch.distributed.get_rank() == 0

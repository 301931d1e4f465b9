"""The SFT step: trains heads and decoder, and follows the step log into the bar and the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hba_ray.runtime.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.follow import Metrics, followed
from hba_ray.sweeps.steps import backbone, describe
from hba_ray.sweeps.steps.base import STEP_LOG, Context, Draft, Step, count_drops, shown_metrics, training_resources

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex


def plan(draft: Draft) -> Step:
    spec = draft.spec
    what = f"{spec.sft.epochs} epochs of {spec.model.train} training, batch {spec.sft.batch}, lr {spec.sft.lr:g}"
    return draft.add("sft", identity(draft, spec), what, resources=training_resources(spec), uses_ray=True)


def identity(draft: Draft, spec: ExperimentSpec) -> dict[str, Any]:
    """What supervised training with the settings of `spec` depends on."""
    return {
        "atlas": draft["atlas"].fingerprint,
        "backbone": backbone.identity(draft),
        "media": spec.atlas.media.identity(),
        "modalities": sorted(spec.atlas.modalities),
        "model": spec.model.model_dump(mode="json", exclude={"backbone", "tiny"}),
        "seed": spec.seed,
        "sft": spec.sft.identity(),
        **describe.prompt_identity(spec),
    }


def make(context: Context) -> dict[str, Any]:
    return train(context, context.spec, context.index, name="sft")


def train(context: Context, spec: ExperimentSpec, index: AtlasIndex, *, name: str, init: str | None = None) -> dict[str, Any]:
    """Trains on an index, followed by the bar and the tracker.

    Args:
        init: folder of a trained model to start from; by default the backbone with fresh LoRA and heads.
    """
    from hba_ray.data.windows import micro_batches_per_epoch
    from hba_ray.training.launch import launch_sft
    from hba_ray.training.sft import SftJob

    log = context.folder / STEP_LOG
    job = SftJob(spec, context.backbone, index, str(log), init)
    per_epoch = -(-micro_batches_per_epoch(job.index, job.order(0, max(1, spec.compute.workers))) // spec.accumulation)
    with progress(name, total=per_epoch * spec.sft.epochs) as bar, followed(log, lambda metrics: _show(metrics, bar, context, name)):
        trained = launch_sft(job, context.folder)
    state = trained.state
    return {
        "optimizer_steps": state.step,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "best_validation_loss": state.best_loss,
        "drops": count_drops(state.drops),
    }


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    loss = facts["best_validation_loss"]
    validation = f", validation loss {loss:.4f}" if loss is not None else " (no validation split)"
    return [
        f"SFT took {facts['optimizer_steps']} optimiser steps; epoch {facts['best_epoch'] + 1} of {facts['epochs']} is kept{validation}."
    ]


def _show(metrics: Metrics, bar: Bar, context: Context, name: str) -> None:
    step = int(metrics["step"])
    if "epochs_done" not in metrics:
        bar.reach(step)
        bar.show(**{key: metrics[key] for key in ("loss", "class_accuracy", "rows_per_second") if key in metrics})
    context.log(*shown_metrics(name, metrics))

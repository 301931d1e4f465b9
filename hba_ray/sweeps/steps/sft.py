"""The SFT step: trains heads and decoder, and follows the step log into the bar and the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hba_ray.runtime.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.follow import Metrics, followed
from hba_ray.sweeps.steps import backbone
from hba_ray.sweeps.steps.base import STEP_LOG, Context, Draft, Step, count_drops, shown_metrics, training_resources


def plan(draft: Draft) -> Step:
    spec = draft.spec
    identity = {
        "atlas": draft["atlas"].fingerprint,
        "backbone": backbone.identity(draft),
        "media": spec.atlas.media.identity(),
        "modalities": sorted(spec.atlas.modalities),
        "model": spec.model.model_dump(mode="json", exclude={"backbone", "tiny"}),
        "seed": spec.seed,
        "sft": spec.sft.identity(),
    }
    what = f"{spec.sft.epochs} epochs of {spec.model.train} training, batch {spec.sft.batch}, lr {spec.sft.lr:g}"
    return draft.add("sft", identity, what, resources=training_resources(spec), uses_ray=True)


def make(context: Context) -> dict[str, Any]:
    from hba_ray.data.windows import micro_batches_per_epoch
    from hba_ray.training.launch import launch_sft
    from hba_ray.training.sft import SftJob

    spec, log = context.spec, context.folder / STEP_LOG
    job = SftJob(spec, context.backbone, context.index, str(log))
    per_epoch = -(-micro_batches_per_epoch(job.index, job.order(0, max(1, spec.compute.workers))) // spec.accumulation)
    with progress("sft", total=per_epoch * spec.sft.epochs) as bar, followed(log, lambda metrics: _show(metrics, bar, context)):
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


def _show(metrics: Metrics, bar: Bar, context: Context) -> None:
    step = int(metrics["step"])
    if "epochs_done" not in metrics:
        bar.reach(step)
        bar.show(**{name: metrics[name] for name in ("loss", "class_accuracy", "rows_per_second") if name in metrics})
    context.log(*shown_metrics("sft", metrics))

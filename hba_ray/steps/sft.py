"""The SFT step: trains heads and decoder, and follows the step log into the bar and the tracker.

In the released code's order it is two: `sft classes`, then `sft`, which trains lm_head alone and holds all of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.errors import SpecError
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec, identity_values
from hba_ray.steps import backbone, describe
from hba_ray.steps.base import (
    STEP_LOG,
    Context,
    Draft,
    Step,
    check_rows,
    check_some_left,
    digest_checkpoint,
    losses,
    shown_metrics,
    training_resources,
)
from hba_ray.store.folders import copy_folder
from hba_ray.store.follow import Metrics, followed

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.training.sft import Part

CLASSES = "classes"


def plan(draft: Draft) -> Step:
    """
    Raises:
        CheckpointError: the model that is to be taken is not there.
    """
    spec, named = draft.spec, identity(draft, draft.spec)
    if spec.sft.checkpoint is not None:
        named["checkpoint"] = digest_checkpoint(draft, spec.sft.checkpoint, "sft.checkpoint")
        return draft.add("sft", named, f"take the model in {spec.sft.checkpoint}")
    what = f"{spec.sft.epochs} epochs of {spec.model.train} training, batch {spec.sft.batch}, lr {spec.sft.lr:g}"
    rest: dict[str, Any] = {"resources": training_resources(spec), "uses_ray": True}
    if spec.sft.mode == "joint":
        return draft.add("sft", named, what, **rest)
    first = draft.add("sft", {**named, "part": CLASSES}, f"{what}, on classes", part=CLASSES, **rest)
    what = f"{spec.sft.answer_epochs} epochs of lm_head alone on open answers, batch {spec.sft.answer_batch}"
    return draft.add("sft", {**named, "init": first.fingerprint}, what, **rest)


def identity(draft: Draft, spec: ExperimentSpec) -> dict[str, Any]:
    """What supervised training with the settings of `spec` depends on."""
    return {
        "atlas": draft["atlas"].fingerprint,
        "backbone": backbone.identity(draft),
        "media": spec.atlas.media.identity(),
        "modalities": sorted(spec.atlas.modalities),
        "model": identity_values(spec.model, exclude={"backbone", "tiny"}),
        "seed": spec.seed,
        "sft": spec.sft.identity(),
        **describe.prompt_identity(spec),
    }


def fitted(spec: ExperimentSpec, batch: int, **changes: Any) -> ExperimentSpec:
    """The spec with another batch and other changes of `sft`: fewer workers and smaller micro-batches where the batch is small."""
    micro_batch = gcd(spec.compute.micro_batch, batch)
    workers = gcd(spec.compute.workers, batch // micro_batch) if spec.compute.workers else 0
    compute = spec.compute.model_copy(update={"micro_batch": micro_batch, "workers": workers})
    return spec.model_copy(update={"sft": spec.sft.model_copy(update={"batch": batch, **changes}), "compute": compute})


def make(context: Context) -> dict[str, Any]:
    spec = context.spec
    if spec.sft.checkpoint is not None:
        from hba_ray.training.imported import take_model

        given = Path(spec.sft.checkpoint).expanduser()
        with progress("sft", total=None):
            take_model(spec, context.backbone, given, context.folder / "model")
        return {"taken_from": given.name}
    if spec.sft.mode == "joint":
        return train(context, spec, context.index, name="sft")
    index = context.index.of_kind(open_answers=context.part != CLASSES)
    if context.part == CLASSES:
        if not len(index.rows_of("train")):
            what = "is 'staged', and no training row of the atlas has a class to begin with"
            raise SpecError("sft.mode", what, "set sft.mode=joint, or take in datasets with classes")
        return train(context, spec, index, name=f"sft {CLASSES}", part="classes")
    before = context.folders[f"sft {CLASSES}"] / "model"
    if not len(index.rows_of("train")):
        copy_folder(before, context.folder / "model")
        return {"without_answers": True}
    answers = fitted(spec, spec.sft.answer_batch, epochs=spec.sft.answer_epochs)
    return train(context, answers, index, name="sft", init=str(before), part="answers")


def train(
    context: Context, spec: ExperimentSpec, index: AtlasIndex, *, name: str, init: str | None = None, part: Part = "all"
) -> dict[str, Any]:
    """Trains on an index, followed by the bar and the tracker.

    Args:
        init: folder of a trained model to start from; by default the backbone with fresh LoRA and heads.
        part: what of the model.

    Raises:
        DataError: there is nothing to train on, or to score later.
    """
    from hba_ray.data.order import micro_batches_per_epoch
    from hba_ray.training.launch import launch_sft
    from hba_ray.training.sft import SftJob

    check_rows(index, "train")
    check_rows(context.whole_index, spec.evaluate.split)  # and not hours later
    log = context.folder / STEP_LOG
    job = SftJob(spec, context.backbone, index, str(log), init, part)
    per_epoch = -(-micro_batches_per_epoch(job.index, job.order(0, max(1, spec.compute.workers))) // spec.accumulation)
    with progress(name, total=per_epoch * spec.sft.epochs) as bar, followed(log, lambda metrics: _show(metrics, bar, context, name)):
        trained = launch_sft(job, context.folder)
    state = trained.state
    check_some_left("train", len(index.rows_of("train")), state.drops)
    return {
        "optimizer_steps": state.step,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "best_validation_loss": state.best_loss,
        "lost": losses(state.drops),
        "part": part,
    }


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    if "taken_from" in facts:
        return [f"SFT: nothing was trained; the model is that of {facts['taken_from']}."]
    if "without_answers" in facts:
        return ["SFT: no row has an open answer, so lm_head is the backbone's."]
    of = {"all": "", "classes": " on classes", "answers": " of lm_head on open answers"}[facts["part"]]
    loss = facts["best_validation_loss"]
    validation = f", validation loss {loss:.4f}" if loss is not None else " (no validation split)"
    steps, kept = facts["optimizer_steps"], f"epoch {facts['best_epoch'] + 1} of {facts['epochs']} is kept"
    return [f"SFT took {steps} optimiser steps{of}; {kept}{validation}."]


def _show(metrics: Metrics, bar: Bar, context: Context, name: str) -> None:
    step = int(metrics["step"])
    if "epochs_done" not in metrics:
        bar.reach(step)
        bar.show(**{key: metrics[key] for key in ("loss", "class_accuracy", "rows_per_second") if key in metrics})
    context.log(*shown_metrics(name, metrics))

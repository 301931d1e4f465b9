"""Supervised steps: `sft` trains heads and decoder, `transfer` lets each held-out dataset be learnt briefly for itself.

In the released code's order SFT is two steps: `sft classes`, then `sft`, which trains lm_head alone and holds all of the
model. A transfer step starts from the SFT model, or from the backbone with fresh heads; its arm is evaluated on the
held-out datasets alone, each predicted by its own model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.errors import SpecError
from hba_ray.evaluation.arms import transferred
from hba_ray.models.settings import sources_of, write_settings
from hba_ray.models.size.estimates import Effort
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec, identity_values
from hba_ray.steps.base import (
    STEP_LOG,
    Context,
    Draft,
    Result,
    Step,
    StepKind,
)
from hba_ray.steps.held_out import held_out
from hba_ray.steps.inputs import backbone, describe
from hba_ray.steps.inputs.drops import check_rows, check_some_left, losses
from hba_ray.steps.metrics import shown_metrics
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.model import Rows, training_needs
from hba_ray.steps.needs.work import sft_work
from hba_ray.steps.stages.resume import always_zero, begins, mention
from hba_ray.store.folders import copy_folder, read_lines, read_object
from hba_ray.store.follow import Metrics, followed

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.training.sft import ModelPart

IN_FP32 = "gradients of bf16 engines are added up in fp32, and windows of the towers share calls of attention"
CLASSES = "classes"
CHECKPOINTS = ("checkpoint", "checkpoint.draft", "checkpoint.former", "train")
"""Folders of checkpoints in the folder of a step."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult(Result):
    """What a step of supervised training says.

    Attributes:
        optimizer_steps, epochs: that were taken.
        best_epoch: whose model was kept, counted from 0; `best_validation_loss` is its loss, where there is a validation split.
        part: of the model that was trained.
        taken_from: folder of the model that took the place of training.
        without_answers: no row had an open answer, so that lm_head is the backbone's.
        without_gradients: every gradient was 0.
        at_rate_zero: every step was taken at the learning rate with which warm-up begins.
    """

    optimizer_steps: int = 0
    epochs: int = 0
    best_epoch: int | None = None
    best_validation_loss: float | None = None
    part: str = "all"
    taken_from: str | None = None
    without_answers: bool = False
    without_gradients: bool = False
    at_rate_zero: bool = False


class SftSteps(StepKind[TrainingResult]):
    """Trains the classifier heads and the decoder (paper section 3.5)."""

    name = "sft"
    version = 4
    raised = IN_FP32
    result_type = TrainingResult
    working = CHECKPOINTS
    check = staticmethod(backbone.check_window)

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        return _reached(folder, spec.sft.epochs)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        return [] if spec.sft.checkpoint is not None else [*backbone.needs_weights(spec), *training_needs(spec, "sft")]

    def work(self, step: Step, rows: Rows) -> Effort | None:
        assert step.spec is not None
        return None if step.spec.sft.checkpoint is not None else sft_work(step.spec, rows, part=step.part)

    def plan(self, draft: Draft) -> None:
        """
        Raises:
            CheckpointError: the model that is to be taken is not there.
        """
        spec, named = draft.spec, _identity(draft, draft.spec)
        if spec.sft.checkpoint is not None:
            named["checkpoint"] = backbone.digest_checkpoint(draft, spec.sft.checkpoint, "sft.checkpoint")
            source = next((source for source in sources_of(spec) if source.key == "sft.checkpoint"), None)
            run_as = f"run as it was trained: {source.in_words(spec)}" if source else "which holds no settings, so those of the spec stand"
            draft.add(self, named, f"take the model in {spec.sft.checkpoint}, {run_as}")
            return
        what = f"{spec.sft.epochs} epochs of {spec.model.train} training, batch {spec.sft.batch}, lr {spec.sft.lr:g}"
        if spec.sft.mode == "joint":
            draft.add(self, named, what, holds_workers=True)
            return
        first = draft.add(self, {**named, "part": CLASSES}, f"{what}, on classes", part=CLASSES, holds_workers=True)
        what = f"{spec.sft.answer_epochs} epochs of lm_head alone on open answers, batch {spec.sft.answer_batch}"
        draft.add(self, {**named, "init": first.fingerprint}, what, holds_workers=True)

    def make(self, context: Context) -> TrainingResult:
        spec, step = context.spec, context.step
        if spec.sft.checkpoint is not None:
            return _take(context, Path(spec.sft.checkpoint).expanduser())
        if spec.sft.mode == "joint":
            return _train(context, spec, context.index)
        index = context.index.of_kind(open_answers=step.part != CLASSES)
        if step.part == CLASSES:
            if not len(index.rows_of("train")):
                what = "is 'staged', and no training row of the atlas has a class to begin with"
                raise SpecError("sft.mode", what, "set sft.mode=joint, or take in datasets with classes")
            return _train(context, spec, index, part="classes")
        before = context.folder_of(f"{self.name} {CLASSES}") / "model"
        if not len(index.rows_of("train")):
            copy_folder(before, context.folder / "model")
            return TrainingResult(without_answers=True)
        answers = spec.fitted_to(spec.sft.answer_batch, epochs=spec.sft.answer_epochs)
        return _train(context, answers, index, init=str(before), part="answers")

    def notes(self, spec: ExperimentSpec, result: TrainingResult) -> list[str]:
        if result.taken_from is not None:
            return [f"SFT: nothing was trained; the model is that of {result.taken_from}."]
        if result.without_answers:
            return ["SFT: no row has an open answer, so lm_head is the backbone's."]
        of = {"all": "", "classes": " on classes", "answers": " of lm_head on open answers"}[result.part]
        loss = result.best_validation_loss
        validation = f", validation loss {loss:.4f}" if loss is not None else " (no validation split)"
        kept = f"epoch {(result.best_epoch or 0) + 1} of {result.epochs} is kept"
        return [f"SFT took {result.optimizer_steps} optimiser steps{of}; {kept}{validation}.", *_nothing_learnt("SFT", result)]


class TransferSteps(StepKind[TrainingResult]):
    """Trains briefly on one held-out dataset at a time (paper sections 4.2 and D.2)."""

    name = "transfer"
    version = 5
    unversioned = 2
    raised = IN_FP32
    result_type = TrainingResult
    working = CHECKPOINTS
    check = staticmethod(backbone.check_window)

    def plan(self, draft: Draft) -> None:
        for dataset in held_out(draft.spec):
            spec = transfer_spec(draft.spec, dataset)
            init = draft["sft"].fingerprint if _starts_from_sft(spec) else None
            identity = {**_identity(draft, spec), "dataset": dataset, "init": init}
            what = f"{spec.sft.epochs} epochs on {dataset}, batch {spec.sft.batch}, from the {'SFT model' if init else 'backbone'}"
            draft.add(self, identity, what, part=dataset, holds_workers=True)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        trained = transfer_spec(spec, min(held_out(spec), key=spec.transfer.batch_of))
        return [*backbone.needs_weights(spec), *training_needs(trained, "transfer")]

    def work(self, step: Step, rows: Rows) -> Effort | None:
        assert step.spec is not None and step.part is not None
        return sft_work(transfer_spec(step.spec, step.part), rows, only=step.part)

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        return _reached(folder, None)  # the folder does not say of which dataset it is

    def make(self, context: Context) -> TrainingResult:
        spec = transfer_spec(context.spec, context.part)
        init = str(context.folder_of("sft") / "model") if _starts_from_sft(spec) else None
        return _train(context, spec, context.whole_index.only(context.part), init=init)

    def notes(self, spec: ExperimentSpec, result: TrainingResult) -> list[str]:
        start = "the SFT model" if _starts_from_sft(spec) else "the backbone with fresh heads"
        taken = f"{result.optimizer_steps} optimiser steps, {result.epochs} epochs on one held-out dataset"
        return [f"Transfer from {start}: {taken}.", *_nothing_learnt("Transfer", result)]


def _nothing_learnt(name: str, result: TrainingResult) -> list[str]:
    if result.at_rate_zero:
        taken = f"{result.optimizer_steps} optimiser step{'' if result.optimizer_steps == 1 else 's'}"
        way_out = "lower the rows of a batch (sft.batch) or the warm-up (sft.warmup_steps), or train for more epochs"
        return [f"{name} learnt nothing: it took {taken}, and warm-up begins at a learning rate of 0; {way_out}."]
    way_out = "look at sft.class_loss_weight, sft.answer_loss_weight and at what model.train leaves trainable"
    return [f"{name} learnt nothing: the gradient of every step was 0; {way_out}."] if result.without_gradients else []


def _reached(folder: Path, epochs: int | None) -> str:
    """How far training has come, by the newest whole checkpoint in the step's folder; "" where there is none.

    Args:
        epochs: that training would take, where it is known.
    """
    found = []
    for file in (*folder.glob("checkpoint*/state.json"), *folder.glob("train/*/state.json")):  # of a run alone, and on Ray
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = read_object(file)
            found.append((int(state["step"]), int(state["epoch"])))
    if not found:
        return ""
    step, epoch = max(found)
    return f"step {step}, {epoch}{'' if epochs is None else f' of {epochs}'} epochs done"


def transfer_spec(spec: ExperimentSpec, dataset: str) -> ExperimentSpec:
    """The spec that trains one held-out dataset's model: fewer workers and smaller micro-batches where its batch is small."""
    settings = {"epochs": spec.transfer.epochs_of(dataset), "lr": spec.transfer.lr, "warmup_steps": spec.transfer.warmup_steps}
    return spec.fitted_to(spec.transfer.batch_of(dataset), **settings)


def _starts_from_sft(spec: ExperimentSpec) -> bool:
    return "sft" in transferred(spec).stages


def _identity(draft: Draft, spec: ExperimentSpec) -> dict[str, Any]:
    """JSON values that name all that supervised training with the settings of `spec` depends on."""
    return {
        "atlas": draft["atlas"].fingerprint,
        "backbone": backbone.identity(draft),
        "media": spec.atlas.media.identity(),
        "modalities": sorted(spec.atlas.modalities),
        "model": {
            **identity_values(spec.model, exclude={"backbone", "tiny", "small", "prompt_layout", "system_prompt", "attention"}),
            "precision": spec.precision,
        },
        "seed": spec.seed,
        "sft": spec.sft.identity(),
        **describe.prompt_identity(spec),
    }


def _take(context: Context, given: Path) -> TrainingResult:
    """Copies a model that was trained elsewhere into the step's folder, in our layout."""
    from hba_ray.training.imported import take_model

    with progress("sft", total=None):
        take_model(context.spec, context.backbone, given, context.folder / "model")
    write_settings(context.folder / "model", context.spec)
    return TrainingResult(taken_from=given.name)


def _train(
    context: Context, spec: ExperimentSpec, index: AtlasIndex, *, init: str | None = None, part: ModelPart = "all"
) -> TrainingResult:
    """Trains on the rows of an index, and shows progress in the bar and the tracker.

    Args:
        init: folder of a trained model to start from; by default the backbone with fresh LoRA and heads.
        part: of the model, which is trained.

    Raises:
        DataError: there is nothing to train on, or to score later.
    """
    from hba_ray.data.feed.order import micro_batches_per_epoch
    from hba_ray.training.launch import launch_stage, state_in
    from hba_ray.training.sft import SftJob

    check_rows(index, "train")
    check_rows(context.whole_index, spec.evaluate.split)  # and not hours later
    log, name = context.folder / STEP_LOG, context.step.name
    job = SftJob(spec, context.backbone, index, str(log), init, part)
    per_epoch = -(-micro_batches_per_epoch(job.index, job.order(0, max(1, spec.compute.workers))) // spec.accumulation)
    total, begun = per_epoch * spec.sft.epochs, state_in(context.folder)
    with progress(name, total=total) as bar, followed(log, lambda metrics: _show(metrics, bar, context, name)):
        for line in _first_words(context, 0 if begun is None else begun.step, total, part):
            bar.say(line)
        trained = launch_stage(job, context.folder)
    write_settings(context.folder / "model", spec)
    state = trained.state
    check_some_left("train", len(index.rows_of("train")), state.drops)
    lines = read_lines(log)
    return TrainingResult(
        optimizer_steps=state.step,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        best_validation_loss=state.best_loss,
        lost=losses(state.drops),
        part=part,
        without_gradients=always_zero(lines, "gradient_norm"),
        at_rate_zero=always_zero(lines, "lr"),
    )


def _first_words(context: Context, reached: int, total: int, part: ModelPart) -> Iterator[str]:
    """What is said before training: where it goes on from, or that a shorter run is finished."""
    name, kind = context.step.name, context.step.kind.name
    way_out = "one is written at the end of each epoch; compute.checkpoint_every=N writes more"
    if said := begins(name, reached, total, context.folder / STEP_LOG, way_out):
        yield said
    key = "sft.answer_epochs" if part == "answers" else f"{kind}.epochs"
    why_not = "the cosine of the learning rate is stretched over all epochs, so that its steps are not the first ones of this run"
    if not reached and (said := mention(context, key, why_not)):
        yield f"{said}. sft.checkpoint=FOLDER/model takes such a model as it is" if kind == "sft" else said


def _show(metrics: Metrics, bar: Bar, context: Context, name: str) -> None:
    step = int(metrics["step"])
    if "epochs_done" not in metrics:
        bar.reach(step)
        bar.show(**{key: metrics[key] for key in ("loss", "class_accuracy", "rows_per_second") if key in metrics})
    context.log(*shown_metrics(name, metrics))

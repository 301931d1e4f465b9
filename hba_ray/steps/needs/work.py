"""What steps with a model cost, from the spec, the rows and the shape of the model. Models are predicted and trained one row at a time
here: batches change how fast that is, and are part of the shares of a GPU's peak (models/size/estimates.py)."""

from __future__ import annotations

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.evaluation.arms import Arm, baselines
from hba_ray.models.size.estimates import SYNCHRONISING, UNKNOWN, Effort, forward, sampling, training_step
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.held_out import TRAINED_ON, untrained
from hba_ray.steps.needs.model import Rows, answered_row, asked_row, backbone_shape, response_tokens, row_of, shape_of

BASELINE = "Qwen/Qwen2.5-Omni-7B"
"""Whose cost stands for that of a baseline of another architecture; those that shipped specs name are about as large, or smaller."""


def trained_without(spec: ExperimentSpec, split: str) -> tuple[str, ...]:
    """Datasets of which no stage but `transfer` sees rows of a split."""
    return tuple(untrained(spec, DATASETS)) if split in TRAINED_ON else ()


def sft_work(spec: ExperimentSpec, rows: Rows, *, part: str | None = None, only: str | None = None) -> Effort:
    """Supervised training, and a forward pass over the validation split after each epoch.

    Args:
        part: "classes" where that part of the released order is trained; None is all that is left.
        only: the dataset that is trained on, by id; None is all but those held out.
    """
    shape, row = backbone_shape(spec), row_of(spec)
    if shape is None:
        return UNKNOWN
    staged = spec.sft.mode == "staged" and only is None
    kind = None if not staged else part is None  # the second part of the released order trains on open answers
    epochs = spec.sft.answer_epochs if kind else spec.sft.epochs
    counts = [
        rows.counts.get(only, (0, 0, 0))[place] if only else rows.of(split, open_answers=kind, without=trained_without(spec, split))
        for place, split in enumerate(TRAINED_ON)
    ]
    train = "heads" if kind else spec.model.train
    once = training_step(shape, row, train, recompute=spec.compute.gradient_checkpointing) * counts[0]
    return (once + forward(shape, row) * counts[1]) * epochs


def forward_work(spec: ExperimentSpec, rows: int) -> Effort:
    """One forward pass of so many rows."""
    shape = backbone_shape(spec)
    return UNKNOWN if shape is None else forward(shape, row_of(spec)) * rows


def grpo_work(spec: ExperimentSpec, rows: Rows) -> Effort:
    """Reinforcement learning: each step samples, scores what was sampled by one forward pass, and trains on it; validations sample."""
    grpo, shape, asked = spec.grpo, backbone_shape(spec), asked_row(spec)
    if shape is None:
        return UNKNOWN
    left_out = trained_without(spec, "train")
    if grpo.datasets is not None:
        named = {find_dataset(name).id for name in grpo.datasets}
        left_out = (*left_out, *(name for name in rows.counts if name not in named))
    per_epoch = rows.of("train", without=left_out) // grpo.batch
    steps = min(grpo.steps or per_epoch * grpo.epochs, per_epoch * grpo.epochs)
    responses, tokens = steps * grpo.batch * grpo.rollouts, response_tokens(spec)
    whole = answered_row(spec)
    trained = training_step(shape, whole, "all" if grpo.lora is None else "lora", recompute=True)
    scored = forward(shape, whole) * (2 if grpo.kl > 0 else 1)
    learnt = (sampling(shape, tokens) + scored + trained) * responses + Effort(waits=SYNCHRONISING * steps)
    validations = 1 + steps // grpo.validate_every if grpo.validate_every else 0
    held = rows.of("validation", without=left_out)
    asked_again = validations * min(held, grpo.validation_rows or held)
    return learnt + (sampling(shape, tokens) + forward(shape, asked)) * asked_again


def prediction_work(spec: ExperimentSpec, arm: Arm, rows: Rows) -> Effort:
    """Predictions of an arm on the evaluated split: those of a model with heads, or sampled responses."""
    split = spec.evaluate.split
    if not arm.is_generative:
        without = () if not arm.is_transferred else tuple(name for name in rows.counts if name not in trained_without(spec, "train"))
        shape, count = backbone_shape(spec), rows.of(split, without=without)
        if shape is None:
            return UNKNOWN
        answers = rows.of(split, open_answers=True, without=without)
        return forward(shape, row_of(spec)) * count + sampling(shape, spec.evaluate.max_new_tokens) * answers
    model = spec.model.backbone if arm.baseline is None else baselines(spec)[arm]
    shape = backbone_shape(spec) if model == spec.model.backbone else shape_of(model) or shape_of(BASELINE)
    tokens = response_tokens(spec) if arm.baseline is None else min(spec.evaluate.max_new_tokens, spec.evaluate.generation.max_new_tokens)
    return UNKNOWN if shape is None else (forward(shape, asked_row(spec)) + sampling(shape, tokens)) * rows.of(split)

"""The transfer steps, one for each held-out dataset: the SFT model, or the bare backbone with fresh heads, learns it briefly.

Their arm is evaluated on the held-out datasets alone, each with its own model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hba_ray.progress import Bar
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import sft
from hba_ray.steps.base import Context, Draft, Step, held_out, training_resources

if TYPE_CHECKING:
    from hba_ray.data.atlas import Drop

ARM = "transfer"


def plan(draft: Draft) -> list[Step]:
    return [_plan(draft, dataset) for dataset in held_out(draft.spec)]


def arm(spec: ExperimentSpec) -> str:
    """`sft+transfer` where the stage sft comes before, else `transfer`."""
    return f"sft+{ARM}" if _starts_from_sft(spec) else ARM


def is_arm(name: str | None) -> bool:
    return (name or "").split("+")[-1] == ARM


def models(draft: Draft) -> list[str]:
    """Fingerprints of the models that the arm consists of."""
    return [draft[f"{ARM} {dataset}"].fingerprint for dataset in held_out(draft.spec)]


def spec_for(spec: ExperimentSpec, dataset: str) -> ExperimentSpec:
    """The spec that trains one dataset's model: fewer workers and smaller micro-batches where its batch is small."""
    settings = {"epochs": spec.transfer.epochs_of(dataset), "lr": spec.transfer.lr, "warmup_steps": spec.transfer.warmup_steps}
    return sft.fitted(spec, spec.transfer.batch_of(dataset), **settings)


def make(context: Context) -> dict[str, Any]:
    dataset = str(context.part)
    spec = spec_for(context.spec, dataset)
    init = str(context.folders["sft"] / "model") if _starts_from_sft(spec) else None
    return sft.train(context, spec, context.whole_index.only(dataset), name=f"{ARM} {dataset}", init=init)


def predictions(context: Context, bar: Bar) -> tuple[list[dict[str, Any]], list[Drop]]:
    """Each held-out dataset by its own model."""
    from hba_ray.predict.heads import predict
    from hba_ray.predict.jobs import PredictJob

    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    for dataset in held_out(context.spec):
        folder = context.folders[f"{ARM} {dataset}"]
        job = PredictJob(context.spec, context.backbone, str(folder / "model"), context.whole_index.only(dataset))
        for made, dropped in predict(job):
            records += made
            drops += dropped
            bar.advance(len(made) + len(dropped))
    return records, drops


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    start = "the SFT model" if _starts_from_sft(spec) else "the backbone with fresh heads"
    return [f"Transfer from {start}: {facts['optimizer_steps']} optimiser steps, {facts['epochs']} epochs on one held-out dataset."]


def _plan(draft: Draft, dataset: str) -> Step:
    spec = spec_for(draft.spec, dataset)
    identity = {**sft.identity(draft, spec), "dataset": dataset, "init": draft["sft"].fingerprint if _starts_from_sft(spec) else None}
    what = f"{spec.sft.epochs} epochs on {dataset}, batch {spec.sft.batch}, from the {'SFT model' if identity['init'] else 'backbone'}"
    return draft.add(ARM, identity, what, part=dataset, resources=training_resources(spec), uses_ray=True)


def _starts_from_sft(spec: ExperimentSpec) -> bool:
    return "sft" in spec.stages[: spec.stages.index(ARM)]

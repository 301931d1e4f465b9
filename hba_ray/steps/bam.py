"""The BAM step: trains the adapters of each dataset on the frozen SFT model, side by side where there is room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.errors import DataError, SpecError
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import describe, states
from hba_ray.steps.base import STEP_LOG, Context, Draft, Step, digest_checkpoint
from hba_ray.store.folders import done, write_text

if TYPE_CHECKING:
    from hba_ray.predict.jobs import BamPredictJob
    from hba_ray.training.bam import BamJob, TrainedBam
    from hba_ray.training.bam_inputs import Described

ARM = "sft+bam"
WITHOUT_MEDIA = "sft without media"
"""The SFT model shown what BAM is shown where `bam.raw_media` is off (Table 10), so that like is set against like."""
HIDDEN = ("audio", "video")
"""What `bam.raw_media: false` withholds from the model."""
ADAPTERS = "adapters"


def plan(draft: Draft) -> Step:
    """
    Raises:
        CheckpointError: adapters that are to be taken are not there.
    """
    spec, bam = draft.spec, draft.spec.bam
    for split in dict.fromkeys(("train", "validation", spec.evaluate.split) if bam.cache else ()):
        states.plan(draft, split)
    identity = {
        "sft": draft["sft"].fingerprint,
        "descriptors": {stream: describe.vector_identity(spec, stream) for stream in bam.streams},
        "bam": {**bam.identity(), "seed": seed(spec)},
        "taken": {
            find_dataset(name, where="bam.checkpoints").id: digest_checkpoint(given, f"bam.checkpoints.{name}")
            for name, given in bam.checkpoints.items()
        },
    }
    what = f"{bam.epochs} epochs of {' and '.join(bam.streams)} adapters per dataset, hidden {bam.hidden}, lr {bam.lr:g}"
    cpus = f"{spec.compute.cpus_per_worker:g} CPUs per dataset" if spec.compute.workers else "1 CPU"
    return draft.add("bam", identity, what, resources=cpus, uses_ray=True)


def arms(spec: ExperimentSpec) -> list[str]:
    return [ARM] if spec.bam.raw_media else [WITHOUT_MEDIA, ARM]


def reference(spec: ExperimentSpec) -> str:
    """The arm that the adapters stand on: where they have nothing to say, its answers are theirs."""
    return "sft" if spec.bam.raw_media else WITHOUT_MEDIA


def seed(spec: ExperimentSpec) -> int:
    return spec.seed if spec.bam.seed is None else spec.bam.seed


def make(context: Context) -> dict[str, Any]:
    from hba_ray.training.bam import train_bam, train_bam_on_ray
    from hba_ray.training.bam_inputs import adapted_datasets

    job = job_of(context)
    datasets, described = adapted_datasets(context.spec.bam, context.index), described_by(context)
    taken = _take(context, job, described)
    datasets = [dataset for dataset in datasets if dataset not in taken]
    train = train_bam_on_ray if context.spec.compute.workers else train_bam
    with progress("bam", total=len(datasets)) as bar:

        def on_done(dataset: str) -> None:
            bar.advance()
            bar.show(dataset=dataset)

        trained = train(job, datasets, described, context.folder / ADAPTERS, on_done)
    _write_log(trained, context.spec.bam.epochs, context.folder / STEP_LOG)
    losses = {one.dataset: one.validation[one.best_epoch] if one.validation else None for one in trained}
    return {
        "datasets": {
            **{one.dataset: {"best_epoch": one.best_epoch, "validation_loss": losses[one.dataset]} for one in trained},
            **{dataset: {"taken_from": name} for dataset, name in taken.items()},
        },
        "left_out": [dataset for dataset in datasets if dataset not in losses],
    }


def _take(context: Context, job: BamJob, described: Described) -> dict[str, str]:
    """Takes the released adapters that the spec names; dataset -> name of their folder."""
    from hba_ray.training.bam_inputs import adapted_datasets, streams_of
    from hba_ray.training.imported import take_adapters

    spec, taken = context.spec, {}
    given = {find_dataset(name).id: Path(folder).expanduser() for name, folder in spec.bam.checkpoints.items()}
    if astray := given.keys() - set(adapted_datasets(spec.bam, context.index)):
        what = "names a dataset that has no adapters in this atlas"
        raise SpecError(f"bam.checkpoints.{min(astray)}", what, "leave it out, or change atlas.datasets, bam.datasets or bam.streams")
    for dataset, folder in given.items():
        widths = {stream: described.extracted.width(stream) for stream in streams_of(spec.bam, dataset)}
        take_adapters(job, dataset, widths, folder, context.folder / ADAPTERS / dataset)
        taken[dataset] = folder.name
    return taken


def predictions(context: Context, before: list[dict[str, Any]], bar: Bar, hidden: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The reference arm's predictions with those that adapters make in their place.

    Args:
        hidden: modalities withheld from the model; kept states have seen all of them and are not used then.

    Raises:
        DataError: states or descriptors are not what they should be, or a row that has adapters was not predicted.
        CheckpointError: adapters are missing, damaged, or of another SFT model.
    """
    from hba_ray.predict.heads import predict_with_adapters, stored_classes

    spec, job = context.spec, predict_job(context, hidden)
    stored = [dataset for dataset in job.datasets if spec.bam.cache and not hidden and not DATASETS[dataset].task.is_open]
    live = [dataset for dataset in job.datasets if dataset not in stored]
    made = dict(stored_classes(replace(job, datasets=stored)))
    for records, _ in predict_with_adapters(replace(job, datasets=live)) if live else ():
        made |= {(record["dataset"], record["sample_id"]): record for record in records}
        bar.advance(len(records))
    lost = [record for record in before if record["dataset"] in job.datasets and (record["dataset"], record["sample_id"]) not in made]
    if lost:
        what = f"{len(lost)} rows that the SFT model predicted have no prediction with adapters, first: {lost[0]['sample_id']}"
        raise DataError(f"evaluate {ARM}", what, "delete the folder of the step 'states' and run again", reason="missing prediction")
    return [record | made.get((record["dataset"], record["sample_id"]), {}) for record in before]


def predict_job(context: Context, hidden: tuple[str, ...] = ()) -> BamPredictJob:
    """Prediction with the adapters that the step has trained.

    Args:
        hidden: modalities that the model is not shown.
    """
    from hba_ray.predict.jobs import BamPredictJob

    spec, job, folder = context.spec, job_of(context), context.folders["bam"]
    return BamPredictJob(
        spec,
        context.backbone,
        job.model,
        context.index,
        hidden if spec.bam.raw_media else HIDDEN,
        job=job,
        describe=described_by(context),
        adapters=folder / ADAPTERS,
        datasets=list((done(folder) or {})["datasets"]),
    )


def job_of(context: Context) -> BamJob:
    from hba_ray.training.bam import BamJob

    spec, folders = context.spec, context.folders
    stores = {name.removeprefix("states "): str(folder) for name, folder in folders.items() if name.startswith("states ")}
    return BamJob(spec, spec.bam, context.backbone, str(folders["sft"] / "model"), context.index, stores)


def described_by(context: Context) -> Described:
    from hba_ray.training.bam_inputs import Described

    spec, index = context.spec, context.index
    return Described.of(describe.open_descriptors(spec, index), index, spec.descriptors, spec.bam, seed(spec))


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    taken = {dataset: found["taken_from"] for dataset, found in facts["datasets"].items() if "taken_from" in found}
    epochs = {dataset: found["best_epoch"] + 1 for dataset, found in facts["datasets"].items() if dataset not in taken}
    kept = ", ".join(f"{dataset} {epoch}" for dataset, epoch in epochs.items())
    said = [f"BAM: adapters for {len(epochs)} datasets; epoch kept of {spec.bam.epochs}: {kept}."] if epochs or not taken else []
    if taken:
        said.append(f"BAM: adapters that were not trained here: {', '.join(f'{dataset} from {name}' for dataset, name in taken.items())}.")
    if facts["left_out"]:
        said.append(f"BAM: no training row of {', '.join(facts['left_out'])} has a descriptor, so the SFT model stands there.")
    if not spec.bam.raw_media:
        said.append(f"'{ARM}' is trained and scored without raw audio and video; '{WITHOUT_MEDIA}' is the SFT model shown the same.")
    if spec.bam.shuffle_descriptors:
        said.append("BAM: descriptors are shuffled among the rows of a dataset, so they say nothing about the row: a control.")
    return said


def _write_log(trained: Sequence[TrainedBam], epochs: int, file: Path) -> None:
    """A line an epoch: each dataset's mean training loss, and its validation loss where there is a validation split."""
    lines: list[dict[str, float]] = [{"step": epoch + 1} for epoch in range(epochs)]
    for one in trained:
        steps = len(one.losses) // epochs
        for epoch, line in enumerate(lines):
            line[f"{one.dataset}/loss"] = fmean(one.losses[epoch * steps : (epoch + 1) * steps])
            if one.validation:
                line[f"{one.dataset}/validation_loss"] = one.validation[epoch]
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))

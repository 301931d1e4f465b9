"""The steps of BAM: the states of the frozen SFT model, and the adapters that each dataset gets on top of it.

A `states` step runs the SFT model over a split once, for all trials. What a trial of BAM changes (streams, widths, learning
rates, epochs, seed) is no part of its name. The `bam` step trains the adapters, datasets side by side where there is room.
With `bam.states=live` there are no such steps: the `bam` step has the SFT model in the loop, and trains as SFT does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.errors import DataError, SpecError
from hba_ray.evaluation.arms import ADAPTED, MEDIA, adapted_model
from hba_ray.models.settings import sources_of
from hba_ray.models.size.estimates import Effort
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.steps.base import STEP_LOG, Context, Draft, Result, Step, StepKind
from hba_ray.steps.inputs import backbone, describe
from hba_ray.steps.inputs.drops import losses
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.model import Rows, states_needs
from hba_ray.steps.needs.work import forward_work, trained_without
from hba_ray.steps.stages.resume import mention
from hba_ray.store.folders import write_text
from hba_ray.store.follow import Metrics

if TYPE_CHECKING:
    from hba_ray.data.atlas import Drop
    from hba_ray.predict.jobs import BamPredictJob
    from hba_ray.training.bam_inputs import Described
    from hba_ray.training.bam_job import BamJob, TrainedBam

ADAPTERS = "adapters"
LIVE = "live"
"""Folder of a step that has the model in the loop; holds a folder for each dataset, with its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class StatesResult(Result):
    """What a states step says of the rows of its split.

    Attributes:
        rows: kind of states (`pooled`, ...) -> rows to compute, those that could not be read among them.
    """

    rows: dict[str, int]


class StatesSteps(StepKind[StatesResult]):
    """Runs the frozen SFT model over a split and stores its hidden states for all trials of BAM."""

    name = "states"
    version = 4
    unversioned = 2
    raised = describe.READ_EXACTLY
    result_type = StatesResult

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        return states_needs(spec)

    def work(self, step: Step, rows: Rows) -> Effort | None:
        assert step.spec is not None and step.part is not None
        return forward_work(step.spec, rows.of(step.part, without=trained_without(step.spec, step.part)))

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        parts = len(list(folder.glob("*/part-*.parquet")))
        return f"{parts} parts of states" if parts else ""

    def plan(self, draft: Draft) -> None:
        spec, bam = draft.spec, draft.spec.bam
        for split in dict.fromkeys(("train", "validation", spec.evaluate.split) if not bam.live else ()):
            identity = {
                "sft": draft["sft"].fingerprint,
                "split": split,
                "raw_media": bam.raw_media,
                "answers": bam.decoder_injection if _holds_answers(bam, split) else None,
                "stored": bam.cache_precision,
                "computed": spec.precision,
            }
            what = f"run the SFT model over the {split} split once" + ("" if bam.raw_media else ", without audio and video")
            draft.add(self, identity, what, part=split, holds_workers=True)

    def make(self, context: Context) -> StatesResult:
        from hba_ray.training.states import compute_states

        split = context.part
        job, index = job_of(context, with_states=False), context.index
        datasets = index.table.column("dataset").take(index.rows_of(split)).to_pylist()
        answers = sum(DATASETS[dataset].task.is_open for dataset in datasets)
        rows = {False: len(datasets) - answers, True: answers if _holds_answers(context.spec.bam, split) else 0}
        drops: list[Drop] = []
        with progress(context.step.name, total=sum(rows.values())) as bar:
            for is_open in (is_open for is_open, count in rows.items() if count):
                folder = context.folder / job.kind(open_answers=is_open)
                drops += compute_states(job.states_job(split, open_answers=is_open), folder, bar.advance)
        return StatesResult(rows={job.kind(open_answers=is_open): count for is_open, count in rows.items()}, lost=losses(drops))


def _holds_answers(bam: BamSpec, split: str) -> bool:
    """Whether states of open answers are stored for a split: only those of training and validation are, since tests generate."""
    named = [find_dataset(name, where="bam.datasets") for name in bam.datasets or ()]
    return split in ("train", "validation") and (not named or any(dataset.task.is_open for dataset in named))


@dataclass(frozen=True, kw_only=True)
class AdaptersOfDataset:
    """The adapters of one dataset.

    Attributes:
        best_epoch: whose adapters were kept, counted from 0; `validation_loss` is its loss, where there is a validation split.
        taken_from: folder of adapters that took the place of training.
        without_gradients: every gradient was 0.
    """

    best_epoch: int = 0
    validation_loss: float | None = None
    without_gradients: bool = False
    taken_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class BamResult(Result):
    """What the BAM step says of the datasets.

    Attributes:
        left_out: datasets of which no training row has a descriptor.
    """

    datasets: dict[str, AdaptersOfDataset]
    left_out: list[str] = field(default_factory=list)


class BamSteps(StepKind[BamResult]):
    """Trains the adapters of each dataset on the frozen SFT model (paper section 3.6)."""

    name = "bam"
    version = 4
    unversioned = 2
    raised = "rows come in the order of supervised training, each weighs the same, and dropout is drawn for each row"
    result_type = BamResult
    working = (LIVE,)
    check = staticmethod(backbone.check_window)

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        trained = len(list(folder.glob(f"{ADAPTERS}/*/adapters.json")))
        return f"{trained} dataset{'s' if trained > 1 else ''} with adapters" if trained else ""

    def plan(self, draft: Draft) -> None:
        """
        Raises:
            CheckpointError: adapters that are to be taken are not there.
        """
        spec, bam = draft.spec, draft.spec.bam
        StatesSteps().plan(draft)
        identity = {
            "sft": draft["sft"].fingerprint,
            "descriptors": {stream: describe.vector_identity(spec, stream) for stream in bam.streams},
            "bam": {**bam.identity(), "seed": seed(spec)},
            "taken": {
                find_dataset(name, where="bam.checkpoints").id: backbone.digest_checkpoint(draft, given, f"bam.checkpoints.{name}")
                for name, given in bam.checkpoints.items()
            },
        }
        what = _in_words(spec)
        cpus = f"{spec.compute.cpus_per_worker:g} CPUs per dataset" if spec.compute.workers else "1 CPU"
        draft.add(self, identity, what, resources=None if bam.live else cpus, holds_workers=True)

    def make(self, context: Context) -> BamResult:
        from hba_ray.training.bam_inputs import adapted_datasets

        spec, described = context.spec, described_by(context)
        job = job_of(context, names=described.names)
        taken = _take(context, job, described)
        datasets = [dataset for dataset in adapted_datasets(spec.bam, context.index) if dataset not in taken]
        begun = [dataset for dataset in datasets if (context.folder / ADAPTERS / dataset).is_dir()]
        why_not = "the state of its optimisers is not kept"
        with progress("bam", total=len(datasets)) as bar:
            if begun:
                bar.say(f"bam: continues after {len(begun)} of {len(datasets)} datasets, whose adapters an earlier attempt finished")
            elif said := mention(context, "bam.epochs", why_not):
                bar.say(said)

            def on_done(dataset: str) -> None:
                bar.advance()
                bar.show(dataset=dataset)

            def on_line(dataset: str, metrics: Metrics) -> None:
                if "loss" in metrics:
                    bar.show(dataset=dataset, step=metrics["step"], loss=metrics["loss"])

            trained, drops = _train(context, job, datasets, described, on_done, on_line)
        _write_log(trained, spec.bam.epochs, context.folder / STEP_LOG)
        made = {one.dataset: _kept(one) for one in trained}
        given = {dataset: AdaptersOfDataset(taken_from=name) for dataset, name in taken.items()}
        left_out = [dataset for dataset in datasets if dataset not in made]
        return BamResult(datasets={**made, **given}, left_out=left_out, lost=losses(drops))

    def notes(self, spec: ExperimentSpec, result: BamResult) -> list[str]:
        taken = {dataset: one.taken_from for dataset, one in result.datasets.items() if one.taken_from}
        epochs = {dataset: one.best_epoch + 1 for dataset, one in result.datasets.items() if dataset not in taken}
        kept = ", ".join(f"{dataset} {epoch}" for dataset, epoch in epochs.items())
        said = [f"BAM: adapters for {len(epochs)} datasets; epoch kept of {spec.bam.epochs}: {kept}."] if epochs or not taken else []
        if unmoved := [dataset for dataset, one in result.datasets.items() if one.without_gradients]:
            said.append(f"BAM learnt nothing on {', '.join(unmoved)}: the gradient of every step was 0.")
        if taken:
            given = ", ".join(f"{dataset} from {name}" for dataset, name in taken.items())
            said.append(f"BAM: adapters that were not trained here: {given}.")
        if result.left_out:
            said.append(f"BAM: no training row of {', '.join(result.left_out)} has a descriptor, so the SFT model stands there.")
        if not spec.bam.raw_media:
            shown = f"'{adapted_model(spec)}' is the SFT model shown the same"
            said.append(f"'{ADAPTED}' is trained and scored without raw audio and video; {shown}.")
        if spec.bam.shuffle_descriptors:
            said.append("BAM: descriptors are shuffled among the rows of a dataset, so they say nothing about the row: a control.")
        return said


def _train(
    context: Context,
    job: BamJob,
    datasets: list[str],
    described: Described,
    on_done: Callable[[str], None],
    on_line: Callable[[str, Metrics], None],
) -> tuple[list[TrainedBam], list[Drop]]:
    """The adapters of these datasets, and the rows that could not be read, where this step is the one that reads them."""
    from hba_ray.training.bam import train_bam, train_bam_on_ray
    from hba_ray.training.live import train_live

    folder = context.folder / ADAPTERS
    if job.bam.live:
        return train_live(job, datasets, described, folder, context.folder / LIVE, on_done, on_line)
    train = train_bam_on_ray if job.spec.compute.workers else train_bam
    return train(job, datasets, described, folder, on_done), []


def _in_words(spec: ExperimentSpec) -> str:
    """What a plan says of the step: what it trains, and what it only takes."""
    bam = spec.bam
    trained = f"{bam.epochs} epochs of {' and '.join(bam.streams)} adapters per dataset, hidden {bam.hidden}, lr {bam.lr:g}"
    trained += ", with the SFT model in the loop" if bam.live else ""
    if not bam.checkpoints:
        return trained
    taken = {find_dataset(name, where="bam.checkpoints").id for name in bam.checkpoints}
    named = bam.datasets or spec.atlas.datasets
    left = None if named is None else {find_dataset(name, where="bam.datasets").id for name in named} - taken
    sources = {source.in_words(spec) for source in sources_of(spec) if source.key.startswith("bam.checkpoints.")}
    settings = f", run as they were trained: {' / '.join(sorted(sources))}" if sources else ""
    rest = "" if left == set() else f"; for {', '.join(sorted(left)) if left else 'all other datasets'}, {trained}"
    return f"take the adapters of {', '.join(sorted(taken))}{settings}{rest}"


def seed(spec: ExperimentSpec) -> int:
    """The seed of the adapters: `bam.seed`, or that of the spec."""
    return spec.seed if spec.bam.seed is None else spec.bam.seed


def _kept(trained: TrainedBam) -> AdaptersOfDataset:
    loss = trained.validation[trained.best_epoch] if trained.validation else None
    return AdaptersOfDataset(best_epoch=trained.best_epoch, validation_loss=loss, without_gradients=trained.without_gradients)


def _take(context: Context, job: BamJob, described: Described) -> dict[str, str]:
    """Copies the released adapters that the spec names. Returns dataset -> name of the folder that they come from."""
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


def predictions(context: Context, before: list[dict[str, Any]], bar: Bar, withheld: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The predictions of the SFT model, replaced by those with adapters in the datasets that have adapters.

    Args:
        withheld: modalities that the model is not shown; kept states have seen all of them and are not used then.

    Raises:
        DataError: states or descriptors are not what they should be, or a row that has adapters was not predicted.
        CheckpointError: adapters are missing, damaged, or of another SFT model.
    """
    from hba_ray.predict.heads import predict_with_adapters, stored_classes

    spec, job = context.spec, predict_job(context, withheld)
    stored = [dataset for dataset in job.datasets if not spec.bam.live and not withheld and not DATASETS[dataset].task.is_open]
    live = [dataset for dataset in job.datasets if dataset not in stored]
    made = dict(stored_classes(replace(job, datasets=stored)))
    for records, _ in predict_with_adapters(replace(job, datasets=live)) if live else ():
        made |= {(record["dataset"], record["sample_id"]): record for record in records}
        bar.advance(len(records))
    lost = [record for record in before if record["dataset"] in job.datasets and (record["dataset"], record["sample_id"]) not in made]
    if lost:
        what = f"{len(lost)} rows that the SFT model predicted have no prediction with adapters, first: {lost[0]['sample_id']}"
        raise DataError(f"evaluate {ADAPTED}", what, "delete the folder of the step 'states' and run again", reason="missing prediction")
    return [record | made.get((record["dataset"], record["sample_id"]), {}) for record in before]


def predict_job(context: Context, withheld: tuple[str, ...] = ()) -> BamPredictJob:
    """The job that predicts with the adapters of the finished BAM step.

    Args:
        withheld: modalities that the model is not shown.
    """
    from hba_ray.predict.jobs import BamPredictJob

    spec, job, folder = context.spec, job_of(context), context.folder_of("bam")
    return BamPredictJob(
        spec,
        context.backbone,
        job.model,
        context.index,
        withheld if spec.bam.raw_media else MEDIA,
        job=job,
        describe=described_by(context),
        adapters=folder / ADAPTERS,
        datasets=list(BamSteps().said(folder).datasets),
    )


def job_of(context: Context, *, with_states: bool = True, names: Mapping[int, str] | None = None) -> BamJob:
    """The job that trains the adapters.

    Args:
        with_states: whether it reads the states that were stored.
        names: sample ids, without which nothing can be trained; see `BamJob`.
    """
    from hba_ray.training.bam_job import BamJob

    spec = context.spec
    kept = [step for step in context.earlier.values() if step.kind == StatesSteps()] if with_states else []
    stores = {step.part or "": str(context.folder_of(step.name)) for step in kept}
    return BamJob(spec, spec.bam, context.backbone, str(context.folder_of("sft") / "model"), context.index, stores, names or {})


def described_by(context: Context) -> Described:
    from hba_ray.training.bam_inputs import Described

    spec, index = context.spec, context.index
    return Described.of(describe.open_descriptors(spec, index), index, spec.descriptors, spec.bam, seed(spec))


def _write_log(trained: Sequence[TrainedBam], epochs: int, file: Path) -> None:
    """Writes a line an epoch: each dataset's mean training loss, and its validation loss where there is a validation split."""
    lines: list[dict[str, float]] = [{"step": epoch + 1} for epoch in range(epochs)]
    for one in trained:
        steps = len(one.losses) // epochs
        for epoch, line in enumerate(lines):
            line[f"{one.dataset}/loss"] = fmean(one.losses[epoch * steps : (epoch + 1) * steps])
            if one.validation:
                line[f"{one.dataset}/validation_loss"] = one.validation[epoch]
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))

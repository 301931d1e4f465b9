"""The evaluate step, one for each arm: predicts the split and scores it.

Arms with heads are predicted by them. Baselines, and the model of the stage `grpo`, answer every question by generation.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation.arms import ADAPTED, SFT, Arm, adapted_model, arms_of, baselines, last_part
from hba_ray.models.size.estimates import Effort
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec, identity_values
from hba_ray.specs.sections.model import MADE
from hba_ray.steps.base import Context, Draft, Result, Step, StepKind
from hba_ray.steps.held_out import held_out
from hba_ray.steps.inputs import backbone, describe
from hba_ray.steps.inputs.drops import check_rows, check_some_left, losses
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.model import Rows, prediction_needs
from hba_ray.steps.needs.size import Weights
from hba_ray.steps.needs.software import Architecture, Vllm, known_architecture
from hba_ray.steps.needs.work import prediction_work
from hba_ray.steps.stages import bam, grpo
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import write_text

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex, Drop
    from hba_ray.evaluation.published import PublishedModel
    from hba_ray.predict.jobs import GenerateJob

PREDICTIONS, SCORES = "predictions.parquet", "scores.json"
_SHOWN_RESPONSES, _SHOWN_LETTERS = 3, 60
"""Responses of an arm that a note shows, and letters of each."""


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Result):
    """What an evaluate step says. `out_of_domain` to `as_images` are said of arms that answer by generation.

    Attributes:
        rows: that were predicted.
        cut: dataset -> texts that ended at the limit of tokens and not by themselves.
        out_of_domain: dataset -> responses without an answer of the dataset.
        unread: some of these responses.
        withheld: modality -> rows that have it and whose model does not take it.
        as_images: modality -> rows of which the model was shown it as images.
    """

    rows: int
    arm: str | None = None
    cut: dict[str, int] = field(default_factory=dict)
    out_of_domain: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    withheld: dict[str, int] = field(default_factory=dict)
    as_images: dict[str, int] = field(default_factory=dict)


class EvaluateSteps(StepKind[EvaluateResult]):
    """Predicts the split with each arm, and scores the predictions."""

    name = "evaluate"
    version = 5
    unversioned = 3
    raised = "datasets outside the benchmark count in no mean, unless they are trained on"
    result_type = EvaluateResult
    check = staticmethod(backbone.check_window)

    def plan(self, draft: Draft) -> None:
        spec = draft.spec
        for arm in arms_of(spec):
            withheld = f", {' and '.join(arm.withheld)} withheld" if arm.withheld else ""
            what = f"predict and score the {spec.evaluate.split} split{withheld}"
            draft.add(self, _identity(draft, arm), what, arm=arm, holds_workers=True)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        named = [name for name in spec.evaluate.baselines if name not in MADE]
        yield from (Weights("evaluate.baselines", name) for name in named)
        if (spec.evaluate.baselines or "grpo" in spec.stages) and spec.evaluate.generation.engine == "vllm":
            otherwise = "give evaluate.generation.engine=transformers, which runs Qwen2.5-Omni"
            yield Vllm("evaluate.generation.engine", spec.compute.gpus_per_worker > 0, otherwise)
            yield from (Architecture("evaluate.baselines", name, known_architecture(name)) for name in named)
        yield from prediction_needs(spec)

    def work(self, step: Step, rows: Rows) -> Effort | None:
        assert step.spec is not None and step.arm is not None
        return prediction_work(step.spec, step.arm, rows)

    def make(self, context: Context) -> EvaluateResult:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from hba_ray.data.predictions import SCHEMA
        from hba_ray.evaluation.scores import score_predictions

        spec, arm, index = context.spec, context.arm, _index(context)
        check_rows(context.whole_index, spec.evaluate.split)
        with progress(context.step.name, total=len(index.rows_of(spec.evaluate.split))) as bar:
            records, drops = _predict(context, bar)
        check_some_left(spec.evaluate.split, len(records) + len(drops), drops)
        table = pa.Table.from_pylist(sorted(records, key=lambda record: (record["dataset"], record["sample_id"])), schema=SCHEMA)
        pq.write_table(table, context.folder / PREDICTIONS)
        listed = held_out(spec) if arm.is_transferred else list(index.counts())
        counts, published = context.whole_index.label_counts("train"), published_model(spec, arm)
        scores = score_predictions(table, counts, datasets=listed, published_model=published, merging=spec.evaluate.sentiment_merging)
        write_text(context.folder / SCORES, scores.to_json())
        said = {**_counts(records), "unread": unread(records)} if arm.is_generative else {}
        return EvaluateResult(rows=len(records), lost=losses(drops), arm=str(arm), cut=_cut(records), **said)

    def notes(self, spec: ExperimentSpec, result: EvaluateResult) -> list[str]:
        said = _on_withheld(spec, Arm.parse(result.arm)) if result.arm else []
        for modality, rows in result.withheld.items():
            said.append(f"{result.arm}: the model takes no {modality}, which was withheld from {rows} rows.")
        if rows := sum(result.as_images.values()):
            said.append(f"{result.arm}: the model takes no video; in {rows} rows it was given the frames of the video as images.")
        if result.out_of_domain:
            each = ", ".join(f"{rows} of {dataset}" for dataset, rows in result.out_of_domain.items())
            shown = f"; for example {', '.join(map(repr, result.unread))}" if result.unread else ""
            said.append(f"{result.arm}: responses in which no answer of the dataset could be read count as wrong: {each}{shown}.")
        if result.cut:
            each = ", ".join(f"{rows} of {dataset}" for dataset, rows in result.cut.items())
            said.append(f"{result.arm}: texts that ended at the limit of tokens and not by themselves: {each}.")
        if spec.evaluate.split != "test":
            said.append(f"Scores are on the {spec.evaluate.split} split; published numbers are on the test split.")
        return said


def _on_withheld(spec: ExperimentSpec, arm: Arm) -> list[str]:
    """What must not be taken for the same: a model that is not shown what it was trained with, and one that was trained without it."""
    unseen = [name for name in arm.withheld if name in spec.atlas.modalities]
    if not unseen or (arm.has_adapters and not spec.bam.raw_media):
        return []
    left = ", ".join(name for name in spec.atlas.modalities if name not in unseen)
    trained = f"was trained with {' and '.join(unseen)} and is then not shown them"
    return [f"'{arm}' {trained}; a model that is trained without them (atlas.modalities=[{left}]) is another one, with other scores."]


def _identity(draft: Draft, arm: Arm) -> dict[str, Any]:
    """JSON values that name all that an arm's predictions and scores depend on.

    Raises:
        CheckpointError: a baseline is a folder that is not there.
    """
    spec = draft.spec
    if arm.is_generative:
        return _generation_identity(draft, arm)
    if arm.is_transferred:
        models = [draft[f"transfer {dataset}"].fingerprint for dataset in held_out(spec)]
        return {"models": models, "evaluate": spec.evaluate.identity()}
    hidden = {"hidden": list(arm.withheld)} if arm.withheld else {}
    return {"model": draft[str(arm.last_stage)].fingerprint, "evaluate": spec.evaluate.identity(), **hidden}


def _generation_identity(draft: Draft, arm: Arm) -> dict[str, Any]:
    spec = draft.spec
    generation = spec.evaluate.generation
    if arm.baseline is None:
        made: dict[str, Any] = {"model": draft[str(arm.last_stage)].fingerprint}
    else:
        of_rows = {"atlas": draft["atlas"].fingerprint, "modalities": sorted(spec.atlas.modalities), "media": spec.atlas.media.identity()}
        model = backbone.identity_of(draft, baselines(spec)[arm], "evaluate.baselines")
        made = {"baseline": model, **of_rows, **describe.prompt_identity(spec), "precision": spec.precision}
    if generation.temperature > 0 and generation.engine == "transformers":
        made["sampled_together"] = spec.compute.micro_batch  # rows of a micro-batch share a stream of random numbers
    read = identity_values(spec.evaluate, include={"matching", "sentiment_merging"})
    return {**made, "generation": generation.identity(), "split": spec.evaluate.split, "prompts": _prompts(spec, arm), **read}


def _prompts(spec: ExperimentSpec, arm: Arm) -> dict[str, Any] | None:
    """The content of the instructions around each prompt, and how responses are read; None where a row is asked with its own prompt.

    Raises:
        SpecError: the file of the wording is not there or not in order.
    """
    from hba_ray.data.prompts import load_reasoning

    chosen = spec.evaluate.generation.prompt
    if chosen == "plain" or (chosen == "auto" and arm.baseline is not None):
        return None
    return {"reasoning": load_reasoning(spec.grpo.prompts).identity(), "answer_from": spec.grpo.reward.answer_from}


def _index(context: Context) -> AtlasIndex:
    """The rows that an arm is asked about."""
    return grpo.asked_rows(context.spec, context.index) if context.arm.last_stage == "grpo" else context.index


def _predict(context: Context, bar: Bar) -> tuple[list[dict[str, Any]], list[Drop]]:
    """Records of the predicted rows of the split, and the rows that could not be read."""
    from hba_ray.predict.generate import generate_rows
    from hba_ray.predict.heads import predict
    from hba_ray.predict.jobs import PredictJob

    spec, arm, index = context.spec, context.arm, _index(context)
    if arm.whole == ADAPTED:
        reference = Arm(SFT.stages, arm.withheld) if arm.withheld else adapted_model(spec)
        before = read_parquet(context.folder_of(f"evaluate {reference}") / PREDICTIONS)
        return bam.predictions(context, before.to_pylist(), bar, arm.withheld), []
    if arm.is_generative:
        predictions = [generate_rows(_generate_job(context))]
    elif arm.is_transferred:
        models = [(context.folder_of(f"transfer {dataset}"), context.whole_index.only(dataset)) for dataset in held_out(spec)]
        predictions = [predict(PredictJob(spec, context.backbone, str(folder / "model"), rows)) for folder, rows in models]
    else:
        predictions = [
            predict(PredictJob(spec, context.backbone, str(context.folder_of(str(arm.last_stage)) / "model"), index, arm.withheld))
        ]
    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    for made, dropped in (part for parts in predictions for part in parts):
        records += made
        drops += dropped
        bar.advance(len(made) + len(dropped))
    return records, drops


def _generate_job(context: Context) -> GenerateJob:
    from hba_ray.data.prompts import ReasoningPrompt
    from hba_ray.predict.jobs import GenerateJob
    from hba_ray.specs.wording import Wording

    spec, arm = context.spec, context.arm
    if arm.baseline is None:
        model = str(context.folder_of(str(arm.last_stage)) / "model")
    else:
        model = baselines(spec)[arm]
        model = context.backbone if model in MADE else model
    prompts = _prompts(spec, arm)
    wording = Wording.of(spec.model)
    if arm.baseline is not None:
        wording = replace(wording, system=None)  # another model's own chat template knows what to say
    if prompts is None:
        return GenerateJob(spec, model, _index(context), wording=wording)
    reasoning = ReasoningPrompt.model_validate(prompts["reasoning"])
    return GenerateJob(spec, model, _index(context), reasoning, prompts["answer_from"], wording)


def published_model(spec: ExperimentSpec, arm: Arm) -> PublishedModel:
    """Name of the model in the paper's tables whose scores are printed beside an arm's."""
    from hba_ray.evaluation.published import PublishedModel

    if arm.baseline is not None:
        name = last_part(baselines(spec)[arm]).lower()
        published = [model for model in get_args(PublishedModel) if name.startswith(model.lower())]
        return published[0] if published else "OmniSapiens-7B SFT"
    if arm.is_generative:
        return "OmniSapiens-7B RL"
    return "OmniSapiens-7B BAM" if arm.has_adapters else "OmniSapiens-7B SFT"


def unread(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Some responses without an answer of the dataset, of different datasets where there are several; shortened. None is of a
    sensitive dataset, whose texts a response may repeat.

    >>> unread([{"dataset": "toy_nod", "predicted": None, "answer": None, "response": "a b"}])
    ['a b']
    """
    shown: dict[str, str] = {}
    for record in records:
        if not _read(record) and record["response"] is not None and not DATASETS[record["dataset"]].sensitive:
            shown.setdefault(record["dataset"], textwrap.shorten(record["response"], _SHOWN_LETTERS, placeholder=" ..."))
    return [shown[dataset] for dataset in sorted(shown)][:_SHOWN_RESPONSES]


def _read(record: Mapping[str, Any]) -> str | None:
    """The answer of the dataset that was read from a response, a class or a text."""
    return record["answer"] if DATASETS[record["dataset"]].task.is_open else record["predicted"]


def _cut(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(record["dataset"] for record in records if record.get("cut")).items()))


def _counts(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The counts of `EvaluateResult`, from the records of an arm that answers by generation."""
    counts: dict[str, Counter[str]] = {"out_of_domain": Counter(), "withheld": Counter(), "as_images": Counter()}
    for record in records:
        counts["out_of_domain"].update([] if _read(record) else [record["dataset"]])
        counts["withheld"].update(record.get("withheld", ()))
        counts["as_images"].update(["video"] if record.get("as_images") else [])
    return {name: dict(sorted(count.items())) for name, count in counts.items()}

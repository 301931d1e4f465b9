"""Arms that answer by generation, part of the evaluate step: baselines as they are, and the model of the stage `grpo`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import DATASETS
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import backbone, describe
from hba_ray.steps.base import Context, Draft

if TYPE_CHECKING:
    from hba_ray.evaluation.published import PublishedModel
    from hba_ray.predict.jobs import GenerateJob

ZERO_SHOT = "zero-shot "
GENERATIVE_STAGES = frozenset({"grpo"})


def baselines(spec: ExperimentSpec) -> dict[str, str]:
    """Arm -> model of each baseline. An arm has the last part of its model's name, or all of it where two would be alike."""
    names = Counter(_short(model) for model in spec.evaluate.baselines)
    return {ZERO_SHOT + (_short(model) if names[_short(model)] == 1 else model): model for model in spec.evaluate.baselines}


def _short(model: str) -> str:
    return Path(model).name or model


def is_generative(spec: ExperimentSpec, arm: str | None) -> bool:
    return arm in baselines(spec) or (arm or "").split("+")[-1] in GENERATIVE_STAGES


def identity(draft: Draft, arm: str) -> dict[str, Any]:
    """What the predictions of a generative arm depend on.

    Raises:
        CheckpointError: the baseline is a folder that is not there.
    """
    spec = draft.spec
    model = baselines(spec).get(arm)
    if model is None:
        made: dict[str, Any] = {"model": draft[arm.split("+")[-1]].fingerprint}
    else:
        of_rows = {"atlas": draft["atlas"].fingerprint, "modalities": sorted(spec.atlas.modalities), "media": spec.atlas.media.identity()}
        of_rows |= describe.prompt_identity(spec)
        made = {"baseline": backbone.identity_of(draft, model, "evaluate.baselines"), **of_rows}
    return {**made, "generation": spec.evaluate.generation.identity(), "split": spec.evaluate.split, "prompts": _prompts(spec, arm)}


def _prompts(spec: ExperimentSpec, arm: str) -> dict[str, Any] | None:
    """The wording around each prompt, by content, and how a response is read; None where the prompt is the row's own.

    Raises:
        SpecError: the file of the wording is not there or not in order.
    """
    from hba_ray.data.prompts import load_reasoning

    chosen = spec.evaluate.generation.prompt
    if chosen == "plain" or (chosen == "auto" and arm in baselines(spec)):
        return None
    return {"reasoning": load_reasoning(spec.grpo.prompts).identity(), "answer_from": spec.grpo.reward.answer_from}


def job_of(context: Context) -> GenerateJob:
    """How the rows of an arm are predicted."""
    from hba_ray.data.prompts import ReasoningPrompt
    from hba_ray.predict.jobs import GenerateJob

    spec, arm = context.spec, context.arm or ""
    model = baselines(spec).get(arm)
    if model is None:
        model = str(context.folders[arm.split("+")[-1]] / "model")
    elif model == "tiny":
        model = context.backbone
    prompts = _prompts(spec, arm)
    if prompts is None:
        return GenerateJob(spec, model, context.index)
    return GenerateJob(spec, model, context.index, ReasoningPrompt.model_validate(prompts["reasoning"]), prompts["answer_from"])


def published_model(spec: ExperimentSpec, arm: str) -> PublishedModel:
    """Whose published scores stand beside an arm's."""
    from typing import get_args

    from hba_ray.evaluation.published import PublishedModel

    name = _short(baselines(spec).get(arm, "")).lower()
    published = [model for model in get_args(PublishedModel) if name.startswith(model.lower())]
    return published[0] if published else "OmniSapiens-7B RL" if arm not in baselines(spec) else "OmniSapiens-7B SFT"


def facts_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a reader has to know of the answers: rows without a label of theirs, and what the model was not shown."""
    counts: dict[str, Counter[str]] = {"out_of_domain": Counter(), "withheld": Counter(), "as_images": Counter()}
    for record in records:
        read = record["answer"] if DATASETS[record["dataset"]].task.is_open else record["predicted"]
        counts["out_of_domain"].update([] if read else [record["dataset"]])
        counts["withheld"].update(record.get("withheld", ()))
        counts["as_images"].update(["video"] if record.get("as_images") else [])
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def notes(facts: Mapping[str, Any]) -> list[str]:
    """Sentences of `facts_of`."""
    arm, said = facts["arm"], []
    for modality, rows in facts["withheld"].items():
        said.append(f"{arm}: the model takes no {modality}, which was withheld from {rows} rows.")
    if rows := sum(facts["as_images"].values()):
        said.append(f"{arm}: the model takes no video; {rows} rows showed it the frames as images.")
    if facts["out_of_domain"]:
        each = ", ".join(f"{rows} of {dataset}" for dataset, rows in facts["out_of_domain"].items())
        said.append(f"{arm}: responses without an answer of the dataset count as wrong: {each}.")
    return said

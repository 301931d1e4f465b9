"""The judge step, one for each arm where there may be open answers: a language model grades them,
and the arm is scored again, now by the paper's measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.progress import progress
from hba_ray.specs import AtlasSpec, ExperimentSpec
from hba_ray.specs.evaluate import JudgeSpec
from hba_ray.steps.base import Context, Draft, Step
from hba_ray.steps.evaluate import PREDICTIONS, SCORES, predictions_of, published_model
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import Storage, write_text

if TYPE_CHECKING:
    from hba_ray.evaluation.scores import Record, Verdicts
    from hba_ray.judge.grade import JudgeItem, Verdict

VERDICTS = "verdicts.parquet"


def plan(draft: Draft, predicted: Step) -> Step | None:
    """None where the spec names no judge, or its datasets have no open answers.

    Args:
        predicted: the step that makes the arm's predictions.

    Raises:
        SpecError: the prompts file is missing or not in order.
    """
    judge = draft.spec.evaluate.judge
    if judge is None or not has_open_answers(draft.spec.atlas):
        return None
    from hba_ray.judge.grade import judge_fingerprint

    identity = {"predictions": predicted.fingerprint, "judge": judge_fingerprint(judge)}
    what = f"{judge.model} grades open answers by the {judge.prompts} prompts"
    return draft.add("judge", identity, what, arm=predicted.arm, resources="network")


def has_open_answers(atlas: AtlasSpec) -> bool:
    """Whether an atlas may hold rows of an open task, as far as its spec tells."""
    if atlas.datasets is not None:
        return any(find_dataset(name).task.is_open for name in atlas.datasets)
    converted = [dataset for dataset in DATASETS.values() if dataset.source == atlas.source]
    return any(dataset.task.is_open for dataset in converted) if converted else True


def check(spec: ExperimentSpec) -> None:
    """Asks the judge one small question.

    Raises:
        EnvironmentMissing: no key, no endpoint, or no such model.
    """
    from hba_ray.judge.grade import check_judge

    if spec.evaluate.judge is not None:
        check_judge(spec.evaluate.judge)


def make(context: Context) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from hba_ray.evaluation.scores import score_predictions
    from hba_ray.judge.grade import judge_items, verdict_table

    judge, index = context.spec.evaluate.judge, context.index
    assert judge is not None
    predictions = read_parquet(predictions_of(context.folders, context.arm) / PREDICTIONS)
    items = open_items(predictions.to_pylist())
    with progress(f"judge {context.arm}", total=len(items)) as bar:
        verdicts = judge_items(items, judge, Storage(context.spec.compute.storage).judge_cache, bar) if items else []
    pq.write_table(verdict_table(verdicts), context.folder / VERDICTS)
    said = {(verdict.dataset, verdict.sample_id): verdict.correct for verdict in verdicts}
    published = published_model(context.spec, context.arm or "")
    scores = score_predictions(
        predictions, context.whole_index.label_counts("train"), datasets=index.counts(), verdicts=said, published_model=published
    )
    write_text(context.folder / SCORES, scores.to_json())
    return {"arm": context.arm, **summary(verdicts, judge)}


def open_items(records: Sequence[Record]) -> list[JudgeItem]:
    """The open answers among the rows of a predictions table; one that says nothing is judged as an empty text."""
    from hba_ray.judge.grade import JudgeItem

    return [
        JudgeItem(record["sample_id"], record["dataset"], record["question"] or "", record["answer"] or "", record["true"])
        for record in records
        if DATASETS[record["dataset"]].task.is_open
    ]


def summary(verdicts: Sequence[Verdict], judge: JudgeSpec) -> dict[str, Any]:
    """Counts of verdicts and tokens; tokens and price are those of this run, answers from the cache cost nothing."""
    asked = [verdict for verdict in verdicts if not verdict.was_cached]
    tokens = [sum(getattr(verdict, name) for verdict in asked) for name in ("input_tokens", "output_tokens")]
    return {
        "judge": judge.model,
        "prompts": judge.prompts,
        "served_by": sorted({verdict.served_by for verdict in verdicts if verdict.served_by}),
        "true": sum(verdict.correct is True for verdict in verdicts),
        "false": sum(verdict.correct is False for verdict in verdicts),
        "unreadable": dict(sorted(Counter(verdict.defect for verdict in verdicts if verdict.correct is None).items())),
        "from_cache": len(verdicts) - len(asked),
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "dollars": None if judge.price is None else (tokens[0] * judge.price.input + tokens[1] * judge.price.output) / 1e6,
    }


def verdicts_in(folder: Path) -> Verdicts:
    """What a judge step left."""

    rows = read_parquet(folder / VERDICTS, columns=["dataset", "sample_id", "correct"]).to_pylist()
    return {(row["dataset"], row["sample_id"]): row["correct"] for row in rows}


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    unreadable = sum(facts["unreadable"].values())
    if not facts["true"] + facts["false"] + unreadable:
        return []
    why = ", ".join(f"{defect} {count}" for defect, count in facts["unreadable"].items())
    cost = "" if facts["dollars"] is None else f", {facts['dollars']:.4f} dollars"
    served = f" (served as {', '.join(facts['served_by'])})" if facts["served_by"] else ""
    return [
        f"Open answers of {facts['arm']} were graded by {facts['judge']}{served} with the {facts['prompts']} prompts: "
        f"{facts['true']} TRUE, {facts['false']} FALSE, {unreadable} unreadable" + (f" ({why})" if why else "") + "; "
        f"{facts['from_cache']} from the cache, {facts['input_tokens'] + facts['output_tokens']} tokens{cost}."
    ]

"""The judge step, one for each arm where there may be open answers: a language model grades them,
and the arm is scored again, now by the paper's measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.evaluation.arms import Arm
from hba_ray.progress import progress
from hba_ray.specs import AtlasSpec, ExperimentSpec
from hba_ray.specs.sections.atlas import SourceSpec
from hba_ray.specs.sections.evaluate import JudgeSpec
from hba_ray.steps.base import Context, Draft, Result, Step, StepKind
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.software import Variable
from hba_ray.steps.results.evaluate import PREDICTIONS, SCORES, published_model
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import write_text

if TYPE_CHECKING:
    from hba_ray.evaluation.scores import Record, Verdicts
    from hba_ray.judge.grade import JudgeItem, Verdict

VERDICTS = "verdicts.parquet"


@dataclass(frozen=True, kw_only=True)
class JudgeResult(Result):
    """What a judge step says of the verdicts.

    Attributes:
        arm: whose answers were graded.
        judge, prompts: as the spec names them; `served_by` are the models that the endpoint says it took.
        true, false: verdicts; `unreadable` counts by defect the replies that gave none.
        from_cache: verdicts that cost nothing; tokens and dollars are those of the others, dollars None where no price is known.
    """

    arm: str
    judge: str
    prompts: str
    true: int
    false: int
    unreadable: dict[str, int]
    from_cache: int
    input_tokens: int
    output_tokens: int
    dollars: float | None = None
    served_by: list[str] = field(default_factory=list)


def check_endpoint(spec: ExperimentSpec) -> None:
    """Asks the judge one small question.

    Raises:
        EnvironmentMissing: no key, no endpoint, or no such model.
    """
    from hba_ray.judge.grade import check_judge

    if spec.evaluate.judge is not None:
        check_judge(spec.evaluate.judge)


def needs_key(spec: ExperimentSpec) -> list[Need]:
    """The variable that holds the key of the judge, where it asks for one."""
    judge = spec.evaluate.judge
    if judge is None or judge.key_env is None:
        return []
    way_out = f"export {judge.key_env}=..., or give evaluate.judge.key_env=null for an endpoint that asks for no key"
    return [Variable("evaluate.judge.key_env", judge.key_env, way_out)]


class JudgeSteps(StepKind[JudgeResult]):
    """Has a language model grade an arm's open answers, and scores the arm again by the paper's measure."""

    name = "judge"
    result_type = JudgeResult
    check = staticmethod(check_endpoint)

    def plan(self, draft: Draft) -> None:
        """One for each arm that is predicted, where the spec names a judge and its datasets may have open answers.

        Raises:
            SpecError: the prompts file is missing or not in order.
        """
        for predicted in draft.of_kind("evaluate"):
            self.plan_for(draft, predicted)

    def plan_for(self, draft: Draft, predicted: Step) -> None:
        """Plans the grading of what an evaluate step predicts."""
        judge = draft.spec.evaluate.judge
        if judge is None or not has_open_answers(draft.spec.atlas):
            return
        from hba_ray.judge.grade import judge_fingerprint

        identity = {"predictions": predicted.fingerprint, "judge": judge_fingerprint(judge)}
        what = f"{judge.model} grades open answers by the {judge.prompts} prompts"
        draft.add(self, identity, what, arm=predicted.arm, resources="network")

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        return needs_key(spec)

    def make(self, context: Context) -> JudgeResult:
        import pyarrow.parquet as pq

        from hba_ray.evaluation.scores import score_predictions
        from hba_ray.judge.grade import judge_items, verdict_table

        judge, arm = context.spec.evaluate.judge, context.arm
        assert judge is not None
        predictions = read_parquet(context.folder_of(f"evaluate {arm}") / PREDICTIONS)
        items = open_items(predictions.to_pylist())
        with progress(context.step.name, total=len(items)) as bar:
            verdicts = judge_items(items, judge, context.storage.judge_cache, bar) if items else []
        pq.write_table(verdict_table(verdicts), context.folder / VERDICTS)
        said = {(verdict.dataset, verdict.sample_id): verdict.correct for verdict in verdicts}
        counts, published = context.whole_index.label_counts("train"), published_model(context.spec, arm)
        merging, listed = context.spec.evaluate.sentiment_merging, context.index.counts()
        scores = score_predictions(predictions, counts, datasets=listed, verdicts=said, published_model=published, merging=merging)
        write_text(context.folder / SCORES, scores.to_json())
        return _result(arm, verdicts, judge)

    def notes(self, spec: ExperimentSpec, result: JudgeResult) -> list[str]:
        unreadable = sum(result.unreadable.values())
        if not result.true + result.false + unreadable:
            return []
        why = ", ".join(f"{defect} {count}" for defect, count in result.unreadable.items())
        cost = "" if result.dollars is None else f", {result.dollars:.4f} dollars"
        served = f" (served as {', '.join(result.served_by)})" if result.served_by else ""
        return [
            f"Open answers of {result.arm} were graded by {result.judge}{served} with the {result.prompts} prompts: "
            f"{result.true} TRUE, {result.false} FALSE, {unreadable} unreadable" + (f" ({why})" if why else "") + "; "
            f"{result.from_cache} from the cache, {result.input_tokens + result.output_tokens} tokens{cost}."
        ]


def has_open_answers(atlas: AtlasSpec) -> bool:
    """Whether an atlas may hold rows of a task with open answers, as far as its spec says."""
    if atlas.datasets is not None:
        return any(find_dataset(name).task.is_open for name in atlas.datasets)
    return any(_has_open_answers(part) for part in atlas.parts)


def _has_open_answers(part: SourceSpec) -> bool:
    if part.datasets is not None:
        return any(find_dataset(name).task.is_open for name in part.datasets)
    converted = [dataset for dataset in DATASETS.values() if dataset.source == part.source]
    return any(dataset.task.is_open for dataset in converted) if converted else True


def open_items(records: Sequence[Record]) -> list[JudgeItem]:
    """The open answers among the rows of a predictions table; one that says nothing is judged as an empty text."""
    from hba_ray.judge.grade import JudgeItem

    return [
        JudgeItem(record["sample_id"], record["dataset"], record["question"] or "", record["answer"] or "", record["true"])
        for record in records
        if DATASETS[record["dataset"]].task.is_open
    ]


def _result(arm: Arm, verdicts: Sequence[Verdict], judge: JudgeSpec) -> JudgeResult:
    """The counts of `JudgeResult`; verdicts from the cache cost no tokens."""
    asked = [verdict for verdict in verdicts if not verdict.was_cached]
    tokens = [sum(getattr(verdict, name) for verdict in asked) for name in ("input_tokens", "output_tokens")]
    return JudgeResult(
        arm=str(arm),
        judge=judge.model,
        prompts=judge.prompts,
        served_by=sorted({verdict.served_by for verdict in verdicts if verdict.served_by}),
        true=sum(verdict.correct is True for verdict in verdicts),
        false=sum(verdict.correct is False for verdict in verdicts),
        unreadable=dict(sorted(Counter(verdict.defect for verdict in verdicts if verdict.correct is None).items())),
        from_cache=len(verdicts) - len(asked),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        dollars=None if judge.price is None else (tokens[0] * judge.price.input + tokens[1] * judge.price.output) / 1e6,
    )


def verdicts_in(folder: Path) -> Verdicts:
    """(dataset, sample id) -> verdict, from the folder of a judge step."""

    rows = read_parquet(folder / VERDICTS, columns=["dataset", "sample_id", "correct"]).to_pylist()
    return {(row["dataset"], row["sample_id"]): row["correct"] for row in rows}

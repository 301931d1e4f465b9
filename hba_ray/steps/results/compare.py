"""The compare step, one for each arm but the first: it is held against another arm, and the rows on which they differ are listed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.evaluation.arms import Arm, held_against
from hba_ray.progress import progress
from hba_ray.steps.base import Context, Draft, Result, StepKind
from hba_ray.steps.results.evaluate import PREDICTIONS, EvaluateSteps
from hba_ray.steps.results.judge import verdicts_in
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import Storage, done, reopen, write_text

if TYPE_CHECKING:
    from hba_ray.evaluation.pairs import ArmRows

COMPARISON, DIFFERENCES = "comparison.json", ("differences.csv", "differences.md")


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """What a compare step says.

    Attributes:
        against: the other arm.
        datasets: that both arms predict.
        judged: names of the folders of the judge steps whose verdicts were compared.
    """

    against: str
    datasets: int
    judged: list[str] = field(default_factory=list)


class CompareSteps(StepKind[CompareResult]):
    """Holds each arm but the first against another one by paired tests, and lists the rows in which they differ."""

    name = "compare"
    version = 2
    unversioned = 2
    result_type = CompareResult

    def plan(self, draft: Draft) -> None:
        arms = [step.arm for step in draft.of_kind("evaluate") if step.arm is not None]
        for arm in arms:
            against = held_against(draft.spec, arm, arms)
            if against is not None:
                identity = {"arms": [str(against), str(arm)], "rows": [_rows_of(draft, one) for one in (against, arm)]}
                draft.add(self, identity, f"compare with {against} by paired tests", arm=arm)

    def make(self, context: Context) -> CompareResult:
        from hba_ray.evaluation.pairs import compare_tables, differences, pairs_to_json

        arms = [step.arm for step in context.earlier.values() if step.kind == EvaluateSteps() and step.arm is not None]
        against = held_against(context.spec, context.arm, arms)
        assert against is not None
        with progress(context.step.name, total=None):
            first, second = (_arm_rows(context, arm) for arm in (against, context.arm))
            pairs = compare_tables(first, second)
            for file, text in zip(DIFFERENCES, differences(first, second), strict=True):
                write_text(context.folder / file, text)
        write_text(context.folder / COMPARISON, pairs_to_json(pairs))
        graded = [context.earlier.get(f"judge {arm}") for arm in (against, context.arm)]
        return CompareResult(against=str(against), datasets=len(pairs), judged=[step.folder.name for step in graded if step])


def _rows_of(draft: Draft, arm: Arm) -> list[str]:
    """Fingerprints of the steps that made an arm's predictions and verdicts."""
    return [step.fingerprint for step in draft.steps if step.arm == arm and step.kind.name != "compare"]


def reopen_those_with(judged: Path, storage: Storage) -> None:
    """Marks the comparisons that used the verdicts of a judge step as not done, so that the next run of any spec makes them again."""
    for folder in storage.steps_of(CompareSteps.name):
        if done(folder) is not None and judged.name in CompareSteps().said(folder).judged:
            reopen(folder)


def _arm_rows(context: Context, arm: Arm) -> ArmRows:
    """An arm's predictions, and its verdicts where it was judged."""
    from hba_ray.evaluation.pairs import ArmRows

    graded = f"judge {arm}"
    verdicts = verdicts_in(context.folder_of(graded)) if graded in context.earlier else None
    return ArmRows(str(arm), read_parquet(context.folder_of(f"evaluate {arm}") / PREDICTIONS), verdicts)

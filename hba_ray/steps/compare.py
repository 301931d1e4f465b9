"""The compare step, one for each arm but the first: it is held against another arm, and the rows on which they differ are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import bam
from hba_ray.steps.base import Context, Draft, Step
from hba_ray.steps.evaluate import PREDICTIONS, predictions_of, whole_and_hidden
from hba_ray.steps.judge import VERDICTS, verdicts_in
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import done, reopen, write_text

if TYPE_CHECKING:
    from hba_ray.evaluation.pairs import ArmRows

COMPARISON, DIFFERENCES = "comparison.json", ("differences.csv", "differences.md")


def plan(draft: Draft, arm: str) -> Step | None:
    """None for the first arm, which is held against nothing.

    Args:
        arm: its predictions, and its verdicts where there are any, are in the draft already.
    """
    against = held_against(draft.spec, arm, list(dict.fromkeys(step.arm for step in draft.steps if step.arm)))
    if against is None:
        return None
    identity = {"arms": [against, arm], "rows": [_rows_of(draft, one) for one in (against, arm)]}
    return draft.add("compare", identity, f"hold against {against}", arm=arm)


def _rows_of(draft: Draft, arm: str) -> list[str]:
    """What an arm said is what its earlier steps made."""
    return [step.fingerprint for step in draft.steps if step.arm == arm and step.kind != "compare"]


def held_against(spec: ExperimentSpec, arm: str, arms: Sequence[str]) -> str | None:
    """The arm that another one is held against: one from which something is withheld against the one that has it,
    BAM against the model that it adapts, every other against the first; None for the first."""
    whole, hidden = whole_and_hidden(arm)
    if hidden and whole in arms:
        return whole
    if arm == bam.ARM:
        return bam.reference(spec)
    return None if arm == arms[0] else arms[0]


def make(context: Context) -> dict[str, Any]:
    from hba_ray.evaluation.pairs import compare_tables, differences, pairs_to_json

    arms = [arm for kind, _, arm in (name.partition(" ") for name in context.folders) if kind == "evaluate"]
    against = held_against(context.spec, context.arm or "", arms)
    assert against is not None and context.arm is not None
    with progress(f"compare {context.arm}", total=None):
        first, second = (arm_rows(context.folders, arm) for arm in (against, context.arm))
        pairs = compare_tables(first, second)
        for file, text in zip(DIFFERENCES, differences(first, second), strict=True):
            write_text(context.folder / file, text)
    write_text(context.folder / COMPARISON, pairs_to_json(pairs))
    judged = [context.folders[name].name for name in (f"judge {against}", f"judge {context.arm}") if name in context.folders]
    return {"against": against, "datasets": len(pairs), "judged": judged}


def reopen_those_with(judged: Path) -> None:
    """Has the comparisons that rest on a judge step's verdicts done again, in whatever run they are."""
    for folder in judged.parent.glob("compare-*"):
        facts = done(folder)
        if facts is not None and judged.name in facts["judged"]:
            reopen(folder)


def arm_rows(folders: Mapping[str, Path], arm: str) -> ArmRows:
    """An arm's predictions, and its verdicts where it was judged."""

    from hba_ray.evaluation.pairs import ArmRows

    judged = folders.get(f"judge {arm}")
    verdicts = verdicts_in(judged) if judged and (judged / VERDICTS).exists() else None
    return ArmRows(arm, read_parquet(predictions_of(folders, arm) / PREDICTIONS), verdicts)

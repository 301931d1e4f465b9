"""Counts each row that could not be used, once, and stops a step when a split has no row left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hba_ray.errors import DataError
from hba_ray.steps.base import Drops, Lost, Step

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex, Drop


def check_rows(index: AtlasIndex, split: str) -> None:
    """Refuses a split without rows, where something is to be learnt from it, or scored.

    Raises:
        DataError: it has none.
    """
    if not len(index.rows_of(split)):
        way_out = f"the folder needs a file such as {split}.jsonl or {split}-00000-of-00001.parquet; `hba atlas check` counts its rows"
        if split != "test":
            way_out += "; datasets outside the benchmark are trained on where atlas.train_also names them"
        raise DataError(index.root, f"the {split} split holds no rows", way_out, reason="no rows")


def check_some_left(split: str, rows: int, drops: list[Drop]) -> None:
    """Refuses a split of which no row could be read: there is nothing to train on, or to score.

    Raises:
        DataError: says why the rows were dropped.
    """
    lost = {drop for drop in drops if drop.split == split}
    if rows and len(lost) >= rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(Counter(drop.reason for drop in lost).items()))
        raise DataError(f"the {split} split", f"none of its {rows} rows could be read ({reasons})", "mend the clips", reason="no rows left")


def count_drops(drops: Iterable[Drop]) -> Drops:
    """How many rows were dropped, each counted once."""
    counts: Drops = {}
    for (dataset, reason), rows in sorted(Counter((drop.dataset, drop.reason) for drop in set(drops)).items()):
        counts.setdefault(dataset, {})[reason] = rows
    return counts


def losses(drops: Sequence[Drop]) -> Lost:
    """How many rows of the atlas a step had to leave out."""
    splits = sorted({drop.split for drop in drops})
    return {split: count_drops(drop for drop in drops if drop.split == split) for split in splits}


def join_losses(parts: Iterable[Mapping[str, Drops]]) -> Lost:
    """The rows that several steps lost, together. Two steps that read one split lose the same rows, which count once.

    >>> join_losses([{"test": {"cremad": {"corrupt audio": 2}}}, {"test": {"cremad": {"corrupt audio": 2}}}])
    {'test': {'cremad': {'corrupt audio': 2}}}
    """
    joined: Lost = {}
    for part in parts:
        for split, datasets in part.items():
            for dataset, reasons in datasets.items():
                kept = joined.setdefault(split, {}).setdefault(dataset, {})
                kept.update({reason: max(rows, kept.get(reason, 0)) for reason, rows in reasons.items()})
    return joined


def rows_left(counts: Mapping[str, Mapping[Any, int]], lost: Lost) -> dict[str, dict[Any, int]]:
    """dataset -> split -> rows of the atlas, without those that steps had to leave out.

    >>> rows_left({"cremad": {"train": 9, "test": 5}}, {"test": {"cremad": {"corrupt audio": 2}}})
    {'cremad': {'train': 9, 'test': 3}}
    """
    return {
        dataset: {split: rows - sum(lost.get(split, {}).get(dataset, {}).values()) for split, rows in splits.items()}
        for dataset, splits in counts.items()
    }


def rows_used(steps: Sequence[Step]) -> dict[str, dict[Any, int]]:
    """dataset -> split -> rows that the finished steps of an experiment used, as reports and tables count them."""
    atlas = next(step for step in steps if step.kind.name == "atlas")
    return rows_left(atlas.result().counts, join_losses(step.result().lost for step in steps if step.is_done))


def rows_dropped(steps: Sequence[Step]) -> Drops:
    """dataset -> reason -> rows that the finished steps of an experiment could not use, those dropped with the atlas among them."""
    results = [step.result() for step in steps if step.is_done]
    lost = join_losses(result.lost for result in results)
    return add_drops([*(result.drops for result in results), *lost.values()])


def add_drops(parts: Iterable[Drops]) -> Drops:
    """The sum of several counts."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for dataset, reasons in part.items():
            totals.setdefault(dataset, Counter()).update(reasons)
    return {dataset: dict(reasons) for dataset, reasons in totals.items()}

"""Splits of corpora that publish none: by whole groups (actor, scene, clip).

Groups are ordered by a hash of the seed and their name, so a split depends neither on the order of the rows nor on the version
of a random generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from hba_ray.data.rows import Row
from hba_ray.data.tasks import SPLITS, Dataset
from hba_ray.errors import DataError


def split_by_group(groups: Sequence[str], counts: tuple[int, int, int], seed: int) -> list[str]:
    """The split of each row; rows of one group are in one split.

    Test comes as near to its count as whole groups allow. Validation is then filled so that it and
    train, which takes the rest, together miss their counts by as little as possible. Where every group
    is a single row all counts are met exactly.

    Args:
        groups: the group of each row.
        counts: rows wanted in train, validation and test; they add up to the number of rows.

    Raises:
        DataError: the counts are negative or do not add up.
    """
    if min(counts) < 0 or sum(counts) != len(groups):
        raise DataError("splits", f"counts {counts} do not add up to {len(groups)} rows", "see share_out", reason="wrong counts")
    sizes = Counter(groups)
    free = sorted(sizes, key=lambda group: _place(group, seed))
    split_of = dict.fromkeys(sizes, "train")
    excess = 0
    for split, target in (("test", counts[2]), ("validation", counts[1])):
        chosen = {free[index] for index in _nearest_subset([sizes[group] for group in free], target, excess)}
        split_of.update(dict.fromkeys(chosen, split))
        free = [group for group in free if group not in chosen]
        excess = sum(sizes[group] for group in chosen) - target
    return [split_of[group] for group in groups]


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""A corpus's name of a split -> ours."""


def split_named(name: str, where: str) -> str:
    """Our name of a corpus's split.

    >>> split_named("Valid ", "row 1")
    'validation'

    Raises:
        DataError: it is none of SPLIT_NAMES.
    """
    found = SPLIT_NAMES.get(name.strip().lower())
    if found is None:
        raise DataError(where, f"the split is none of {', '.join(SPLIT_NAMES)}", "use the file as published", reason="unknown split")
    return found


def tell_crossings(group_of: Mapping[str, Iterable[str]], what: str) -> list[str]:
    """A sentence about groups that an official split spreads over several splits; none where there is no such group.

    Args:
        group_of: split -> the group of each of its rows.
        what: groups are, in the plural: "videos".
    """
    splits: dict[str, set[str]] = {}
    for split, groups in group_of.items():
        for group in groups:
            splits.setdefault(group, set()).add(split)
    crossing = sorted(group for group, its in splits.items() if len(its) > 1)
    return (
        [f"{len(crossing)} of {len(splits)} {what} lie in more than one of the official splits, the first: {crossing[0]}."]
        if crossing
        else []
    )


def split_rows(rows: Sequence[Row], groups: Sequence[str], counts: tuple[int, int, int], seed: int, *, where: str) -> dict[str, list[Row]]:
    """Split -> its rows, in their order, split by `split_by_group`.

    Args:
        groups: the group of each row.
        where: names the corpus in errors.

    Raises:
        DataError: as `split_by_group`.
    """
    split_of = split_by_group(groups, counts, seed)
    check_disjoint(groups, split_of, where=where)
    return {split: [row for row, its in zip(rows, split_of, strict=True) if its == split] for split in SPLITS}


def share_out(dataset: Dataset, total: int) -> tuple[int, int, int]:
    """The dataset's published counts (Table 7), scaled by largest remainder so that they add up to `total`.

    Raises:
        DataError: the dataset has no published counts.
    """
    if dataset.counts is None:
        raise DataError(dataset.id, "has no published counts to split by", reason="wrong counts")
    exact = [count * total / sum(dataset.counts) for count in dataset.counts]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(3), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares[0], shares[1], shares[2]


def check_disjoint(groups: Iterable[str], splits: Iterable[str], *, where: str) -> None:
    """Checks that no group lies in two splits.

    Raises:
        DataError: one does; names it and its splits.
    """
    found: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(split)
    leaks = sorted(group for group, its_splits in found.items() if len(its_splits) > 1)
    if leaks:
        its_splits = ", ".join(split for split in SPLITS if split in found[leaks[0]])
        what = f"{len(leaks)} group(s) lie in more than one split; first: '{leaks[0]}' in {its_splits}"
        raise DataError(where, what, reason="leak between splits")


def _place(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()


def _nearest_subset(sizes: Sequence[int], target: int, excess: int) -> list[int]:
    """Indices of sizes whose sum is nearest to `target`; by how much train then misses its count is added to the distance.

    Every sum that can be reached is kept with the index that reached it first. The sum without that size was
    reached by earlier indices only, so walking back from a sum takes no index twice.

    Args:
        excess: rows that other splits hold beyond their counts, which train then lacks.
    """
    first: dict[int, int] = {0: -1}
    for index, size in enumerate(sizes):
        if target in first:
            break
        for total in [total + size for total in first if total + size <= 2 * (target + abs(excess))]:
            first.setdefault(total, index)
    total = min(first, key=lambda reached: (abs(reached - target) + abs(reached - target + excess), abs(reached - target), reached))
    chosen = []
    while total:
        chosen.append(first[total])
        total -= sizes[first[total]]
    return chosen

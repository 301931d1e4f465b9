"""Stratified samples: fewer rows with the same shares of every label."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pyarrow as pa

from hba_ray.specs.sections.atlas import SampleSpec


def stratified(strata: Sequence[Hashable], count: int, seed: int) -> np.ndarray:
    """Places of a random sample in which each stratum has its share of the whole, to within one row; ascending.

    Shares are rounded by largest remainder. The same strata, count and seed give the same sample.

    Args:
        strata: of each row, for example its dataset and label.
        count: rows to draw; all are taken where there are no more.

    >>> labels = ["sad"] * 60 + ["happy"] * 40
    >>> [labels[place] for place in stratified(labels, 5, seed=0)]
    ['sad', 'sad', 'sad', 'happy', 'happy']
    """
    if count >= len(strata):
        return np.arange(len(strata))
    places: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(place)
    exact = {stratum: count * len(held) / len(strata) for stratum, held in places.items()}
    shares = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda stratum: shares[stratum] - exact[stratum])  # stable: the stratum seen first wins a tie
    for stratum in by_remainder[: count - sum(shares.values())]:
        shares[stratum] += 1
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(places[stratum], share, replace=False) for stratum, share in shares.items()]
    return np.sort(np.concatenate(drawn).astype(np.int64))


def thinned_lines(rows: pa.Table, split: str, count: int, seed: int) -> np.ndarray:
    """Numbers of the lines of an atlas's table without most of one split, in order.

    Args:
        rows: with the columns `split`, `dataset` and `label`.
        split: of which a sample stays, stratified by dataset and label; open answers have no label.
        count: rows of the split that stay; all do where there are no more.
    """
    within = np.array(rows["split"].to_pylist()) == split
    held = np.flatnonzero(within)
    named = rows.take(pa.array(held))
    strata = list(zip(named["dataset"].to_pylist(), named["label"].to_pylist(), strict=True))
    return np.sort(np.concatenate([np.flatnonzero(~within), held[stratified(strata, count, seed)]]))


def sampled_lines(rows: pa.Table, sample: SampleSpec) -> pa.Array:
    """Numbers of the lines of an atlas's table that a sample keeps, in order.

    Args:
        rows: with the columns `split`, `dataset` and `label`.
    """
    labels, groups = rows["label"].to_pylist(), {}
    for line, group in enumerate(zip(rows["split"].to_pylist(), rows["dataset"].to_pylist(), strict=True)):
        groups.setdefault(group, []).append(line)
    kept: list[int] = []
    for (split, _), lines in groups.items():
        count = getattr(sample, split)
        places = range(len(lines)) if count is None else stratified([labels[line] for line in lines], count, sample.seed)
        kept += [lines[place] for place in places]
    return pa.array(sorted(kept), pa.int64())

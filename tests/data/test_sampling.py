"""A stratified sample keeps the shares of all labels, and the same seed draws the same rows."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.sampling import sampled_lines, stratified, thinned_lines
from hba_ray.specs.sections.atlas import SampleSpec


@given(strata=st.lists(st.sampled_from("abcd"), min_size=1, max_size=200), count=st.integers(1, 250), seed=st.integers(0, 9))
def test_each_stratum_has_its_share_to_within_one_row(strata: list[str], count: int, seed: int):
    places = stratified(strata, count, seed)
    assert len(places) == min(count, len(strata)) and list(places) == sorted(set(places.tolist()))
    assert list(places) == list(stratified(strata, count, seed))
    drawn = Counter(strata[place] for place in places)
    for stratum, held in Counter(strata).items():
        assert abs(drawn[stratum] - len(places) * held / len(strata)) < 1


def test_only_the_named_splits_are_sampled_each_dataset_for_itself():
    cells = [("train", "one", "x"), ("train", "two", "x"), ("test", "one", "y"), ("validation", "two", "x")]
    rows = pa.Table.from_pylist([{"split": s, "dataset": d, "label": name} for s, d, name in cells * 10])
    kept = Counter(tuple(row.values())[:2] for row in rows.take(sampled_lines(rows, SampleSpec(train=3, test=20))).to_pylist())
    assert kept == {("train", "one"): 3, ("train", "two"): 3, ("test", "one"): 10, ("validation", "two"): 10}
    one, other = (sampled_lines(rows, SampleSpec(train=3, seed=seed)).to_pylist() for seed in (0, 1))
    assert one != other == sorted(other)


def test_one_split_is_thinned_with_the_shares_of_its_datasets_and_labels():
    cells = (
        [("validation", "one", "x")] * 6 + [("validation", "one", "y")] * 2 + [("validation", "open", None)] * 4 + [("train", "one", "x")]
    )
    rows = pa.Table.from_pylist([{"split": s, "dataset": d, "label": name} for s, d, name in cells * 5])
    lines = thinned_lines(rows, "validation", 12, seed=0)
    kept = Counter(tuple(row.values()) for row in rows.take(lines).to_pylist())
    assert kept == {
        ("validation", "one", "x"): 6, ("validation", "one", "y"): 2, ("validation", "open", None): 4, ("train", "one", "x"): 5
    }  # fmt: skip
    assert list(lines) == sorted(lines) == list(thinned_lines(rows, "validation", 12, seed=0))
    assert list(lines) != list(thinned_lines(rows, "validation", 12, seed=1))
    assert len(thinned_lines(rows, "validation", 1000, seed=0)) == len(rows)

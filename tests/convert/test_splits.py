from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.convert.splits import check_disjoint, share_out, split_by_group
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError

COUNTED = [dataset for dataset in DATASETS.values() if dataset.counts]


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[list[str], tuple[int, int, int]]:
    groups = draw(st.lists(st.integers(0, 12).map(str), min_size=1, max_size=60))
    cuts = sorted(draw(st.tuples(st.integers(0, len(groups)), st.integers(0, len(groups)))))
    return groups, (cuts[0], cuts[1] - cuts[0], len(groups) - cuts[1])


@given(grouped_rows(), st.integers(-5, 5))
def test_no_group_is_ever_in_two_splits_and_no_row_is_lost(rows: tuple[list[str], tuple[int, int, int]], seed: int):
    groups, counts = rows
    splits = split_by_group(groups, counts, seed)
    assert len(splits) == len(groups)
    assert set(splits) <= set(SPLITS)
    check_disjoint(groups, splits, where="test")


@given(grouped_rows(), st.integers(0, 5), st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: tuple[list[str], tuple[int, int, int]], seed: int, random):
    groups, counts = rows
    shuffled = random.sample(groups, len(groups))
    assert dict(zip(groups, split_by_group(groups, counts, seed), strict=True)) == dict(
        zip(shuffled, split_by_group(shuffled, counts, seed), strict=True)
    )


@given(grouped_rows())
def test_the_test_split_is_as_near_to_its_count_as_whole_groups_allow(rows: tuple[list[str], tuple[int, int, int]]):
    groups, counts = rows
    sums = {0}
    for size in Counter(groups).values():
        sums |= {total + size for total in sums}
    nearest = min(abs(total - counts[2]) for total in sums)
    assert abs(split_by_group(groups, counts, 0).count("test") - counts[2]) == nearest


@given(grouped_rows())
def test_validation_then_leaves_train_the_least_to_miss(rows: tuple[list[str], tuple[int, int, int]]):
    groups, counts = rows
    splits = split_by_group(groups, counts, 0)
    found = Counter(splits)
    sums = {0}
    for size in Counter(group for group, split in zip(groups, splits, strict=True) if split != "test").values():
        sums |= {total + size for total in sums}
    rest = len(groups) - found["test"]
    least = min(abs(total - counts[1]) + abs(rest - total - counts[0]) for total in sums)
    assert abs(found["validation"] - counts[1]) + abs(found["train"] - counts[0]) == least


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_counts_are_exact_where_every_group_is_one_row(train: int, validation: int, test: int, seed: int):
    groups = [f"clip {number}" for number in range(train + validation + test)]
    found = Counter(split_by_group(groups, (train, validation, test), seed))
    assert tuple(found[split] for split in SPLITS) == (train, validation, test)


def test_a_split_is_the_same_on_every_machine_and_another_for_another_seed():
    groups = [f"{number:02d}" for number in range(20)]
    splits = split_by_group(groups, (14, 3, 3), 0)
    assert [group for group, split in zip(groups, splits, strict=True) if split == "test"] == ["04", "07", "15"]
    assert splits != split_by_group(groups, (14, 3, 3), 1)


@pytest.mark.parametrize("counts", [(1, 1, 0), (4, -1, 0), (0, 0, 0)])
def test_counts_that_do_not_add_up_are_refused(counts: tuple[int, int, int]):
    with pytest.raises(DataError, match="do not add up to 3 rows"):
        split_by_group(["a", "b", "c"], counts, 0)


def test_a_leak_is_named():
    with pytest.raises(DataError, match=r"1 group\(s\).*'b' in train, test") as caught:
        check_disjoint(["a", "b", "b"], ["train", "test", "train"], where="corpus")
    assert caught.value.reason == "leak between splits"


@given(st.sampled_from(COUNTED), st.integers(0, 30_000))
def test_published_counts_are_shared_out_without_a_rest(dataset, total: int):
    shares = share_out(dataset, total)
    assert sum(shares) == total
    assert dataset.counts is not None
    for share, count in zip(shares, dataset.counts, strict=True):
        assert abs(share - count * total / sum(dataset.counts)) < 1


def test_published_counts_stay_as_they_are_for_the_published_size():
    for dataset in COUNTED:
        assert dataset.counts is not None
        assert share_out(dataset, sum(dataset.counts)) == dataset.counts


def test_a_dataset_without_published_counts_has_no_shares():
    with pytest.raises(DataError, match="no published counts"):
        share_out(DATASETS["toy_tone"], 10)

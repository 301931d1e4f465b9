"""The order is reproducible, complete, the same for any number of workers, and resumable anywhere."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.data.atlas import INDEX_SCHEMA, AtlasIndex
from hba_ray.data.feed.order import VIRTUAL_WORKERS, Order, micro_batches_per_epoch, plan_epoch


def index_of(rows: int, group_rows: int = 7, validation: int = 0) -> AtlasIndex:
    lines = rows + validation
    columns = {
        "shard": [0] * rows + [1] * validation,
        "group": [i // group_rows for i in range(lines)],
        "position": [i % group_rows for i in range(lines)],
        "split": ["train"] * rows + ["validation"] * validation,
        "dataset": ["mmsd"] * lines,
        "label": ["sarcasm"] * lines,
        "modality_signature": ["text"] * lines,
        "characters": [10] * lines,
    }
    return AtlasIndex("", (), pa.table(columns, schema=INDEX_SCHEMA))


ORDERS = st.builds(
    Order,
    split=st.just("train"),
    window=st.integers(1, 40),
    micro_batch=st.integers(1, 9),
    seed=st.integers(0, 9),
    shuffle=st.booleans(),
    world=st.integers(1, 5),
)


SPLITS = [(workers, micro_batch) for workers in (1, 2, 4) for micro_batch in (1, 2, 4, 8)]
"""Ways to divide an optimiser step."""
TRAINED = st.builds(
    Order,
    split=st.just("train"),
    window=st.integers(1, 70),
    micro_batch=st.just(1),
    seed=st.integers(0, 9),
    batch=st.sampled_from([32, 64, 96]),
)


def of_ranks(index: AtlasIndex, order: Order, epoch: int = 0):
    return [plan_epoch(index, Order(**{**vars(order), "rank": rank}), epoch) for rank in range(order.world)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), ORDERS, st.integers(0, 3))
def test_every_row_is_read_once_and_all_workers_take_the_same_steps(rows, order, epoch):
    index = index_of(rows)
    plans = of_ranks(index, order, epoch)
    assert sorted(line for plan in plans for window in plan for line in window.lines) == list(range(rows))
    assert len({tuple(window.micro_batches for window in plan) for plan in plans}) == 1
    assert sum(window.micro_batches for window in plans[0]) == micro_batches_per_epoch(index, order)
    for window in (window for plan in plans for window in plan):
        assert len(window.lines) <= order.window
        assert -(-len(window.lines) // order.micro_batch) <= window.micro_batches


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), ORDERS)
def test_the_same_seed_and_epoch_give_the_same_order(rows, order):
    assert of_ranks(index_of(rows), order, 1) == of_ranks(index_of(rows), order, 1)


def steps_of(index: AtlasIndex, order: Order, epoch: int) -> list[list[int]]:
    """The rows of each optimiser step, worker after worker; as in training/loop.py, a step is `accumulation` micro-batches of each."""
    accumulation = order.batch // (order.world * order.micro_batch)
    steps: list[list[int]] = []
    for plan in of_ranks(index, order, epoch):
        taken = 0
        for share in (share for window in plan for share in window.shares):
            step = taken // accumulation
            taken += share.micro_batches
            assert (taken - 1) // accumulation == step, "a share belongs to one step"
            steps += [[] for _ in range(step + 1 - len(steps))]
            steps[step] += share.lines
    return steps


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 400), group_rows=st.integers(1, 40), order=TRAINED, epoch=st.integers(0, 2))
def test_an_optimiser_step_has_the_same_rows_in_the_same_order_however_it_is_divided(rows, group_rows, order, epoch):
    index = index_of(rows, group_rows)
    steps = steps_of(index, order, epoch)
    assert [len(step) for step in steps[:-1]] == [order.batch] * (len(steps) - 1)
    assert sorted(line for step in steps for line in step) == list(range(rows))
    for workers, micro_batch in SPLITS:
        assert steps_of(index, replace(order, world=workers, micro_batch=micro_batch), epoch) == steps


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 400), order=TRAINED, split=st.sampled_from(SPLITS))
def test_steps_are_read_in_windows_of_bounded_size_and_all_workers_take_as_many_micro_batches(rows, order, split):
    index, order = index_of(rows), replace(order, world=split[0], micro_batch=split[1])
    plans = of_ranks(index, order)
    assert len({tuple(share.micro_batches for window in plan for share in window.shares) for plan in plans}) == 1
    assert sum(window.micro_batches for window in plans[0]) == micro_batches_per_epoch(index, order)
    for window in (window for plan in plans for window in plan):
        assert len(window.lines) <= max(order.window, order.micro_batch)
        assert all(-(-len(share.lines) // order.micro_batch) <= share.micro_batches for share in window.shares)


def test_a_step_mixes_the_rows_of_as_many_windows_as_there_are_virtual_workers():
    index, order = index_of(2000, group_rows=10), Order("train", window=25, micro_batch=5, batch=25)
    groups = [{line // 10 for line in step} for step in steps_of(index, order, 0)]
    assert min(len(step) for step in groups) > 10, "25 neighbouring rows would lie in 3 or 4 groups"
    spans = [set().union(*groups[start : start + VIRTUAL_WORKERS]) for start in range(0, len(groups), VIRTUAL_WORKERS)]
    assert [len(span) for span in spans] == [20] * 10, "a span of 8 windows is 20 row groups, which no other span reads"


def test_virtual_workers_read_most_row_groups_once_between_them():
    index, order = index_of(8192, group_rows=124), Order("train", window=256, micro_batch=2, batch=512, world=VIRTUAL_WORKERS)
    reads = [len({line // 124 for line in window.lines}) for plan in of_ranks(index, order) for window in plan]
    assert sum(reads) < 2 * 8192 / 124


def test_epochs_and_seeds_differ_in_order():
    index, order = index_of(200), Order("train", 50, 4)
    first = [window.lines for window in plan_epoch(index, order, 0)]
    assert first != [window.lines for window in plan_epoch(index, order, 1)]
    assert first != [window.lines for window in plan_epoch(index, Order("train", 50, 4, seed=1), 0)]


def test_without_shuffling_the_order_is_that_of_the_files():
    lines = [line for window in plan_epoch(index_of(50), Order("train", 8, 3, shuffle=False)) for line in window.lines]
    assert lines == list(range(50))


def test_rows_of_a_row_group_stay_together():
    order = Order("train", window=14, micro_batch=2)
    lines = np.array([line for window in plan_epoch(index_of(70), order) for line in window.lines])
    groups = lines // 7
    changes = int((np.diff(groups) != 0).sum())
    assert changes == len(set(groups.tolist())) - 1


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_are_walked_alone(split):
    index = index_of(20, validation=5)
    plan = plan_epoch(index, Order(split, 8, 2, shuffle=False))
    assert [line for window in plan for line in window.lines] == ([20, 21, 22, 23, 24] if split == "validation" else [])

"""The order is reproducible, complete, the same number of steps for all workers, and resumable anywhere."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.data.atlas import INDEX_SCHEMA, AtlasIndex
from hba_ray.data.order import Order, micro_batches_per_epoch, plan_epoch


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

"""The order of the rows: which rows each worker reads together, in each epoch. Pure and reproducible.

An epoch is a sequence of windows. A window is the rows that one worker reads, shuffles, sorts into
length buckets and cuts into micro-batches together, so it bounds the memory of a loader whatever
the size of the atlas. Row groups are visited in a shuffled order and read once, front to back.

The number of micro-batches of a window is fixed here, before anything is read, and is the same for
all workers; so all take the same steps, the schedule knows its length, and training can resume at
any window without reading what came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from hba_ray.data.atlas import AtlasIndex


@dataclass(frozen=True)
class Window:
    """What one worker reads at a time.

    Attributes:
        epoch: counted from 0.
        number: position in the epoch, from 0; the same for all workers.
        lines: lines of the atlas index; empty where a worker has no rows left but the others do.
        micro_batches: how many it is cut into; a missing one becomes a filler of weight 0.
        seed: of the shuffle inside the window.
    """

    epoch: int
    number: int
    lines: tuple[int, ...]
    micro_batches: int
    seed: int


@dataclass(frozen=True)
class Order:
    """How a split is walked.

    Attributes:
        window: rows of a window.
        micro_batch: rows of a micro-batch.
        shuffle: off for validation and prediction, which keep the order of the files.
    """

    split: str
    window: int
    micro_batch: int
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world: int = 1


def plan_epoch(index: AtlasIndex, order: Order, epoch: int = 0) -> list[Window]:
    """The windows of one worker in one epoch."""
    lines = _walk(index, order, epoch)
    windows = []
    for number, start in enumerate(range(0, len(lines), order.window * order.world)):
        shares = np.array_split(lines[start : start + order.window * order.world], order.world)
        micro_batches = ceil(max(len(share) for share in shares) / order.micro_batch)
        own = tuple(int(line) for line in shares[order.rank])
        windows.append(Window(epoch, number, own, micro_batches, _seed(order.seed, epoch, number, order.rank)))
    return windows


def micro_batches_per_epoch(index: AtlasIndex, order: Order) -> int:
    """Micro-batches of each worker; the same in every epoch, since only sizes count."""
    rows = len(index.rows_of(order.split))
    span = order.window * order.world
    sizes = [min(span, rows - start) for start in range(0, rows, span)]
    return sum(ceil(ceil(size / order.world) / order.micro_batch) for size in sizes)


def _walk(index: AtlasIndex, order: Order, epoch: int) -> np.ndarray:
    """All lines of the split in reading order: row groups shuffled, rows of a group together."""
    lines = index.rows_of(order.split)
    if not order.shuffle or len(lines) == 0:
        return lines
    shard = index.table.column("shard").to_numpy()[lines]
    group = index.table.column("group").to_numpy()[lines]
    starts = np.flatnonzero(np.r_[True, (np.diff(shard) != 0) | (np.diff(group) != 0)])
    pieces = np.split(lines, starts[1:])
    generator = np.random.default_rng([order.seed, epoch])
    return np.concatenate([pieces[piece] for piece in generator.permutation(len(pieces))])


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])

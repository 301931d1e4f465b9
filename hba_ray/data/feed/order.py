"""Which rows form each optimiser step, and which of them a worker reads together. Pure, and known before anything is read.

The rows of a step depend on the atlas, the seed, `sft.batch`, `sft.shuffle_window` and the epoch. How many workers share
a step, and how many rows each holds at a time, changes nothing about them:

    walk     the rows of the split: row groups in a shuffled order, the rows of a group in the order of the file
    span     a stretch of the walk as long as VIRTUAL_WORKERS shuffle windows, in whole steps; its rows are shuffled
    step     the next `batch` rows of a span, put back into the order of the walk
    share    one worker's part of a step: as many neighbouring rows as every other worker has
    window   the shares that a worker reads at a time: of several steps, of one, or a piece of one

A window holds at most `window` rows (or one micro-batch), so it bounds the memory of a loader whatever the size of the
atlas. Each of its row groups is opened once and read front to back. Fewer workers have more windows a span, and so open a
row group again: with the released groups of 124 rows, windows of 256 and batches of 512, eight workers open each about
twice an epoch, one worker four to five times (eight times with batches of 32).

The number of micro-batches of a share is fixed here and the same for all workers. So all take the same steps, the
schedule knows its length, and training resumes at any window without reading what came before. Rows of like length
meet in a micro-batch, but only within a share: that decides about padding, and not about the step (data/batches.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from hba_ray.data.atlas import AtlasIndex

VIRTUAL_WORKERS = 8
"""The order is that of a run on this many workers, however many there are."""


@dataclass(frozen=True)
class Share:
    """Rows that are cut into micro-batches together: a worker's rows of one optimiser step, or a piece of them.

    Attributes:
        lines: lines of the atlas index; empty where the worker has no rows left but others do.
        micro_batches: how many the rows are cut into; a missing one becomes a filler of weight 0.
    """

    lines: tuple[int, ...]
    micro_batches: int


@dataclass(frozen=True)
class Window:
    """What one worker reads at a time.

    Attributes:
        epoch: counted from 0.
        number: position in the epoch, from 0; the same for all workers.
        seed: of the order in which the micro-batches of a share come.
    """

    shares: tuple[Share, ...]
    epoch: int = 0
    number: int = 0
    seed: int = 0

    @property
    def lines(self) -> tuple[int, ...]:
        return tuple(line for share in self.shares for line in share.lines)

    @property
    def micro_batches(self) -> int:
        return sum(share.micro_batches for share in self.shares)


@dataclass(frozen=True)
class Order:
    """How a split is walked.

    Attributes:
        window: rows that a worker reads at a time, at most.
        micro_batch: rows of a micro-batch.
        shuffle: off for validation and prediction, which keep the order of the files.
        batch: rows of an optimiser step, a multiple of `world` x `micro_batch`; None where there are no steps, as in
            prediction: then each worker reads the next `window` rows of the walk.
        rank, world: the worker's number, from 0, and the number of workers.
    """

    split: str
    window: int
    micro_batch: int
    seed: int = 0
    shuffle: bool = True
    batch: int | None = None
    rank: int = 0
    world: int = 1


def plan_epoch(index: AtlasIndex, order: Order, epoch: int = 0) -> list[Window]:
    """The windows of one worker in one epoch."""
    windows: list[list[Share]] = []
    room = 0
    for step in steps_of(index, order, epoch):
        largest = ceil(len(step) / order.world)
        own = np.array_split(step, order.world)[order.rank]
        for start, end in _pieces(largest, order):
            if end - start > room:
                windows.append([])
                room = order.window
            windows[-1].append(Share(tuple(own[start:end].tolist()), ceil((end - start) / order.micro_batch)))
            room -= end - start
    return [Window(tuple(shares), epoch, n, _seed(order.seed, epoch, n, order.rank)) for n, shares in enumerate(windows)]


def micro_batches_per_epoch(index: AtlasIndex, order: Order) -> int:
    """Micro-batches of each worker; the same in every epoch, since only sizes count."""
    rows, step = len(index.rows_of(order.split)), _step_rows(order)
    sizes = [min(step, rows - start) for start in range(0, rows, step)]
    return sum(ceil(ceil(size / order.world) / order.micro_batch) for size in sizes)


def steps_of(index: AtlasIndex, order: Order, epoch: int) -> list[np.ndarray]:
    """The lines of each optimiser step, over all workers."""
    lines, size = _walk(index, order, epoch), _step_rows(order)
    places = np.arange(len(lines))
    if order.shuffle and order.batch is not None:
        span = size * max(1, VIRTUAL_WORKERS * order.window // size)
        for number, start in enumerate(range(0, len(places), span)):
            np.random.default_rng([order.seed, epoch, number]).shuffle(places[start : start + span])
    return [lines[np.sort(places[start : start + size])] for start in range(0, len(places), size)]


def _step_rows(order: Order) -> int:
    return order.batch or order.window * order.world


def _pieces(rows: int, order: Order) -> list[tuple[int, int]]:
    """Start and end of the pieces of a share: none is longer than a window, and all but the last are whole micro-batches."""
    longest = rows if rows <= order.window else max(1, order.window // order.micro_batch) * order.micro_batch
    return [(start, min(start + longest, rows)) for start in range(0, rows, longest)]


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

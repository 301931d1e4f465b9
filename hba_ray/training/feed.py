"""The worker's view of the data: iterators of micro-batches for an epoch of training and for validation.

Knows the order (data/windows.py) and how to resume inside an epoch; whether Ray makes the batches or
this process does is one argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.batches import MicroBatch
from hba_ray.data.windows import Order, Window, micro_batches_per_epoch, plan_epoch

Make = Callable[[str, Sequence[Window]], Iterator[MicroBatch]]
"""(split, windows) -> their micro-batches in order."""


@dataclass(frozen=True)
class Feed:
    """Micro-batches for one worker.

    Attributes:
        order: of the training split; validation walks the files in their own order.
    """

    index: AtlasIndex
    order: Order
    make: Make

    @property
    def micro_batches_per_epoch(self) -> int:
        return micro_batches_per_epoch(self.index, self.order)

    def training(self, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """The epoch's micro-batches from number `start`; windows before it are not read."""
        windows = plan_epoch(self.index, self.order, epoch)
        skipped = 0
        while windows and skipped + windows[0].micro_batches <= start:
            skipped += windows.pop(0).micro_batches
        batches = self.make("train", windows)
        for _ in range(start - skipped):
            next(batches)
        return batches

    @property
    def validates(self) -> bool:
        return len(self.index.rows_of("validation")) > 0

    def validation(self) -> Iterator[MicroBatch]:
        """All rows of the validation split, dealt out over the workers; nothing is dropped."""
        order = replace(self.order, split="validation", shuffle=False)
        return self.make("validation", plan_epoch(self.index, order))

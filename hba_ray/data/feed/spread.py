"""How work is spread over the cluster's CPUs: pickled items go through Ray Data, results come back in the order of the items.

Errors of ours are handed on as data: an exception in a task would be retried, then buried in Ray's own.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hba_ray.errors import HbaError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""How a piece of work is done on many items: results come in the order of the items."""

RESULT = "result"
"""Column of what model actors make."""
ITEM = "item"
"""Column of what is sent to them, and to loaders."""
_LEAST_STORE = 64 << 20
BLOCK_BYTES = 4 << 20
"""Ray Data hands micro-batches on once they fill this many bytes; its own default would hold back whole windows."""


def spread_here(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """The work done in this process."""
    return map(work, items)


def spread_on_ray(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """The work done by Ray Data, on all CPUs of the cluster.

    Raises:
        HbaError: the first that the work raised.
    """
    import ray

    if items:
        yield from unpacked(mapped(item_dataset(items), _done, fn_kwargs={"work": ray.put(work)}, num_cpus=1), RESULT)


def item_dataset(items: Sequence[Any], *, block_bytes: int = BLOCK_BYTES, store_bytes: int = 0) -> ray.data.Dataset:
    """A dataset of pickled items in their order, a block each.

    Args:
        block_bytes: what is made of them is handed on once it fills so many.
        store_bytes: that this dataset may fill; 0 leaves it to Ray Data.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = block_bytes
    context.execution_options.preserve_order = True
    store = float(max(store_bytes, _LEAST_STORE)) if store_bytes else None
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=store)
    packed = [{ITEM: pickle.dumps(item)} for item in items]
    return ray.data.from_items(packed, override_num_blocks=max(1, len(packed)))


def mapped(dataset: ray.data.Dataset, function: Any, **arguments: Any) -> ray.data.Dataset:
    return dataset.map_batches(function, batch_size=1, batch_format="pyarrow", **arguments)


def unpacked(dataset: ray.data.Dataset, column: str, prefetch: int = 1) -> Iterator[Any]:
    """The objects pickled in a column, row by row.

    Raises:
        HbaError: one of them is an error that a loader or a model actor handed on.
    """
    batch: Any
    for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
        item = pickle.loads(batch.column(column)[0].as_py())
        if isinstance(item, HbaError):
            raise item
        yield item


def _done(items: pa.Table, work: ray.ObjectRef) -> Iterator[dict[str, list[bytes]]]:
    """The results of some items."""
    yield from outputs(items, RESULT, lambda item: [_work(work)(item)])


def outputs(items: pa.Table, column: str, function: Callable[[Any], Iterable[Any]]) -> Iterator[dict[str, list[bytes]]]:
    """What a function makes of each item, a row each; an error is handed on as data and is the last row."""
    for item in map(pickle.loads, items.column(ITEM).to_pylist()):
        if isinstance(item, HbaError):
            yield {column: [pickle.dumps(item)]}
            return
        try:
            for made in function(item):
                yield {column: [pickle.dumps(made, protocol=5)]}
        except HbaError as bad:
            yield {column: [pickle.dumps(bad)]}
            return


@lru_cache(maxsize=4)
def _work(work: ray.ObjectRef) -> Callable[[Any], Any]:
    import ray

    return ray.get(work)

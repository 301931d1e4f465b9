"""How micro-batches reach a worker: made by Ray Data on the cluster's CPUs, or in this process.

A loader is sent a window, a few hundred row numbers, and sends back finished micro-batches. Clips are
read and decoded in the loader and never stored in between. Both ways give the same micro-batches in
the same order.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.feed.order import Window
from hba_ray.errors import HbaError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

    from hba_ray.specs import ComputeSpec

_RESULT = "result"
"""Column of what model actors make."""
_MICRO_BATCH = "micro_batch"
"""Column of what loaders make."""
BLOCK_BYTES = 4 << 20
"""Ray Data hands micro-batches on once they fill this many bytes; its own default would hold back whole windows."""


def make_here(maker: BatchMaker, windows: Sequence[Window]) -> Iterator[MicroBatch]:
    """Micro-batches of these windows, in their order, each made in this process when it is asked for."""
    for window in windows:
        yield from maker.window(window)


def make_on_ray(
    index: AtlasIndex,
    settings: BatchSettings,
    split: str,
    load_processor: Callable[[], Any],
    windows: Sequence[Window],
    *,
    loaders: int = 1,
    cpus_per_loader: float = 1.0,
    prefetch: int = 2,
) -> Iterator[MicroBatch]:
    """Micro-batches of these windows, made by Ray Data tasks, in the order of the windows.

    Args:
        load_processor: called once in each loader process.
        loaders: tasks that decode at a time, `cpus_per_loader` each.
        prefetch: micro-batches fetched ahead of the consumer.

    Raises:
        DataError: a bad row, where the settings say to fail; the same error that `make_here` raises.
        HbaError: the maker of a loader cannot be made.
    """
    dataset = micro_batch_dataset(index, settings, split, load_processor, windows, loaders=loaders, cpus_per_loader=cpus_per_loader)
    yield from unpacked(dataset, _MICRO_BATCH, prefetch)


def micro_batch_dataset(
    index: AtlasIndex,
    settings: BatchSettings,
    split: str,
    load_processor: Callable[[], Any],
    windows: Sequence[Window],
    *,
    loaders: int,
    cpus_per_loader: float,
) -> ray.data.Dataset:
    """A Ray Dataset whose rows are pickled micro-batches, or the DataError that one met, for `unpacked` or `map_with_model_actors`."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = True
    items = [{"window": pickle.dumps(window)} for window in windows]
    return ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
        _load,  # type: ignore[arg-type]
        fn_kwargs={"job": ray.put((index, settings, split, load_processor))},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=loaders),
        num_cpus=cpus_per_loader,
    )


def map_with_model_actors(
    dataset: ray.data.Dataset, load: Callable[[], Callable[[Any], Any]], compute: ComputeSpec, environ: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """The results of a model on a dataset's pickled rows, computed by `compute.workers` actors that hold a model each.

    Args:
        load: loads the model and returns the function from a row to its result; called once in each
            actor, when its first row is there. Picklable.
        environ: variables of the actors' processes.

    Raises:
        HbaError: the first that a loader, the loading of the model or the model raised.
    """
    from ray.data import ActorPoolStrategy

    own: dict[str, Any] = {"runtime_env": {"env_vars": dict(environ)}} if environ else {}
    results = dataset.map_batches(
        _ModelActor,
        fn_constructor_args=(load,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=compute.workers),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        **own,
    )
    yield from unpacked(results, _RESULT)


class _ModelActor:
    """One actor: its model is loaded when the first row is there."""

    def __init__(self, load: Callable[[], Callable[[Any], Any]]):
        self._load = load

    @cached_property
    def _work(self) -> Callable[[Any], Any]:
        return self._load()

    def __call__(self, rows: pa.Table) -> dict[str, list[bytes]]:
        return {_RESULT: [self._result(packed) for packed in rows.column(0).to_pylist()]}

    def _result(self, packed: bytes) -> bytes:
        item = pickle.loads(packed)
        if isinstance(item, HbaError):
            return packed
        try:
            return pickle.dumps(self._work(item))
        except HbaError as bad:  # handed on as data: an exception here would be retried, then buried in Ray's own
            return pickle.dumps(bad)


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


def _load(windows: pa.Table, job: ray.ObjectRef) -> Iterator[dict[str, list[bytes]]]:
    """The micro-batches of some windows, in a loader: the operator that reads, decodes and calls the processor."""
    for window in windows.column("window").to_pylist():
        try:
            for batch in _maker(job).window(pickle.loads(window)):
                yield {_MICRO_BATCH: [pickle.dumps(batch, protocol=5)]}
        except HbaError as bad:  # handed on as data, as in `_ModelActor`
            yield {_MICRO_BATCH: [pickle.dumps(bad)]}
            return


@lru_cache(maxsize=4)
def _maker(job: ray.ObjectRef) -> BatchMaker:
    """The maker of a job, loaded once in each loader process: Ray reuses the processes of its tasks."""
    import ray
    import torch

    torch.set_num_threads(1)
    index, settings, split, load_processor = ray.get(job)
    return BatchMaker(index, settings, load_processor(), split)

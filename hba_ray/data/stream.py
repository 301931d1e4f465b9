"""How micro-batches reach a worker: through Ray Data on the cluster's CPUs, or made in this process.

What travels to a loader is a window, a few hundred row numbers; what comes back is finished
micro-batches. Clips are read and decoded where they are used and never stored whole in between.
Both ways give the same batches in the same order.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.order import Window
from hba_ray.errors import DataError, HbaError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

    from hba_ray.specs import ComputeSpec

_MADE = "made"
BLOCK_BYTES = 4 << 20
"""Micro-batches are handed on once they fill this; Ray's own default would hold back whole windows."""


def make_here(maker: BatchMaker, windows: Sequence[Window]) -> Iterator[MicroBatch]:
    """Micro-batches of these windows, made in this process when asked for."""
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
    """
    dataset = micro_batch_dataset(index, settings, split, load_processor, windows, loaders=loaders, cpus_per_loader=cpus_per_loader)
    yield from unpacked(dataset, "micro_batch", prefetch)


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
    """A Ray Dataset with a packed micro-batch (or a packed DataError) a row, for `unpacked`."""
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


def made_by_models(
    dataset: ray.data.Dataset, load: Callable[[], Callable[[Any], Any]], compute: ComputeSpec, environ: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """What models make of a dataset's packed rows: `compute.workers` actors with a model each.

    Args:
        load: called once in each actor, when its first row is there; gives what turns a row into a result. Picklable.
        environ: variables of the actors' processes.

    Raises:
        HbaError: of a row, of loading or of the model, as it was met.
    """
    from ray.data import ActorPoolStrategy

    own: dict[str, Any] = {"runtime_env": {"env_vars": dict(environ)}} if environ else {}
    made = dataset.map_batches(
        _Model,
        fn_constructor_args=(load,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=compute.workers),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        **own,
    )
    yield from unpacked(made, _MADE)


class _Model:
    def __init__(self, load: Callable[[], Callable[[Any], Any]]):
        self._load = load

    @cached_property
    def _work(self) -> Callable[[Any], Any]:
        return self._load()

    def __call__(self, rows: pa.Table) -> dict[str, list[bytes]]:
        return {_MADE: [self._made(packed) for packed in rows.column(0).to_pylist()]}

    def _made(self, packed: bytes) -> bytes:
        item = pickle.loads(packed)
        if isinstance(item, HbaError):
            return packed
        try:
            return pickle.dumps(self._work(item))
        except HbaError as bad:  # handed on as data: an exception here would be retried, then buried in Ray's own
            return pickle.dumps(bad)


def unpacked(dataset: ray.data.Dataset, column: str, prefetch: int = 1) -> Iterator[Any]:
    """What loaders or model actors made, row by row; an HbaError among it is raised here."""
    batch: Any
    for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
        made = pickle.loads(batch.column(column)[0].as_py())
        if isinstance(made, HbaError):
            raise made
        yield made


def _load(windows: pa.Table, job: ray.ObjectRef) -> Iterator[dict[str, list[bytes]]]:
    """The last operator: reads, decodes, calls the processor."""
    maker = _maker(job)
    for window in windows.column("window").to_pylist():
        try:
            for batch in maker.window(pickle.loads(window)):
                yield {"micro_batch": [pickle.dumps(batch, protocol=5)]}
        except DataError as bad:  # handed on as data, as in `_Model`
            yield {"micro_batch": [pickle.dumps(bad)]}
            return


@lru_cache(maxsize=4)
def _maker(job: ray.ObjectRef) -> BatchMaker:
    """One per loader process and job: Ray keeps the processes of tasks, so the processor is loaded once."""
    import ray
    import torch

    torch.set_num_threads(1)
    index, settings, split, load_processor = ray.get(job)
    return BatchMaker(index, settings, load_processor(), split)

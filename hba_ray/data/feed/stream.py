"""How micro-batches reach a worker: made by Ray Data on the cluster's CPUs, or in this process.

One loader alone is sent a window, a few hundred row numbers, and sends back finished micro-batches. Where there are several, a
reader goes before them: it reads the rows of a window, puts those of like length together, and hands on tasks of `TASK_ROWS`
rows, clips as they are stored; loaders decode the tasks side by side. So what waits in the object store is a few tasks and not
a few windows, and the micro-batches do not depend on how they are shared out: all ways give the same ones in the same order.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from hba_ray.cluster import growth
from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, MicroBatch, Recipe
from hba_ray.data.feed.order import Window
from hba_ray.data.feed.spread import ITEM, RESULT, item_dataset, mapped, outputs, unpacked
from hba_ray.errors import HbaError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

    from hba_ray.specs import ComputeSpec, MediaSpec

_MICRO_BATCH = "micro_batch"
"""Column of what loaders make."""
TASK_ROWS = 8
"""Rows that a loader decodes at a time, at least, where there are several; a last micro-batch may make them a few more. Fewer cost more
calls than they save memory, and of more so many bytes wait that loaders do, too (`python -m tests.bench feed`)."""
WAITING_TASKS = 4
"""Tasks a loader, and what was made of them, that may wait in the object store: with fewer Ray Data lets one loader wait for another."""
_MEL_BYTES = 100 * 128 * 4
"""Bytes of a second of sound for the audio tower."""


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
        loaders: tasks that decode at a time, `cpus_per_loader` each; the reader before them takes no CPU of its own.
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

    job = {"job": ray.put((index, settings, split, load_processor))}
    loading: dict[str, Any] = {"compute": ray.data.TaskPoolStrategy(size=loaders), "num_cpus": cpus_per_loader}
    if loaders == 1:
        return mapped(item_dataset(windows), _load, fn_kwargs=job, **loading)
    # Blocks of one task each: a block of several would keep one loader busy while others wait.
    tasks = item_dataset(windows, block_bytes=1, store_bytes=loaders * waiting_bytes(settings.media))
    tasks = mapped(tasks, _read, fn_kwargs=job, compute=ray.data.TaskPoolStrategy(size=1), num_cpus=0)
    return mapped(tasks, _make, fn_kwargs=job, **loading)


def row_bytes(media: MediaSpec) -> int:
    """Bytes of a row as loaders make it of whole clips."""
    return media.video_frames * media.video_pixels * 3 + round(media.audio_seconds * _MEL_BYTES)


def waiting_bytes(media: MediaSpec) -> int:
    """Bytes of the object store that one of several loaders is given."""
    return WAITING_TASKS * TASK_ROWS * row_bytes(media)


def loaders_here(compute: ComputeSpec) -> int:
    """Loaders of each worker on the Ray that this process is connected to."""
    return compute.loaders_on(growth.cpus(compute))


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
    yield from unpacked(results, RESULT)


class _ModelActor:
    """One actor: its model is loaded when the first row is there."""

    def __init__(self, load: Callable[[], Callable[[Any], Any]]):
        self._load = load

    @cached_property
    def _work(self) -> Callable[[Any], Any]:
        return self._load()

    def __call__(self, rows: pa.Table) -> dict[str, list[bytes]]:
        return {RESULT: [self._result(packed) for packed in rows.column(0).to_pylist()]}

    def _result(self, packed: bytes) -> bytes:
        item = pickle.loads(packed)
        if isinstance(item, HbaError):
            return packed
        try:
            return pickle.dumps(self._work(item))
        except HbaError as bad:  # handed on as data: an exception here would be retried, then buried in Ray's own
            return pickle.dumps(bad)


def _load(windows: pa.Table, job: ray.ObjectRef) -> Iterator[dict[str, list[bytes]]]:
    """The micro-batches of some windows, in the only loader: the operator that reads, decodes and calls the processor."""
    yield from outputs(windows, _MICRO_BATCH, lambda window: _maker(job).window(window))


def _read(windows: pa.Table, job: ray.ObjectRef) -> Iterator[dict[str, list[bytes]]]:
    """The tasks of some windows, in the reader: lists of recipes."""
    yield from outputs(windows, ITEM, lambda window: tasks_of(_maker(job).recipes(window)))


def _make(tasks: pa.Table, job: ray.ObjectRef) -> Iterator[dict[str, list[bytes]]]:
    """The micro-batches of some tasks, in one of several loaders."""
    yield from outputs(tasks, _MICRO_BATCH, lambda task: map(_maker(job).make, task))


def tasks_of(recipes: Iterator[Recipe]) -> Iterator[list[Recipe]]:
    """The recipes in lists of at least `TASK_ROWS` rows; a last one may have fewer."""
    task: list[Recipe] = []
    for recipe in recipes:
        task.append(recipe)
        if sum(len(one.rows) for one in task) >= TASK_ROWS:
            yield task
            task = []
    if task:
        yield task


@lru_cache(maxsize=4)
def _maker(job: ray.ObjectRef) -> BatchMaker:
    """The maker of a job, loaded once in each loader process: Ray reuses the processes of its tasks."""
    import ray
    import torch

    torch.set_num_threads(1)
    index, settings, split, load_processor = ray.get(job)
    return BatchMaker(index, settings, load_processor(), split)

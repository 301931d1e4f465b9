"""Runs extractors: one in this process, or a pool of Ray Data actors in an environment of their own.

Clips are sent to actors as they are in the atlas, as bytes or as a path. An actor writes a clip's row into the table
itself, and only reports that it is done. Row groups of a parquet atlas are read once, by tasks in the training environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hba_ray.descriptors.store import Table
from hba_ray.errors import BadMedia, DataError, EnvironmentMissing

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.descriptors.keys import Wanted

TRIES = 3
"""Times that a run begins a clip. Ray begins it again when its actor dies, so a clip that kills its actor every time would
keep the run from ending."""
ACTORS_PER_READER = 8
"""One reader feeds several actors: describing a clip takes far longer than reading it, and starting a reader takes seconds."""

MOST_CLIPS_AT_A_TIME, MOST_BYTES_AT_A_TIME, HANDFULS_PER_ACTOR = 8, 8 << 20, 8
"""An actor gets a handful of clips at a time: at most so many, of so many bytes, and so few that each actor gets several handfuls."""


class Extractor(Protocol):
    """Describes clips of one stream. It is made in the process that uses it, since its libraries may not be picklable."""

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Work:
    """Clips to describe, the extractor that describes them, and the table for their rows.

    Attributes:
        wanted: one entry for each clip, in the order of the index.
        make: makes the extractor.
        keep: whether to store the values of every frame, too.
    """

    index: AtlasIndex
    wanted: Sequence[Wanted]
    table: Table
    make: Callable[[], Extractor]
    keep: bool = False


@dataclass(frozen=True)
class Done:
    """A clip whose row has been written. For a clip that cannot be described, reason and message say why; else both are None."""

    clip: str
    reason: str | None
    message: str | None


def describe_here(work: Work) -> Iterator[Done]:
    """Describes one clip after the other in this process."""
    worker = Worker(work.make, work.table, work.keep)
    for clip, content, where in read_clips(work.index, work.wanted):
        yield worker.describe(clip, content, where)


def describe_on_ray(work: Work, *, actors: int, gpus: float = 0.0, runtime_env: Mapping[str, Any] | None = None) -> Iterator[Done]:
    """Describes clips by a pool of actors, in any order.

    Args:
        actors: most actors at a time, a CPU each.
        gpus: GPUs of each actor.

    Raises:
        EnvironmentMissing: an actor cannot make its extractor.
    """
    import ray.data
    from ray.exceptions import RayActorError

    most = _clips_at_a_time(len(work.wanted), actors)
    pieces = _by_row_group(work.index, work.wanted, most)
    with _one_handful_a_block():
        clips = ray.data.from_items([{"piece": number} for number in range(len(pieces))], override_num_blocks=len(pieces)).map_batches(
            _read,  # type: ignore[arg-type]
            fn_kwargs={"job": ray.put((work.index, pieces)), "most": most},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=-(-actors // ACTORS_PER_READER)),
            num_cpus=0,  # else the actors of trials side by side could hold all CPUs, and no reader could start
        )
        described = clips.map_batches(
            Worker,  # type: ignore[arg-type]
            fn_constructor_args=(work.make, work.table, work.keep),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=1,
            num_gpus=gpus or None,
            runtime_env=dict(runtime_env) if runtime_env else None,
        )
        try:
            batch: Any
            for batch in described.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for handful in batch.column("done").to_pylist():
                    yield from (Done(**record) for record in handful)
        except RayActorError as cause:
            what = f"its process ended: {str(cause).strip().splitlines()[-1]}"
            raise EnvironmentMissing(f"the {work.table.kind} extractor", what, "Ray's logs, in the run's folder, say more") from cause


class Worker:
    """An extractor that writes the rows of the clips it describes. An instance is a Ray Data actor, or works in this process."""

    def __init__(self, make: Callable[[], Extractor], table: Table, keep: bool):
        self._extractor, self._table, self._keep = make(), table, keep

    def __call__(self, handfuls: pa.Table) -> dict[str, list[list[dict[str, Any]]]]:
        return {"done": [[asdict(self._describe(**clip)) for clip in handful] for handful in handfuls.column("clips").to_pylist()]}

    def _describe(self, clip: str, where: str, content: bytes, path: str | None) -> Done:
        return self.describe(clip, content if path is None else Path(path), where)

    def describe(self, clip: str, content: bytes | Path, where: str) -> Done:
        try:
            if self._table.begin(clip) > TRIES:
                raise BadMedia(where, f"its extractor died {TRIES} times over this clip", reason="extractor died")
            row = self._extractor.describe(content, where=where, keep=self._table.frames_file(clip) if self._keep else None)
        except BadMedia as bad:
            row = {"reason": bad.reason, "message": bad.what}
        self._table.add(clip, row)
        return Done(clip, row.get("reason"), row.get("message"))


def read_clips(index: AtlasIndex, wanted: Sequence[Wanted]) -> Iterator[tuple[str, bytes | Path, str]]:
    """Reads clips: (key, bytes or path, place of the row for errors).

    Raises:
        DataError: a row cannot be read any more.
    """
    from hba_ray.data.atlas import read_rows
    from hba_ray.descriptors.keys import clip_of

    by_line: dict[int, list[Wanted]] = {}
    for one in wanted:
        by_line.setdefault(one.line, []).append(one)
    for line, row in zip(sorted(by_line), read_rows(index, list(by_line)), strict=True):
        if isinstance(row, DataError):
            raise row
        for one in by_line[line]:
            clip = clip_of(row, one.source)
            if clip is None:
                raise DataError(place_of(index, line), f"has no {one.source} any more", "the atlas changed while it was read: start again")
            yield one.clip, clip, place_of(index, line)


def place_of(index: AtlasIndex, line: int) -> str:
    """Names file, row and dataset of a line of the index, for errors."""
    row = index.table.slice(line, 1).to_pylist()[0]
    shard = index.shards[row["shard"]]
    group = f" of group {row['group']}" if shard.is_parquet else ""
    return f"{Path(shard.path).name} row {row['position']}{group} ({row['dataset']})"


def _by_row_group(index: AtlasIndex, wanted: Sequence[Wanted], least: int) -> list[list[Wanted]]:
    """Divides clips over the tasks that read them, by whole row groups; a task reads at least `least` clips.

    In a jsonl atlas each row is a row group of its own.
    """
    lines = index.table.select(["shard", "group"]).take([one.line for one in wanted]).to_pydict()
    groups: dict[tuple[int, int], list[Wanted]] = {}
    for one, shard, group in zip(wanted, lines["shard"], lines["group"], strict=True):
        groups.setdefault((shard, group), []).append(one)
    pieces: list[list[Wanted]] = []
    for group in groups.values():
        if pieces and len(pieces[-1]) < least:
            pieces[-1].extend(group)
        else:
            pieces.append(group)
    return pieces


def _clips_at_a_time(clips: int, actors: int) -> int:
    """Clips of a handful: enough to outweigh Ray Data's overhead, and few enough that no actor idles at the end."""
    return max(1, min(MOST_CLIPS_AT_A_TIME, clips // (actors * HANDFULS_PER_ACTOR)))


def _read(pieces: pa.Table, job: ray.ObjectRef, most: int) -> Iterator[dict[str, list[list[dict[str, Any]]]]]:
    """Reads the clips of a piece, a handful at a time."""
    index, wanted = _job(job)
    for number in pieces.column("piece").to_pylist():
        handful: list[dict[str, Any]] = []
        size = 0
        for clip, content, where in read_clips(index, wanted[number]):
            is_path = isinstance(content, Path)
            handful.append(
                {"clip": clip, "where": where, "content": b"" if is_path else content, "path": str(content) if is_path else None}
            )
            size += 0 if is_path else len(content)
            if len(handful) == most or size >= MOST_BYTES_AT_A_TIME:
                yield {"clips": [handful]}
                handful, size = [], 0
        if handful:
            yield {"clips": [handful]}


@lru_cache(maxsize=1)
def _job(job: ray.ObjectRef) -> tuple[AtlasIndex, list[list[Wanted]]]:
    """The index and the pieces of a job, which a reader process fetches once."""
    import ray

    return ray.get(job)


@contextmanager
def _one_handful_a_block() -> Iterator[None]:
    """Sets Ray Data up so that each row, a handful of clips, is a block of its own and no actor is stopped before the end."""
    from ray.data import DataContext

    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size, context.execution_options.preserve_order = 1, False
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0  # idle actors stay, too
    context.enable_progress_bars = False
    with DataContext.current(context):
        yield

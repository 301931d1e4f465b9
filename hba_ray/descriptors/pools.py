"""Extractors at work: one in this process, or a pool of Ray Data actors with an environment of their own.

What travels to an actor is a clip as it lies in the atlas, its bytes or its path; the actor writes
the clip's row itself, and only the word that it is done comes back. Row groups of a parquet atlas
are read once, by tasks in the usual environment.
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
"""Times that a clip is begun in one run. Ray begins it again where its actor was lost; one that takes
its actor with it every time would never let the run end."""
ACTORS_PER_READER = 8
"""A clip takes an actor far longer than a reader, and each reader is a process that first imports Ray Data and a decoder."""

MOST_CLIPS_AT_A_TIME, MOST_BYTES_AT_A_TIME, HANDFULS_PER_ACTOR = 8, 8 << 20, 8
"""Of what an actor gets at a time, a handful: clips, bytes of clips that travel; and how many handfuls there are, at least."""


class Extractor(Protocol):
    """What describes clips. Made in the process that uses it."""

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Work:
    """Clips to describe, and what to do it with.

    Attributes:
        wanted: one entry a clip, in the order of the index.
        make: makes the extractor.
        keep: keep the frames, too.
    """

    index: AtlasIndex
    wanted: Sequence[Wanted]
    table: Table
    make: Callable[[], Extractor]
    keep: bool = False


@dataclass(frozen=True)
class Done:
    """A clip that has its row now; the reason and the message say why it holds no values."""

    clip: str
    reason: str | None
    message: str | None


def describe_here(work: Work) -> Iterator[Done]:
    """One clip after the other, in this process."""
    worker = Worker(work.make, work.table, work.keep)
    for clip, content, where in read_clips(work.index, work.wanted):
        yield worker.describe(clip, content, where)


def describe_on_ray(work: Work, *, actors: int, gpus: float = 0.0, runtime_env: Mapping[str, Any] | None = None) -> Iterator[Done]:
    """By a pool of actors, in any order.

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
            num_cpus=0,  # else pools of trials side by side hold all CPUs, and none is left for what feeds them
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
    """Describes clips and writes their rows."""

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
    """(key, clip, its row's place) of each.

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
    """File, row and dataset of a line of the index, for errors."""
    row = index.table.slice(line, 1).to_pylist()[0]
    shard = index.shards[row["shard"]]
    group = f" of group {row['group']}" if shard.is_parquet else ""
    return f"{Path(shard.path).name} row {row['position']}{group} ({row['dataset']})"


def _by_row_group(index: AtlasIndex, wanted: Sequence[Wanted], least: int) -> list[list[Wanted]]:
    """Clips by the task that reads them: whole row groups, small ones (a row each, in jsonl) together."""
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
    """So many that Ray Data's work for each task does not show, so few that no actor is left waiting at the end."""
    return max(1, min(MOST_CLIPS_AT_A_TIME, clips // (actors * HANDFULS_PER_ACTOR)))


def _read(pieces: pa.Table, job: ray.ObjectRef, most: int) -> Iterator[dict[str, list[list[dict[str, Any]]]]]:
    """The clips of a piece, a handful at a time."""
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
    """Kept by a reader process for all pieces of a job."""
    import ray

    return ray.get(job)


@contextmanager
def _one_handful_a_block() -> Iterator[None]:
    """A block is what an actor gets at a time: a row, with a list of clips. An actor once started stays to the end."""
    from ray.data import DataContext

    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size, context.execution_options.preserve_order = 1, False
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0  # one that waits for the first clip, too
    context.enable_progress_bars = False
    with DataContext.current(context):
        yield

"""Extracts the descriptors of an atlas: finds the clips that the tables lack, and has them described.

A clip is described once, even if several rows, splits, datasets or runs share it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from hba_ray.cluster import growth
from hba_ray.cluster.session import ANYWHERE
from hba_ray.data.atlas import AtlasIndex
from hba_ray.descriptors.environments import check_here, default_folder, runtime_env
from hba_ray.descriptors.keys import KeyStore, Wanted, find_wanted
from hba_ray.descriptors.pools import Done, Work, describe_here, describe_on_ray, place_of
from hba_ray.descriptors.store import Table
from hba_ray.descriptors.summary import SILENCE, StreamSummary, Summary
from hba_ray.descriptors.tables import maker, note_identity, released_maker, table_of
from hba_ray.errors import BadMedia, DataError, EnvironmentMissing
from hba_ray.limits import usable_cpus
from hba_ray.specs import ComputeSpec
from hba_ray.specs.sections.descriptors import DescriptorsSpec, Stream
from hba_ray.store.folders import claimed

Progress = Callable[[str, int, int], None]
"""Is called with (what, done, total); `what` is "clips" while rows are read for their keys, then the name of each stream."""
OnBadRow = Literal["fail", "drop"]


@dataclass(frozen=True)
class Place:
    """Where extraction runs: in this process, or on Ray.

    Attributes:
        start_ray: is called before Ray is used.
    """

    compute: ComputeSpec
    start_ray: Callable[[], object]

    def run(self, work: Work, stream: Stream, store: Path, *, released: bool) -> Iterator[Done]:
        """Describes clips. Released descriptor files need no extractor, so they are read in the training environment."""
        if self.compute.workers == 0:
            if not released:
                check_here(stream)
            return describe_here(work)
        self.start_ray()
        folder = default_folder(self.compute.address, store)
        environment = {} if released else runtime_env(stream, folder, getattr(self.compute.pythons, stream))
        gpus = min(1.0, self.compute.gpus_per_worker) if stream == "transcripts" else 0.0
        return describe_on_ray(work, actors=self._actors(len(work.wanted)), gpus=gpus, runtime_env=environment)

    def _actors(self, clips: int) -> int:
        """The number of extractor processes: at most one per clip, and by default one CPU is left for reading clips."""
        cpus, actors = int(growth.cpus(self.compute)), self.compute.extractors
        if (actors or 1) > cpus:
            what = f"{actors or 1} processes need more than the {cpus} CPUs"
            raise EnvironmentMissing("compute.extractors", what, "lower it, or raise compute.cpus: CPUs of a local Ray are logical ones")
        cores = usable_cpus()
        return min(clips, actors or max(1, min(cpus - 1, cores if self.compute.address == "local" else cpus)))


def extract(
    spec: DescriptorsSpec,
    index: AtlasIndex,
    splits: Sequence[str],
    store: Path,
    *,
    compute: ComputeSpec,
    on_bad_row: OnBadRow = "fail",
    progress: Progress = lambda what, done, total: None,
    wait_seconds: float = 0,
    start_ray: Callable[[], object] = lambda: None,
) -> Summary:
    """Describes the clips of these splits that the tables do not hold yet, in this process if `compute.workers` is 0, else on Ray.

    Args:
        store: folder of the tables; on a cluster a folder that all nodes see.
        on_bad_row: "fail" ends the run at a clip that cannot be described, "drop" counts it; its rows lack the stream.
        wait_seconds: how long to wait for another process that writes the same table.
        start_ray: is called before Ray is used, and not at all where no clip is missing.

    Raises:
        DataError: a row or a clip is bad and `on_bad_row` is "fail"; it names the row.
        EnvironmentMissing: an extractor's packages are missing and cannot be installed, or another process writes the
            same table for longer than `wait_seconds`.
    """
    place = Place(compute, start_ray)
    keys = collect_keys(index, splits, store, place, progress)
    unreadable = _unreadable(keys, on_bad_row)
    streams = {}
    for stream in spec.streams:
        with claimed(table_of(store, spec, stream).folder, wait_seconds=wait_seconds):
            streams[stream] = _describe(spec, stream, index, keys, store, place, on_bad_row, progress)
    return Summary(streams, unreadable)


def collect_keys(index: AtlasIndex, splits: Sequence[str], store: Path, place: Place, progress: Progress) -> pa.Table:
    """The keys of all clips of these splits (`keys.SCHEMA`), in the order of the index within each split."""
    keys = KeyStore.of(store, index)
    held = {chunk: keys.load(chunk) for split in splits for chunk in keys.chunks(index.rows_of(split))}
    missing = [chunk for chunk, kept in held.items() if kept is None]
    total = sum(map(len, held))
    done = total - sum(map(len, missing))
    for chunk, made in _make_keys(keys, index, missing, place):
        held[chunk] = made
        done += len(chunk)
        progress("clips", done, total)
    return pa.concat_tables([kept for kept in held.values() if kept is not None])


def _make_keys(
    keys: KeyStore, index: AtlasIndex, chunks: list[tuple[int, ...]], place: Place
) -> Iterator[tuple[tuple[int, ...], pa.Table]]:
    if place.compute.workers == 0 or len(chunks) < 2:
        yield from ((chunk, keys.make(index, chunk)) for chunk in chunks)
        return
    import ray

    place.start_ray()
    held, make = ray.put(index), ray.remote(num_cpus=1, **ANYWHERE)(KeyStore.make)
    running = {make.remote(keys, held, chunk): chunk for chunk in chunks}
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ready), ray.get(ready)


def _unreadable(keys: pa.Table, on_bad_row: OnBadRow) -> dict[str, int]:
    bad = keys.filter(keys.column("reason").is_valid()).select(["reason", "message"]).to_pylist()
    if bad and on_bad_row == "fail":
        where, _, what = bad[0]["message"].partition(": ")
        raise DataError(where, what, reason=bad[0]["reason"]).of_a_row()
    return dict(Counter(row["reason"] for row in bad))


def _describe(
    spec: DescriptorsSpec,
    stream: Stream,
    index: AtlasIndex,
    keys: pa.Table,
    store: Path,
    where: Place,
    on_bad_row: OnBadRow,
    progress: Progress,
) -> StreamSummary:
    started = time.monotonic()
    wanted, table = find_wanted(keys, spec, stream, index), table_of(store, spec, stream)
    table.fold()
    note_identity(table, spec, stream)
    known = table.known()
    if on_bad_row == "fail":
        _refuse_bad(wanted, known, index)
    missing = {one.clip: one for one in wanted if one.clip not in known}
    extracted = 0
    if missing:
        progress(stream, 0, len(missing))
    for released in (True, False):
        part = [one for one in missing.values() if one.source.startswith("ext_") == released]
        keep = not released and bool(getattr(spec.of(stream), "keep_frames", False))
        work = Work(index, part, table, released_maker(stream) if released else maker(spec, stream), keep)
        for done in where.run(work, stream, store, released=released) if part else ():
            known[done.clip] = (done.reason, done.message)
            if on_bad_row == "fail":
                _refuse_bad([missing[done.clip]], known, index)
            extracted += 1
            progress(stream, extracted, len(missing))
    table.fold()
    bad = Counter(reason for one in wanted if (reason := known[one.clip][0]))
    soundless = sum(one.lacks_sound(known[one.clip][0]) for one in wanted)
    bad.subtract({"no audio stream": soundless})
    return StreamSummary(
        rows=len(keys),
        described=sum(known[one.clip][0] is None for one in wanted),
        absent=len(keys) - len(wanted) + soundless,
        bad={reason: rows for reason, rows in sorted(bad.items()) if rows},
        clips=len({one.clip for one in wanted}),
        extracted=extracted,
        seconds=time.monotonic() - started,
        silent=_silent(wanted, table_of(store, spec, stream)),  # opened anew: a table reads its files once
    )


def _silent(wanted: Sequence[Wanted], table: Table) -> int:
    """Rows whose sound is silent, of a stream whose table knows the largest sample."""
    if "peak" not in table.schema.names:
        return 0
    peaks = {row["clip"]: row["peak"] for row in table.columns(["clip", "peak"]).to_pylist()}
    return sum(peak < SILENCE for one in wanted if (peak := peaks.get(one.clip)) is not None)


def _refuse_bad(wanted: Sequence[Wanted], known: Mapping[str, tuple[str | None, str | None]], index: AtlasIndex) -> None:
    for one in wanted:
        reason, message = known.get(one.clip, (None, None))
        if reason and not one.lacks_sound(reason):
            way_out = "set atlas.on_bad_row=drop to mask and count such rows"
            raise BadMedia(place_of(index, one.line), message or reason, way_out, reason=reason)

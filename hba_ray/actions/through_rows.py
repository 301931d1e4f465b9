"""Goes through all rows of an atlas in parts, on all CPUs of the spec's Ray where it has workers, and goes on where it was.

What was found in a part is kept as a line of a file in the storage, whose name changes with the rows and with their clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter

from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.feed.spread import Spread, spread_here, spread_on_ray
from hba_ray.data.rows import Row
from hba_ray.data.tasks import SPLITS
from hba_ray.descriptors.keys import KeyStore
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.store.files import stamps
from hba_ray.store.folders import Storage, append_line, read_lines

T = TypeVar("T")

Work = Callable[[AtlasIndex, Sequence[int]], T]
"""Looks at the rows at some lines of an index. It is pickled where Ray does it."""


def through_rows(
    index: AtlasIndex,
    splits: Sequence[str],
    work: Work[T],
    kind: TypeAdapter[T],
    progress: Callable[[int], None] = lambda rows: None,
    *,
    spread: Spread = spread_here,
    kept: Path | None = None,
    keep: bool = False,
    part_rows: int = 64,
) -> list[T]:
    """What the work finds in each part of the rows, in their order.

    Args:
        kind: writes and reads what is found as JSON.
        progress: told how many rows are done.
        spread: does the work on several parts.
        kept: file of what was found before in the same rows.
        keep: leave this file at the end, so that the next who asks need not look again.
        part_rows: rows that are looked at at a time.
    """
    parts = [
        tuple(index.rows_of(split)[start : start + part_rows].tolist())
        for split in splits
        for start in range(0, len(index.rows_of(split)), part_rows)
    ]
    known = {facts["part"]: kind.validate_python(facts["checked"]) for facts in (read_lines(kept) if kept else ())}
    missing = [part for part in range(len(parts)) if part not in known]
    progress(done := sum(len(parts[part]) for part in known))
    for part, found in zip(missing, spread(partial(work, index), [parts[part] for part in missing]), strict=True):
        known[part] = found
        if kept:
            append_line(kept, {"part": part, "checked": kind.dump_python(found, mode="json")}, durable=False)
        progress(done := done + len(parts[part]))
    if kept and not keep:
        kept.unlink(missing_ok=True)
    return [known[part] for part in range(len(parts))]


def through_rows_of(
    spec: ExperimentSpec,
    index: AtlasIndex,
    work: Work[T],
    kind: TypeAdapter[T],
    progress: Callable[[int], None],
    *,
    name: str,
    settings: Any = None,
    keep: bool = False,
) -> list[T]:
    """`through_rows` of all splits, as the spec's `compute` says.

    Args:
        index: of the spec's rows.
        name: of the file in the storage that keeps what was found.
        settings: of the work, which the file's name depends on too.
        keep: as in `through_rows`.
    """
    stored = KeyStore.of(Path(), index).folder.name  # changes with the files, and with the rows that are taken from them
    named = (clip for row in _jsonl_rows(index) for clips in row.files.values() for clip in clips if isinstance(clip, Path))
    storage = Storage(spec.compute.storage).folder
    kept = storage / f"{name}-{fingerprint([stored, settings, stamps(sorted(set(named)))])}.jsonl"
    go = partial(through_rows, index, SPLITS, work, kind, progress, kept=kept, keep=keep)
    if not spec.compute.workers:
        return go()
    with ray_session(spec.compute.of_this_machine, storage / f"{name}-logs"):
        return go(spread=spread_on_ray)


def _jsonl_rows(index: AtlasIndex) -> Iterator[Row]:
    """The rows whose clips are files beside them."""
    beside = [number for number, shard in enumerate(index.shards) if not shard.is_parquet]
    lines = np.flatnonzero(np.isin(index.table.column("shard").to_numpy(), beside))
    return (row for row in read_rows(index, lines.tolist()) if isinstance(row, Row))

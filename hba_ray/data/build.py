"""Writes the rows of an index as an atlas of its own, in a released layout: in parts of bounded size, several at a time.

A part appears when it is complete. A build that was interrupted goes on with the parts that are missing: what was written of each
finished part is noted in `.build`, beside a plan that refuses to mix two builds in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.rows import SCHEMA, Row
from hba_ray.data.shards import HEAVY, Shard
from hba_ray.data.tasks import SPLITS
from hba_ray.data.writers import place_clip, read_clip, record_of
from hba_ray.errors import DataError, HbaError
from hba_ray.store.files import from_json
from hba_ray.store.folders import write_text

NOTES, PLAN = ".build", "plan.json"
GROUP_ROWS, GROUP_BYTES = 32, 64 << 20
"""A row group, the unit that a reader loads, ends at so many rows or bytes of clips, whichever comes first."""


@dataclass(frozen=True)
class Target:
    """Where an atlas is built, and how.

    Attributes:
        part_bytes: of clips, at which a part ends. A part has one row at least.
        link: in jsonl, give clips that are files a second name instead of copying them.
        on_bad_row: as `atlas.on_bad_row`.
    """

    folder: Path
    layout: Literal["parquet", "jsonl"] = "parquet"
    part_bytes: int = 500 << 20
    link: bool = False
    on_bad_row: Literal["fail", "drop"] = "fail"


@dataclass(frozen=True)
class Part:
    """A file of a build: some lines of an index."""

    split: str
    number: int
    total: int
    lines: tuple[int, ...]

    def name(self, layout: str) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.total:05d}.{layout}"


@dataclass
class Written:
    """What a part holds.

    Attributes:
        rows: dataset -> rows.
        labels: dataset -> label -> rows, of datasets with classes.
        signatures: dataset -> modalities -> rows.
        dropped: dataset -> reason -> rows that could not be read.
    """

    name: str
    split: str
    bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    signatures: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)


_STATED, _WRITTEN = TypeAdapter(dict[str, Any]), TypeAdapter(Written)


def build(
    index: AtlasIndex, target: Target, identity: str, *, workers: int = 4, progress: Callable[[int], None] = lambda rows: None
) -> list[Written]:
    """Writes all rows of an index, those of finished parts excepted.

    Args:
        identity: a name of the rows; another one in the folder is refused.
        workers: parts that are written at a time; each holds up to a row group of clips in memory.
        progress: told of rows that are written, or were written before.

    Returns:
        what each part holds, in order.

    Raises:
        HbaError: the folder holds something else.
        DataError: a row cannot be read, and `on_bad_row` is `fail`.
        BadMedia: a clip cannot be read or linked.
    """
    parts = parts_of(index, target.part_bytes)
    _claim(target, {"rows": identity, "layout": target.layout, "link": target.link, "parts": [part.name(target.layout) for part in parts]})
    found = {part: _noted(target, part) for part in parts}
    progress(sum(len(part.lines) for part, written in found.items() if written))
    pool = ThreadPoolExecutor(workers)
    try:
        doing = {pool.submit(_write, index, target, part, progress): part for part, written in found.items() if written is None}
        for done in as_completed(doing):
            found[doing[done]] = done.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return [written for written in found.values() if written is not None]


def parts_of(index: AtlasIndex, part_bytes: int) -> list[Part]:
    """The lines of an index in parts, split by split, each ended by the row that makes it reach `part_bytes`.

    A split without rows is one part without rows, since readers expect a file.
    """
    sizes = _sizes(index)
    parts: list[Part] = []
    for split in SPLITS:
        chunks: list[list[int]] = [[]]
        filled = 0
        for line in index.rows_of(split).tolist():
            if filled >= part_bytes:
                chunks.append([])
                filled = 0
            chunks[-1].append(line)
            filled += int(sizes[line])
        parts += [Part(split, number, len(chunks), tuple(lines)) for number, lines in enumerate(chunks)]
    return parts


def _sizes(index: AtlasIndex) -> np.ndarray:
    """Bytes of each line's clips: of files as they are, of clips in parquet the mean of their row group."""
    sizes = np.zeros(len(index.table), np.int64)
    shards, groups = (index.table.column(name).to_numpy() for name in ("shard", "group"))
    for number, shard in enumerate(index.shards):
        lines = np.flatnonzero(shards == number)
        if shard.is_parquet and len(lines):
            means = _group_means(shard)
            sizes[lines] = [means[group] for group in groups[lines]]
        elif len(lines):
            for line, row in zip(lines.tolist(), read_rows(index, lines.tolist()), strict=True):
                sizes[line] = sum(map(_size, _clips(row))) if isinstance(row, Row) else 0
    return sizes


def _group_means(shard: Shard) -> list[int]:
    with pq.ParquetFile(shard.path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    columns = [[group.column(place) for place in range(group.num_columns)] for group in groups]
    heavy = [sum(one.total_compressed_size for one in its if one.path_in_schema.split(".")[0] in HEAVY) for its in columns]
    return [size // max(1, group.num_rows) for size, group in zip(heavy, groups, strict=True)]


def _clips(row: Row) -> Iterator[bytes | Path]:
    for held in (row.files, row.descriptors):
        yield from (clip for clips in held.values() for clip in clips)


def _size(clip: bytes | Path) -> int:
    if isinstance(clip, bytes):
        return len(clip)
    return clip.stat().st_size if clip.is_file() else 0  # a missing one is told when its row is written


def _claim(target: Target, plan: dict[str, Any]) -> None:
    """Writes the plan of a build into its folder, or makes sure that it is the one which stands there."""
    file = target.folder / NOTES / PLAN
    if file.is_file():
        way_out = "give another folder, or take this one away"
        if from_json(_STATED, file.read_bytes(), where=str(file), what="no plan of a build", way_out=way_out) != plan:
            raise HbaError(str(target.folder), "holds another build, of other rows or settings", "give another folder")
        return
    if target.folder.exists() and not target.folder.is_dir():
        raise HbaError(str(target.folder), "is a file", "give a new folder, or an empty one")
    if target.folder.is_dir() and any(path.name != NOTES for path in target.folder.iterdir()):
        raise HbaError(str(target.folder), "holds files, and no build that could go on", "give a new folder, or an empty one")
    file.parent.mkdir(parents=True, exist_ok=True)  # it is there where a build ended before its plan was written
    write_text(file, json.dumps(plan))


def _noted(target: Target, part: Part) -> Written | None:
    """What is noted of a finished part; None where it is not finished."""
    name = part.name(target.layout)
    file = target.folder / NOTES / f"{name}.json"
    if not (file.is_file() and (target.folder / name).is_file()):
        return None
    return from_json(
        _WRITTEN, file.read_bytes(), where=str(file), what="no note of a part", way_out="take it away, and the part is written again"
    )


def _write(index: AtlasIndex, target: Target, part: Part, progress: Callable[[int], None]) -> Written:
    """Writes one part, then notes what it holds, then gives it its name."""
    name = part.name(target.layout)
    draft, notes = target.folder / NOTES / f"{name}.draft", target.folder / NOTES / f"{name}.json"
    written = Written(name, part.split)
    (_write_parquet if target.layout == "parquet" else _write_jsonl)(_counted(index, target, part, written, progress), target, draft)
    written.bytes = draft.stat().st_size
    write_text(notes, json.dumps(asdict(written)))
    draft.replace(target.folder / name)
    return written


def _counted(index: AtlasIndex, target: Target, part: Part, written: Written, progress: Callable[[int], None]) -> Iterator[tuple[int, Row]]:
    """(line, row) of a part's rows; they are counted on the way, and bad ones left out or raised."""
    for line, row in zip(part.lines, read_rows(index, part.lines), strict=True):
        if isinstance(row, DataError):
            if target.on_bad_row == "fail":
                raise row.of_a_row()
            _add(written.dropped, index.dataset_of(line), row.reason)
        else:
            dataset = row.dataset.id
            written.rows[dataset] = written.rows.get(dataset, 0) + 1
            _add(written.signatures, dataset, row.signature)
            if row.label is not None:
                _add(written.labels, dataset, row.label)
            yield line, row
        progress(1)


def _add(counts: dict[str, dict[str, int]], dataset: str, value: str) -> None:
    counted = counts.setdefault(dataset, {})
    counted[value] = counted.get(value, 0) + 1


def _write_jsonl(rows: Iterator[tuple[int, Row]], target: Target, draft: Path) -> None:
    split = draft.name.partition("-")[0]
    with draft.open("w", encoding="utf-8") as file:
        for line, row in rows:
            put = partial(place_clip, target.folder, split, row, ending=f"-{line}", link=target.link)
            file.write(json.dumps(record_of(row, put), ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterator[tuple[int, Row]], target: Target, draft: Path) -> None:
    with pq.ParquetWriter(draft, SCHEMA) as writer:
        for group in _groups(row for _, row in rows):
            writer.write_table(pa.Table.from_pylist([record_of(row, partial(read_clip, row)) for row in group], schema=SCHEMA))


def _groups(rows: Iterator[Row]) -> Iterator[Sequence[Row]]:
    """The rows of each row group."""
    group: list[Row] = []
    filled = 0
    for row in rows:
        group.append(row)
        filled += sum(map(_size, _clips(row)))
        if len(group) == GROUP_ROWS or filled >= GROUP_BYTES:
            yield group
            group, filled = [], 0
    if group:
        yield group

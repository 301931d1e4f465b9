"""Tables of descriptors on disk: one row for each clip, found by its key, the sha256 of its bytes.

    <store>/<stream>-<fingerprint>/      the fingerprint names extractor, version and settings
        about.json                       extractor, version and settings in words
        <0 to f>.parquet                 rows of the clips whose key starts with this digit, in the order of their keys
        pending/<0 to f>/<key>.parquet   rows that `fold` has not moved into the sixteen files yet
        frames/<0 to f>/<key>.parquet    values of every frame, if the spec keeps them: one row a frame

A process that describes a clip writes its row at once, as a file of its own that appears whole or not at all; `fold` moves
these rows into the sixteen files. So a killed run loses only the clip it was working on, and the content of the files
depends on the clips alone, not on their order or on the number of runs.

A clip that cannot be described has a row too: `reason` says why, and its values are null.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hba_ray.errors import DataError

BUCKETS = "0123456789abcdef"
ROW_GROUP = 32
"""Rows that are read together when one of them is asked for: less than 1 MB of either stream."""
FRAME_GROUP = 256

_COMMON = [
    ("clip", pa.string()),
    ("reason", pa.string()),
    ("message", pa.string()),
    ("seconds", pa.float32()),
    ("frames", pa.int32()),
]
_VECTOR = pa.list_(pa.float32())
_OVER_TIME = [("mean_std", _VECTOR), ("quartiles", _VECTOR)]
_SEGMENT = pa.struct([("start", pa.float32()), ("end", pa.float32()), ("text", pa.string())])

SCHEMAS: dict[str, pa.Schema] = {
    "pose": pa.schema([*_COMMON, *_OVER_TIME, ("detected", _VECTOR), ("visibility", _VECTOR)]),
    "functionals": pa.schema([*_COMMON, ("peak", pa.float32()), ("functionals", _VECTOR)]),
    "low_level": pa.schema([*_COMMON, ("peak", pa.float32()), *_OVER_TIME]),
    "transcripts": pa.schema([*_COMMON, ("text", pa.string()), ("language", pa.string()), ("segments", pa.list_(_SEGMENT))]),
}
"""Columns by kind of table. `frames`: number of frames that were pooled. `detected`: shares of frames in which pose, face,
left and right hand were found. `visibility`: MediaPipe's visibility of the 33 pose points, averaged over frames.
`peak`: largest absolute sample, where full scale is 1."""


class Table:
    """The descriptors of one stream by one extractor with one set of settings."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = folder, kind

    @property
    def schema(self) -> pa.Schema:
        return SCHEMAS[self.kind]

    def add(self, clip: str, row: Mapping[str, Any]) -> None:
        """Adds the row of a clip. Many processes may do so at once."""
        record = {"clip": clip, **row}
        unknown = record.keys() - set(self.schema.names)
        if unknown:
            raise ValueError(f"a {self.kind} table has no column {sorted(unknown)}")
        _write(_place(self.folder / "pending", clip), pa.Table.from_pylist([record], schema=self.schema))
        _tries(self.folder, clip).unlink(missing_ok=True)

    def begin(self, clip: str) -> int:
        """Records that a process begins a clip, and returns how often this has happened since the last `fold`."""
        with _tries(self.folder, clip).open("ab") as file:
            file.write(b".")
            return file.tell()

    def frames_file(self, clip: str) -> Path:
        """The file for the values of every frame of a clip."""
        return _place(self.folder / "frames", clip)

    def fold(self) -> None:
        """Moves pending rows into the sixteen files. The caller has to hold the table's lock."""
        for bucket in BUCKETS:
            pending = sorted((self.folder / "pending" / bucket).glob("*.parquet"))
            if pending:
                file = self._path(bucket)
                rows = pa.concat_tables([_read(part) for part in ([file] if file.exists() else []) + pending])
                clips = rows.column("clip").to_numpy(zero_copy_only=False)
                _, first = np.unique(clips, return_index=True)
                _write(file, rows.take(first))
                for part in pending:
                    part.unlink(missing_ok=True)
        for kind in ("draft", "tries"):
            for leftover in self.folder.glob(f"**/.*.{kind}"):
                leftover.unlink(missing_ok=True)

    def known(self) -> dict[str, tuple[str | None, str | None]]:
        """Clip -> (reason, message) of all folded rows; the reason is None for a row with values."""
        found: dict[str, tuple[str | None, str | None]] = {}
        for bucket in self._files:
            columns = self._columns(bucket, ["clip", "reason", "message"]).to_pydict()
            found.update(zip(columns["clip"], zip(columns["reason"], columns["message"], strict=True), strict=True))
        return found

    def columns(self, names: Sequence[str]) -> pa.Table:
        """These columns of all folded rows, in memory at once."""
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.concat_tables([schema.empty_table(), *(self._columns(bucket, names) for bucket in self._files)])

    def holds(self, clip: str) -> bool:
        """Whether a clip has a folded row, with or without values."""
        return self._find(clip) is not None

    def read(self, clips: Sequence[str | None], column: str) -> list[Any]:
        """The value of each clip in a column, lists of numbers as arrays; None for a clip without a value.

        Reads only the row groups that hold these clips.
        """
        values: list[Any] = [None] * len(clips)
        wanted: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for position, clip in enumerate(clips):
            row = self._find(clip)
            if clip and row is not None:
                wanted.setdefault((clip[0], row // ROW_GROUP), []).append((position, row % ROW_GROUP))
        for (bucket, group), places in sorted(wanted.items()):
            held = self._columns(bucket, [column], group).column(0)
            for position, row in places:
                values[position] = _value(held[row])
        return values

    def _find(self, clip: str | None) -> int | None:
        """The number of a clip's row in its file; None if it has no folded row."""
        keys = self._keys.get(clip[0]) if clip else None
        if clip is None or keys is None:
            return None
        row = int(np.searchsorted(keys, clip))
        return row if row < len(keys) and keys[row] == clip else None

    def _columns(self, bucket: str, names: Sequence[str], group: int | None = None) -> pa.Table:
        """Columns of one of the sixteen files, or of one row group of it."""
        file = self._files[bucket]
        with _named(self._path(bucket)):
            if group is None:
                return file.read(list(names), use_threads=False)
            return file.read_row_group(group, columns=list(names), use_threads=False)

    def _path(self, bucket: str) -> Path:
        return self.folder / f"{bucket}.parquet"

    @cached_property
    def _files(self) -> dict[str, pq.ParquetFile]:
        paths = {bucket: self._path(bucket) for bucket in BUCKETS}
        return {bucket: _open(path) for bucket, path in paths.items() if path.exists()}

    @cached_property
    def _keys(self) -> dict[str, np.ndarray]:
        return {bucket: self._columns(bucket, ["clip"]).column(0).to_numpy(zero_copy_only=False).astype("U64") for bucket in self._files}

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.folder, self.kind)


def write_frames(file: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes the values of a clip's frames, one row a frame, in blocks.

    Args:
        columns: name -> float32 [T, values of a frame].
    """
    schema = pa.schema([(name, _VECTOR) for name in columns])
    draft = _draft(file)
    with pq.ParquetWriter(draft, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, len(next(iter(columns.values()))), FRAME_GROUP):
            arrays = [_lists(np.asarray(rows[start : start + FRAME_GROUP])) for rows in columns.values()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    os.replace(draft, file)


def read_frames(file: Path) -> dict[str, np.ndarray]:
    """Reads all that `write_frames` wrote: name -> float32 [T, values of a frame]."""
    table = _read(file)
    return {name: np.stack([_value(value) for value in table.column(name)]) for name in table.column_names}


def _lists(rows_TW: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, rows_TW.size + 1, rows_TW.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows_TW.ravel()))


def _value(scalar: Any) -> Any:
    if isinstance(scalar, pa.ListScalar) and scalar.type.value_type == pa.float32():
        return scalar.values.to_numpy() if scalar.is_valid else None
    return scalar.as_py()


def _place(folder: Path, clip: str) -> Path:
    file = folder / clip[0] / f"{clip}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _tries(folder: Path, clip: str) -> Path:
    return _place(folder / "pending", clip).with_name(f".{clip}.tries")


def _draft(file: Path) -> Path:
    return file.with_name(f".{file.name}.{uuid.uuid4().hex}.draft")


def _write(file: Path, table: pa.Table) -> None:
    """Writes a file whole or not at all; the same rows give the same bytes."""
    draft = _draft(file)
    pq.write_table(table, draft, row_group_size=ROW_GROUP, compression="zstd", use_dictionary=False)
    os.replace(draft, file)


def _open(file: Path) -> pq.ParquetFile:
    with _named(file):
        return pq.ParquetFile(file)


def _read(file: Path) -> pa.Table:
    with _named(file), pq.ParquetFile(file) as opened:
        return opened.read(use_threads=False)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Turns errors of reading inside the block into one that names the file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as cause:
        what = f"is damaged: {str(cause).splitlines()[0]}"
        raise DataError(str(file), what, "delete it; its clips are extracted again", reason="corrupt file") from None

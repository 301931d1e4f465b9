"""Which clips a row has, by content: the sha256 of each file's bytes.

Reading an atlas to hash it takes as long as its disk is slow, so the keys are kept, in chunks of
rows, beside the tables. A kept chunk counts while its files have the size and time of change that
they had: the shards of a parquet atlas, or the media files that rows of a jsonl atlas name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.rows import Row
from hba_ray.errors import DataError
from hba_ray.specs import fingerprint
from hba_ray.store.files import stamp

if TYPE_CHECKING:
    from hba_ray.specs.descriptors import DescriptorsSpec, Stream

CHUNK = 1024
"""Rows whose keys are kept in one file."""
SOURCES = ("video", "audio", "ext_video_feats", "ext_audio_feats")
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
        *((source, pa.string()) for source in SOURCES),
        ("paths", pa.list_(pa.string())),
        ("stamps", pa.list_(pa.string())),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
"""One line a row of the atlas: its line in the index, its names, the key of its first clip of each source, the media
files outside the shards with their stamps, and what is wrong with the row if it cannot be read."""


@dataclass(frozen=True)
class Wanted:
    """The clip that a stream reads for a row: its line in the index, where it is in the row, its key."""

    line: int
    source: str
    clip: str

    def lacks_sound(self, reason: str | None) -> bool:
        """A video may have no sound; that is a stream that the row does not have, not a defect."""
        return reason == "no audio stream" and self.source == "video"


def sources(spec: DescriptorsSpec, stream: Stream) -> tuple[str, ...]:
    """What a stream reads of a row: the first of these that the row has. Shipped features are functionals."""
    if stream == "pose":
        return ("ext_video_feats", "video") if spec.use_released else ("video",)
    released = stream == "acoustic" and spec.use_released and spec.acoustic.features == "functionals"
    return ("ext_audio_feats", "audio", "video") if released else ("audio", "video")


def find_wanted(keys: pa.Table, spec: DescriptorsSpec, stream: Stream, index: AtlasIndex) -> list[Wanted]:
    """The clips that a stream reads for the rows of `keys`; rows without one are left out."""
    columns = {source: keys.column(source).to_pylist() for source in sources(spec, stream)}
    signatures = index.table.column("modality_signature")
    wanted = []
    for position, line in enumerate(keys.column("line").to_pylist()):
        if stream == "transcripts" and spec.transcripts.rows == "missing" and "text" in signatures[line].as_py():
            continue
        source = next((source for source, clips in columns.items() if clips[position]), None)
        if source:
            wanted.append(Wanted(line, source, columns[source][position]))
    return wanted


def clip_of(row: Row, source: str) -> bytes | Path | None:
    """A row's first clip of a source."""
    held = row.media if source in ("video", "audio") else row.descriptors
    return next(iter(held.get(source, ())), None)


@dataclass(frozen=True)
class KeyStore:
    """The kept keys of one atlas."""

    folder: Path

    @classmethod
    def of(cls, store: Path, index: AtlasIndex) -> KeyStore:
        """Named after the shards, as they are now, and the rows that the index has of them."""
        rows = hashlib.sha256()
        for column in ("shard", "group", "position"):
            rows.update(index.table.column(column).to_numpy().tobytes())
        shards = [[shard.path, stamp(Path(shard.path))] for shard in index.shards]
        return cls(store / "clips" / fingerprint({"shards": shards, "rows": rows.hexdigest()}))

    def chunks(self, lines: np.ndarray) -> list[tuple[int, ...]]:
        """The lines in the pieces in which their keys are kept: of one split, in the order of the index."""
        return [tuple(int(line) for line in lines[start : start + CHUNK]) for start in range(0, len(lines), CHUNK)]

    def load(self, chunk: Sequence[int], *, bad_rows: bool = False) -> pa.Table | None:
        """The keys of a chunk; None where they are not kept, cannot be read, or a file has changed.

        Args:
            bad_rows: also where a row could not be read then; it may be readable by now.
        """
        file = self._file(chunk)
        if not file.exists():
            return None
        try:
            with pq.ParquetFile(file) as opened:
                if opened.schema_arrow.names != SCHEMA.names:  # of an older version
                    return None
                keys = opened.read()
        except (pa.ArrowException, OSError):  # damaged; they are made again, and so is the file
            return None
        fresh = bad_rows or keys.column("reason").null_count == len(keys)
        paths, stamps = (keys.column(name).combine_chunks().flatten().to_pylist() for name in ("paths", "stamps"))
        return keys if fresh and all(stamp(Path(path)) == kept for path, kept in zip(paths, stamps, strict=True)) else None

    def make(self, index: AtlasIndex, chunk: Sequence[int]) -> pa.Table:
        """Reads the rows of a chunk, and keeps the keys of their clips."""
        keys = pa.Table.from_pylist(list(_keys(index, chunk)), schema=SCHEMA)
        file = self._file(chunk)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
        pq.write_table(keys, draft)
        os.replace(draft, file)
        return keys

    def _file(self, chunk: Sequence[int]) -> Path:
        return self.folder / f"{chunk[0]:08d}-{len(chunk)}.parquet"


def _keys(index: AtlasIndex, chunk: Sequence[int]) -> Iterator[dict[str, Any]]:
    for line, row in zip(sorted(chunk), read_rows(index, chunk), strict=True):
        if isinstance(row, DataError):
            yield {"line": line, "reason": row.reason, "message": f"{row.where}: {row.what}"}
            continue
        clips = {source: clip_of(row, source) for source in SOURCES}
        paths = [clip for clip in clips.values() if isinstance(clip, Path)]
        yield {
            "line": line,
            "sample_id": row.sample_id,
            "clip_id": row.clip_id,
            **{source: _digest(clip) for source, clip in clips.items() if clip is not None},
            "paths": [str(path) for path in paths],
            "stamps": [stamp(path) for path in paths],
        }


def _digest(clip: bytes | Path) -> str:
    if isinstance(clip, bytes):
        return hashlib.sha256(clip).hexdigest()
    with clip.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

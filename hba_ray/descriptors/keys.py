"""The keys of a row's clips: a clip's key is the sha256 of its bytes, so equal clips have one row in the tables.

Hashing an atlas means reading all of it, so keys are stored beside the tables, in chunks of rows. A stored chunk is valid
while its files have the same size and time of change: the shards of a parquet atlas, or the media files that the rows of a
jsonl atlas name.
"""

from __future__ import annotations

import hashlib
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
from hba_ray.store.files import GONE, stamp, write_parquet

if TYPE_CHECKING:
    from hba_ray.specs.sections.descriptors import DescriptorsSpec, Stream

CHUNK = 1024
"""Rows whose keys are stored in one file."""
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
"""One line for each row of the atlas: its line in the index, its ids, the key of its first clip of each source, its media
files outside the shards with their stamps (size and time of change), and for a row that cannot be read the reason."""


@dataclass(frozen=True)
class Wanted:
    """The clip that a stream reads for a row.

    Attributes:
        line: the row's line in the index.
        source: which of SOURCES the clip is.
        clip: key of the clip.
    """

    line: int
    source: str
    clip: str

    def lacks_sound(self, reason: str | None) -> bool:
        """Whether the clip is bad only because it is a video without sound: then the row lacks the stream, without a defect."""
        return reason == "no audio stream" and self.source == "video"


def sources(spec: DescriptorsSpec, stream: Stream) -> tuple[str, ...]:
    """The sources of a stream in order of preference: it reads the first that a row has. Released acoustic features are functionals."""
    if stream == "pose":
        return ("ext_video_feats", "video") if spec.use_released else ("video",)
    released = stream == "acoustic" and spec.use_released and spec.acoustic.features == "functionals"
    return ("ext_audio_feats", "audio", "video") if released else ("audio", "video")


def find_wanted(keys: pa.Table, spec: DescriptorsSpec, stream: Stream, index: AtlasIndex) -> list[Wanted]:
    """The clips that a stream reads for the rows of `keys`; rows without such a clip are left out."""
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
    """A row's first clip of a source, as bytes or as a path; None if it has none."""
    held = row.files if source in ("video", "audio") else row.descriptors
    return next(iter(held.get(source, ())), None)


@dataclass(frozen=True)
class KeyStore:
    """The stored keys of one atlas."""

    folder: Path

    @classmethod
    def of(cls, store: Path, index: AtlasIndex) -> KeyStore:
        """The folder is named by the shards' paths and stamps, and by which of their rows the index has."""
        rows = hashlib.sha256()
        for column in ("shard", "group", "position"):
            rows.update(index.table.column(column).to_numpy().tobytes())
        shards = [[shard.path, stamp(Path(shard.path))] for shard in index.shards]
        return cls(store / "clips" / fingerprint({"shards": shards, "rows": rows.hexdigest()}))

    def chunks(self, lines: np.ndarray) -> list[tuple[int, ...]]:
        """Cuts the lines of one split, in the order of the index, into chunks: the keys of a chunk are stored in one file."""
        return [tuple(int(line) for line in lines[start : start + CHUNK]) for start in range(0, len(lines), CHUNK)]

    def load(self, chunk: Sequence[int], *, bad_rows: bool = False) -> pa.Table | None:
        """The stored keys of a chunk; None where there are none, they cannot be read, or a file has changed.

        Args:
            bad_rows: accept a chunk with rows that could not be read; else it is None, so that they are tried again.
        """
        file = self._file(chunk)
        if not file.exists():
            return None
        try:
            with pq.ParquetFile(file) as opened:
                if opened.schema_arrow.names != SCHEMA.names:  # written by an older version
                    return None
                keys = opened.read()
        except (pa.ArrowException, OSError):  # a damaged file is written again
            return None
        fresh = bad_rows or keys.column("reason").null_count == len(keys)
        paths, stamps = (keys.column(name).combine_chunks().flatten().to_pylist() for name in ("paths", "stamps"))
        return keys if fresh and all(stamp(Path(path)) == kept for path, kept in zip(paths, stamps, strict=True)) else None

    def make(self, index: AtlasIndex, chunk: Sequence[int]) -> pa.Table:
        """Reads the rows of a chunk, stores the keys of their clips, and returns them."""
        keys = pa.Table.from_pylist(list(_keys(index, chunk)), schema=SCHEMA)
        file = self._file(chunk)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(keys, file)
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
    """A clip's key. A file that is not there has the key of its path: whoever reads it finds out, and counts it."""
    if isinstance(clip, bytes):
        return hashlib.sha256(clip).hexdigest()
    if not clip.is_file():
        return hashlib.sha256(f"{GONE}\0{clip}".encode(errors="surrogateescape")).hexdigest()
    with clip.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

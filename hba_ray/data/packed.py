"""Clips that are decoded already: the frames and sounds of an atlas, as a model is shown them, in files that are mapped into memory.

A pack is a folder of Arrow files. Each holds some rows of an index, a record batch for each row, so that a row is read without
the others. What could not be decoded is kept as its error. Whoever reads a packed row gets what the row itself would have given:
the same arrays, bit for bit, the same lengths, the same errors.

Shapes: T frames or samples, C colours, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hba_ray.errors import BadMedia, DataError
from hba_ray.store.files import DO_AGAIN, read_parquet

ROWS, SHARDS = "rows.parquet", "shards"
"""In the folder of a pack: where each row is, and the folder of the Arrow files."""
PLACES_SCHEMA = pa.schema(
    [("shard", pa.int32()), ("group", pa.int64()), ("position", pa.int32()), ("file", pa.int32()), ("row", pa.int32())]
)
"""One line for each row: its place in the atlas, as its index has it; its Arrow file; its record batch."""
_ERROR = [("what", pa.string()), ("way_out", pa.string()), ("reason", pa.string())]
_CLIP = pa.struct(
    [
        ("modality", pa.string()),
        ("length", pa.float64()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("values", pa.large_binary()),
        ("rate", pa.float64()),
        *_ERROR,
    ]
)
SCHEMA = pa.schema([("sample_id", pa.string()), ("clip_id", pa.string()), ("clips", pa.list_(_CLIP)), ("where", pa.string()), *_ERROR])
"""A row. `length` is what `data.clips.length_of` says, null where the header is damaged; `what`, `way_out` and `reason` are of an error,
of a clip or (with `where`) of the row."""
_FULL_SCALE = 2.0**15


@dataclass(frozen=True)
class PackedClip:
    """A clip in a pack; stands where a row has a clip's bytes or its path.

    Attributes:
        row: number of its record batch in the file.
        place: among the clips of the row.
    """

    file: str
    row: int
    place: int

    def decoded(self, where: str) -> Any:
        """What `data.clips.decode_clips` made of the clip.

        Raises:
            BadMedia: the clip could not be decoded.
        """
        clip = {name: self._value(name).as_py() for name in ("dtype", "shape", "rate", "what", "way_out", "reason")}
        if clip["reason"] is not None:
            raise BadMedia(where, clip["what"], clip["way_out"], clip["reason"])
        array = np.frombuffer(self._value("values").as_buffer(), clip["dtype"]).reshape(clip["shape"])
        # Copied: nobody may write into a file that is mapped, and tensors can be written to.
        array = (array / np.float32(_FULL_SCALE)) if array.dtype == np.int16 else array.copy()
        return array if clip["rate"] is None else (array, clip["rate"])

    def length(self, where: str) -> float:
        """What `data.clips.length_of` says of the clip.

        Raises:
            BadMedia: its header is damaged.
        """
        length = self._value("length").as_py()
        if length is None:
            raise BadMedia(where, "the header is damaged", reason="damaged header")
        return length

    def _value(self, name: str) -> Any:
        return _batch(self.file, self.row).column("clips").flatten().field(name)[self.place]


@dataclass(frozen=True)
class Pack:
    """A folder of packed rows."""

    folder: str

    @cached_property
    def _places(self) -> Mapping[tuple[int, int, int], tuple[int, int]]:
        columns = read_parquet(Path(self.folder) / ROWS, schema=PLACES_SCHEMA).to_pydict()
        shard, group, position, file, row = (columns[name] for name in PLACES_SCHEMA.names)
        return dict(zip(zip(shard, group, position, strict=True), zip(file, row, strict=True), strict=True))

    def row(self, place: tuple[int, int, int]) -> dict[str, Any]:
        """What a row has besides its texts: `sample_id`, `clip_id` and `media`, as `data.rows.Row` has them.

        Args:
            place: (shard, group, position) of the row in the atlas.

        Raises:
            DataError: the row could not be read, or the pack is damaged.
        """
        if place not in self._places:
            raise DataError(self.folder, f"holds no row {place} of the atlas", DO_AGAIN, reason="corrupt file")
        number, at = self._places[place]
        file = str(shard_file(Path(self.folder), number))
        batch = _batch(file, at)
        said = {name: batch.column(name)[0].as_py() for name in SCHEMA.names if name != "clips"}
        if said["reason"] is not None:
            raise DataError(said["where"], said["what"], said["way_out"], said["reason"])
        modalities = batch.column("clips").flatten().field("modality").to_pylist()
        clips = [(modality, PackedClip(file, at, i)) for i, modality in enumerate(modalities)]
        media = {name: tuple(clip for modality, clip in clips if modality == name) for name in dict.fromkeys(modalities)}
        return {"sample_id": said["sample_id"], "clip_id": said["clip_id"], "media": media}


def shard_file(folder: Path, number: int) -> Path:
    """The Arrow file of this number."""
    return folder / SHARDS / f"{number:06d}.arrow"


def write_shard(file: Path, rows: Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]]) -> None:
    """Writes records of SCHEMA, a batch each: all of them or, where something fails, no file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for row in rows:
            writer.write_batch(pa.RecordBatch.from_pylist([dict(row)], schema=SCHEMA))
    draft.replace(file)


def clip_record(modality: str, decoded: Any, length: float | None) -> dict[str, Any]:
    """The record of a clip that was decoded.

    Sound whose samples are whole 16-bit numbers is kept as these, which is exact and half as large.
    """
    array, rate = decoded if isinstance(decoded, tuple) else (decoded, None)
    if array.dtype == np.float32:
        whole = np.clip(np.rint(array * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
        array = whole if np.array_equal(whole / np.float32(_FULL_SCALE), array) else array
    return {
        "modality": modality,
        "length": length,
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "values": np.ascontiguousarray(array).tobytes(),
        "rate": rate,
    }


def error_record(bad: DataError) -> dict[str, str]:
    """What a record says of an error; its `where` is known to the reader."""
    return {"what": bad.what, "way_out": bad.way_out, "reason": bad.reason}


@lru_cache(maxsize=256)
def _opened(file: str) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(file))
    except (pa.ArrowException, OSError) as cause:
        raise DataError(file, f"cannot be read: {str(cause).splitlines()[0]}", DO_AGAIN, reason="corrupt file") from cause


def _batch(file: str, row: int) -> pa.RecordBatch:
    try:
        return _opened(file).get_batch(row)
    except (pa.ArrowException, OSError, IndexError) as cause:
        raise DataError(file, f"cannot be read: {str(cause).splitlines()[0]}", DO_AGAIN, reason="corrupt file") from cause

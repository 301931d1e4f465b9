"""Writes rows to files, in the two released layouts: parquet with the clips inside, or jsonl beside a folder of clips.

`rows.parse_row` reads the same rows back, and the same rows give the same bytes. A split appears when
it is complete: its files get their names last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hba_ray.data.rows import FEATURE_COLUMNS, MEDIA_COLUMNS, SCHEMA, Row
from hba_ray.data.tasks import Task
from hba_ray.errors import BadMedia, DataError

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_SUFFIXES = (
    (rb"RIFF....WAVE", ".wav"),
    (rb"RIFF....AVI ", ".avi"),
    (rb"....ftyp", ".mp4"),
    (rb"fLaC", ".flac"),
    (rb"OggS", ".ogg"),
    (rb"\x1aE\xdf\xa3", ".mkv"),
    (rb"\x89PNG", ".png"),
    (rb"\xff\xd8\xff", ".jpg"),
    (rb"ID3|\xff[\xe2-\xfb]", ".mp3"),
)


def write_jsonl(rows: Iterable[Row], folder: Path, split: str) -> Path:
    """Writes `{split}.jsonl` at the root of `folder`, and its clips below `media/<column>/<dataset>/<split>/<sample_id>`.

    Returns:
        The jsonl file.

    Raises:
        DataError: two rows of the split share a sample_id.
        BadMedia: a clip's file is missing.
    """
    target = folder / f"{split}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=folder) as scratch:
        draft = Path(scratch) / target.name
        with draft.open("w", encoding="utf-8") as file:
            for row in _unique(rows, str(target)):
                record = record_of(row, partial(place_clip, folder, split, row))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        draft.replace(target)
    return target


def write_parquet(rows: Iterable[Row], folder: Path, split: str, *, rows_per_group: int = 32, rows_per_file: int = 512) -> list[Path]:
    """Writes `{split}-00000-of-00NNN.parquet` with the columns of `rows.SCHEMA`, in place of older files of the split.

    Args:
        rows_per_group: rows of a row group, the unit that a reader loads.
        rows_per_file: rows of a file. An empty split is one file without rows.

    Returns:
        The files, in order.

    Raises:
        DataError: two rows of the split share a sample_id.
        BadMedia: a clip's file is missing.
    """
    remaining = _unique(rows, f"{folder}/{split}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=folder) as scratch:
        drafts: list[Path] = []
        while _write_file(draft := Path(scratch) / f"{len(drafts):05d}", remaining, rows_per_group, rows_per_file) or not drafts:
            drafts.append(draft)
        for stale in folder.glob(f"{split}-*-of-*.parquet"):
            stale.unlink()
        return [draft.replace(folder / f"{split}-{index:05d}-of-{len(drafts):05d}.parquet") for index, draft in enumerate(drafts)]


def task_column(task: Task) -> str:
    """The value that the released files have in their column `task`: `emotion_cls`, `sarcasm_cls`, `intent_qa`."""
    domain = task.name.split()[0].lower().replace("-", "")
    return f"{domain}_{'qa' if task.is_open else 'cls'}"


def _write_file(path: Path, rows: Iterator[Row], rows_per_group: int, rows_per_file: int) -> bool:
    """Moves up to `rows_per_file` rows into a parquet file, a row group at a time; returns whether there was any row."""
    remaining = rows_per_file
    with pq.ParquetWriter(path, SCHEMA) as writer:
        while group := list(islice(rows, min(rows_per_group, remaining))):
            writer.write_table(pa.Table.from_pylist([record_of(row, partial(read_clip, row)) for row in group], schema=SCHEMA))
            remaining -= len(group)
    return remaining < rows_per_file


def _unique(rows: Iterable[Row], where: str) -> Iterator[Row]:
    seen = set()
    for row in rows:
        if row.sample_id in seen:
            raise DataError(where, f"two rows have the sample_id '{row.sample_id}'", reason="duplicate sample_id")
        seen.add(row.sample_id)
        yield row


def record_of(row: Row, put: Callable[[bytes | Path, str, int], Any]) -> dict[str, Any]:
    """The released columns of a row; `put` turns a clip of a column into what the layout holds."""
    files = row.files
    clips = {column: files.get(name, ()) for name, column in MEDIA_COLUMNS.items()}
    clips |= {column: row.descriptors.get(column, ()) for column in FEATURE_COLUMNS}
    record = {
        "problem": row.problem,
        "answer": row.answer,
        "texts": [],
        "dataset": row.dataset.id,
        "task": task_column(row.dataset.task),
        "class_label": row.label or "",
        "modality_signature": row.signature,
        "sample_id": row.sample_id,
        "clip_id": row.clip_id,
    }
    record |= {column: [put(clip, column, index) for index, clip in enumerate(values)] for column, values in clips.items()}
    return {column: record[column] for column in SCHEMA.names}


def read_clip(row: Row, clip: bytes | Path, *_: Any) -> bytes:
    """The bytes of a clip.

    Raises:
        BadMedia: its file is missing.
    """
    if isinstance(clip, bytes):
        return clip
    try:
        return clip.read_bytes()
    except OSError as cause:
        raise BadMedia(row.sample_id, f"{clip} cannot be read: {cause.strerror}", reason="missing file") from cause


def place_clip(
    folder: Path, split: str, row: Row, clip: bytes | Path, column: str, index: int, *, ending: str = "", link: bool = False
) -> str:
    """Puts a clip below the root and returns its path relative to the root.

    Args:
        index: of the clip in its column.
        ending: of the name, which tells rows of one sample_id apart.
        link: give the file a second name (a hard link) instead of copying it.

    Raises:
        BadMedia: the clip's file is missing, or on another file system than the root, where no link can be made.
    """
    name = row.sample_id if _SAFE_NAME.fullmatch(row.sample_id) else hashlib.sha256(row.sample_id.encode()).hexdigest()[:32]
    name += (f"-{index}" if index else "") + ending
    suffix = clip.suffix if isinstance(clip, Path) else _suffix(clip, column)
    path = Path("media", column, row.dataset.id, split, name + suffix)
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of an attempt that was interrupted; writing into a link would change its source
    if link and isinstance(clip, Path):
        try:
            os.link(clip, target)
        except OSError as cause:
            raise BadMedia(row.sample_id, f"{clip} cannot be linked: {cause.strerror}", "copy the clips", reason="no link") from cause
    else:
        target.write_bytes(read_clip(row, clip))
    return path.as_posix()


def _suffix(content: bytes, column: str) -> str:
    if column in FEATURE_COLUMNS:
        return ".pt"
    return next((suffix for magic, suffix in _SUFFIXES if re.match(magic, content, re.DOTALL)), ".bin")

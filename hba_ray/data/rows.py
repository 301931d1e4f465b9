"""One row of the atlas: the released columns, checked, with its clips as bytes or as paths.

Both released layouts give the same `Row`: parquet with the clips in its columns, and jsonl beside a folder of clips.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hba_ray.data.tasks import Dataset, consolidate, find_dataset
from hba_ray.errors import DataError

MEDIA_COLUMNS = {"image": "images", "video": "videos", "audio": "audios"}
"""Modality -> column, in the order in which the released files list them."""
FEATURE_COLUMNS = ("ext_video_feats", "ext_audio_feats")
"""Columns of descriptors that an atlas may ship."""

SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("images", pa.list_(pa.binary())),
        ("videos", pa.list_(pa.binary())),
        ("audios", pa.list_(pa.binary())),
        ("texts", pa.list_(pa.string())),
        ("dataset", pa.string()),
        ("task", pa.string()),
        ("class_label", pa.string()),
        ("modality_signature", pa.string()),
        ("ext_video_feats", pa.list_(pa.binary())),
        ("ext_audio_feats", pa.list_(pa.binary())),
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
    ]
)
"""Columns of the parquet layout. The released files lack the last two, which are then derived."""

TAG = re.compile(r"<(image|video|audio)>")
"""Marks in `problem` that stand for a clip, one each, in order."""


@dataclass(frozen=True)
class Row:
    """A prompt, its target and its media.

    Attributes:
        sample_id: names the row in predictions and errors; unique within a split.
        clip_id: the recording it comes from; rows of one clip stay together in bootstrap and splits.
        problem: the prompt, with `<video>` and `<audio>` marks.
        answer: the target as free text.
        label: the target as one of the dataset's classes; None for open answers.
        media: modality -> clips, each the file's bytes or its path.
        descriptors: `ext_video_feats` and `ext_audio_feats` as bytes or paths, where the atlas ships them.
    """

    sample_id: str
    clip_id: str
    dataset: Dataset
    problem: str
    answer: str
    label: str | None
    media: Mapping[str, tuple[bytes | Path, ...]] = field(default_factory=dict)
    descriptors: Mapping[str, tuple[bytes | Path, ...]] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        """The modalities present, as the released files write them: `text_video_audio`.

        The order is that of the released signature: text, image, video, audio.
        """
        return "_".join(["text", *(name for name in MEDIA_COLUMNS if self.media.get(name))])


def clip_names(record: Mapping[str, Any]) -> list[str]:
    """The file names in the media and descriptor columns of a jsonl line, unchecked. Values that are no text are left out.

    `parse_row` refuses such values.
    """
    named = [name for column in (*MEDIA_COLUMNS.values(), *FEATURE_COLUMNS) for name in _listed(record.get(column))]
    return [name for name in named if isinstance(name, str)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parse_row(record: Mapping[str, Any], *, where: str, root: Path | None = None, split_surprise: bool = False, light: bool = False) -> Row:
    """A row from the columns of one record.

    Args:
        record: column -> value; media are bytes (parquet) or relative paths (jsonl).
        where: names the file and line in errors.
        root: folder that relative paths start from and may not leave; None where media are bytes.
        light: the media columns were not read; the row has no media and is not checked against its marks.

    Raises:
        DataError: a column is missing, of a wrong type, an unknown dataset or label, or a path that
            leaves the root; its `reason` is countable.
    """
    problem = _text(record, "problem", where)
    answer = _text(record, "answer", where)
    dataset = find_dataset(_text(record, "dataset", where), where=where)
    where = f"{where} ({dataset.id})"
    if dataset.task.is_open:
        label = None
    else:
        label = consolidate(_name(record, "class_label", where) or answer, dataset, where=where, split_surprise=split_surprise)
    media = {name: _clips(record, column, where, root) for name, column in MEDIA_COLUMNS.items()}
    descriptors = {name: _clips(record, name, where, root) for name in FEATURE_COLUMNS}
    for name, clips in () if light else media.items():
        marks = problem.count(f"<{name}>")
        if marks and marks != len(clips):
            raise DataError(
                where, f"problem has {marks} <{name}> but the row has {len(clips)} {name} clip(s)", reason="clips do not match marks"
            )
    clip_id = _name(record, "clip_id", where) or _clip_of(media, record) or _digest(problem)
    sample_id = _name(record, "sample_id", where) or f"{dataset.id}-{_digest(clip_id, problem, answer)}"
    return Row(
        sample_id=sample_id,
        clip_id=clip_id,
        dataset=dataset,
        problem=problem,
        answer=answer,
        label=label,
        media={name: clips for name, clips in media.items() if clips},
        descriptors={name: clips for name, clips in descriptors.items() if clips},
    )


def _text(record: Mapping[str, Any], column: str, where: str) -> str:
    if column not in record or record[column] is None:
        raise DataError(where, f"column '{column}' is missing", reason="missing column")
    value = record[column]
    if not isinstance(value, str):
        raise DataError(where, f"'{column}' is {type(value).__name__}, not text", reason="wrong type")
    if not value.strip():
        raise DataError(where, f"'{column}' is empty", reason="empty text")
    return _unicode(value, column, where)


def _name(record: Mapping[str, Any], column: str, where: str) -> str | None:
    """The value of an optional text column; None where it is missing or empty."""
    value = record.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(where, f"{column} is {type(value).__name__}, not text", reason="wrong type")
    return _unicode(value, column, where)


def _unicode(value: str, column: str, where: str) -> str:
    """The value, once it is known to be Unicode: JSON can spell half a character, which no file or tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(where, f"'{column}' holds half a character", reason="not Unicode") from None
    return value


def _clips(record: Mapping[str, Any], column: str, where: str, root: Path | None) -> tuple[bytes | Path, ...]:
    values = record.get(column)
    if values is None:
        return ()
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise DataError(where, f"'{column}' is {type(values).__name__}, not a list", reason="wrong type")
    clips: list[bytes | Path] = []
    for value in values:
        if isinstance(value, bytes):
            clips.append(value)
        elif isinstance(value, str) and root is not None:
            clips.append(_inside(value, root, where, column))
        else:
            raise DataError(
                where, f"'{column}' holds {type(value).__name__}, not {'bytes' if root is None else 'a path'}", reason="wrong type"
            )
    return tuple(clips)


def _inside(relative: str, root: Path, where: str, column: str) -> Path:
    """The file `root / relative`.

    Raises:
        DataError: it lies outside the root, or is not there.
    """
    try:
        path = (root / relative).resolve()
        inside = path.is_relative_to(root.resolve())
        there = inside and path.is_file()
    except (OSError, ValueError) as cause:
        raise DataError(where, f"'{column}' names {relative[:200]!r}, which is no path", reason="bad path") from cause
    if not inside:
        raise DataError(
            where,
            f"'{column}' names {relative[:200]!r}, which leaves the atlas",
            "paths are relative to the folder of the jsonl",
            reason="path leaves the atlas",
        )
    if not there:
        raise DataError(where, f"'{column}' names {relative[:200]!r}, which is not there", reason="missing file")
    return path


def _clip_of(media: Mapping[str, tuple[bytes | Path, ...]], record: Mapping[str, Any]) -> str | None:
    """A clip id from the row's first clip, video before audio before image: the file's path without suffix, or a digest of its bytes."""
    for name in ("video", "audio", "image"):
        for clip in media[name]:
            if isinstance(clip, bytes):
                return _digest(clip)
            return Path(record[MEDIA_COLUMNS[name]][0]).with_suffix("").as_posix()
    return None


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]

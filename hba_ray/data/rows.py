"""One row of the atlas: the released columns, checked, with its clips as bytes or as paths.

Both released layouts give the same `Row`: parquet with the clips in its columns, and jsonl beside a folder of clips.
Every row of every source passes `parse_row`, so this is where the rule for text is applied (`data.text`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hba_ray.data.packed import PackedClip
from hba_ray.data.tasks import Dataset, consolidate, find_dataset, find_label
from hba_ray.data.text import clean, comparable, quoted, visible
from hba_ray.errors import DataError

Clip = bytes | Path | PackedClip

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

LABEL_FILLED, LABEL_UNSEEN = "class_label taken from the answer", "unseen characters in class_label"
"""What is told of a row's class beside the changes of `text.clean`."""
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
        media: modality -> clips, each the file's bytes, its path, or what was made of it in a pack.
        descriptors: `ext_video_feats` and `ext_audio_feats` as bytes or paths, where the atlas ships them. Nobody has looked
            whether such a file is there: it concerns only the stages that read it.
        changes: what was changed in its text, as `text.clean` says it, and in its class.
    """

    sample_id: str
    clip_id: str
    dataset: Dataset
    problem: str
    answer: str
    label: str | None
    media: Mapping[str, tuple[Clip, ...]] = field(default_factory=dict)
    descriptors: Mapping[str, tuple[bytes | Path, ...]] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, tuple[bytes | Path, ...]]:
        """`media` of a row that was not read from a pack, for those who need the files themselves.

        Raises:
            TypeError: the row is of a pack.
        """
        return {name: tuple(_stored(clip) for clip in clips) for name, clips in self.media.items()}

    @property
    def signature(self) -> str:
        """The modalities present, as the released files write them: `text_video_audio`.

        The order is that of the released signature: text, image, video, audio.
        """
        return signature_of(None, [name for name, clips in self.media.items() if clips])


def _stored(clip: Clip) -> bytes | Path:
    if isinstance(clip, PackedClip):
        raise TypeError("a packed clip has no file")
    return clip


def stated_modalities(stated: Any) -> frozenset[str] | None:
    """The modalities that a `modality_signature` names; None where it is absent or nothing that can be read.

    >>> sorted(stated_modalities("text_audio")), stated_modalities("sound")
    (['audio', 'text'], None)
    """
    names = frozenset(stated.split("_")) if isinstance(stated, str) else frozenset()
    return names if names and names <= {"text", *MEDIA_COLUMNS} else None


def contradicts(stated: Any, present: Collection[str]) -> bool:
    """Whether a stated signature names other clips than those that are present, or cannot be read. None states nothing."""
    names = stated_modalities(stated)
    return stated not in (None, "") and (names is None or names - {"text"} != set(present))


def signature_of(stated: Any, present: Collection[str]) -> str:
    """The signature of a row with clips of these modalities.

    What a row states stands where it agrees with the clips. Else the clips decide; whether there is text besides the question
    is known only from what is stated, and assumed where nothing is.

    >>> signature_of("text", ["audio"]), signature_of("video", ["video"]), signature_of(None, [])
    ('text_audio', 'video', 'text')
    """
    names = stated_modalities(stated)
    if names is not None and not contradicts(stated, present):
        return str(stated)
    text = ["text"] if names is None or "text" in names else []
    return "_".join([*text, *(name for name in MEDIA_COLUMNS if name in present)]) or "text"


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
    problem, answer = (_text(record, column, where) for column in ("problem", "answer"))
    dataset = find_dataset(_text(record, "dataset", where), where=where)
    where = f"{where} ({dataset.id})"
    label, in_label = _label(record, answer, dataset, where, split_surprise)
    media = {name: _clips(record, column, where, root) for name, column in MEDIA_COLUMNS.items()}
    descriptors = {name: _clips(record, name, where, root, may_lack=True) for name in FEATURE_COLUMNS}
    for name, clips in () if light else media.items():
        marks = problem.count(f"<{name}>")
        if marks > len(clips):
            raise DataError(
                where, f"problem has {marks} <{name}> but the row has {len(clips)} {name} clip(s)", reason="clips do not match marks"
            )
    clip_id = _name(record, "clip_id", where) or _clip_of(media, record) or _digest(problem)
    sample_id = _name(record, "sample_id", where) or f"{dataset.id}-{_digest(clip_id, problem, answer)}"
    asked, in_question = clean(problem)
    wanted, in_answer = clean(answer)
    for column, text in (("problem", asked), ("answer", wanted)):
        _check_not_empty(text, column, where)
    return Row(
        sample_id=sample_id,
        clip_id=clip_id,
        dataset=dataset,
        problem=asked,
        answer=wanted,
        label=label,
        media={name: clips for name, clips in media.items() if clips},
        descriptors={name: clips for name, clips in descriptors.items() if clips},
        changes=tuple(dict.fromkeys((*in_question, *in_answer, *in_label))),
    )


def _label(record: Mapping[str, Any], answer: str, dataset: Dataset, where: str, split_surprise: bool) -> tuple[str | None, list[str]]:
    """The row's class, its `class_label` or, where it states none, its answer; and what there is to tell of that.

    Raises:
        DataError: neither is a label of the dataset, or they are two different ones.
    """
    stated = _name(record, "class_label", where)
    if dataset.task.is_open:
        return None, []
    label = consolidate(stated or answer, dataset, where=where, split_surprise=split_surprise)
    answered = find_label(answer, dataset)
    if stated and answered not in (None, find_label(stated, dataset)):
        said, told = (quoted(text, is_sensitive=dataset.sensitive) for text in (answer, stated))
        raise DataError(where, f"the answer is {said} and the class_label {told}", "correct one of them", reason="answer contradicts label")
    if not stated:  # a file without the column states no classes, so there none is filled in
        return label, [LABEL_FILLED] if "class_label" in record else []
    return label, [LABEL_UNSEEN] if stated.strip() != stated or visible(stated) != stated else []


def _text(record: Mapping[str, Any], column: str, where: str) -> str:
    if column not in record or record[column] is None:
        raise DataError(where, f"column '{column}' is missing", reason="missing column")
    value = record[column]
    if not isinstance(value, str):
        raise DataError(where, f"'{column}' is {type(value).__name__}, not text", reason="wrong type")
    _check_not_empty(value, column, where)
    return _unicode(value, column, where)


def _check_not_empty(value: str, column: str, where: str) -> None:
    """Refuses a text without a character that can be seen."""
    if not comparable(value[:64]) and not comparable(value):
        raise DataError(where, f"'{column}' is empty", reason="empty text")


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


def _clips(record: Mapping[str, Any], column: str, where: str, root: Path | None, *, may_lack: bool = False) -> tuple[bytes | Path, ...]:
    """The clips in a column.

    Args:
        may_lack: a file that is not there is no defect.
    """
    values = record.get(column)
    if values is None:
        return ()
    if not isinstance(values, list | tuple):
        raise DataError(where, f"'{column}' is {type(values).__name__}, not a list", reason="wrong type")
    clips: list[bytes | Path] = []
    for value in values:
        if isinstance(value, bytes):
            clips.append(value)
        elif isinstance(value, str) and root is not None:
            clips.append(_inside(value, root, where, column, may_lack))
        else:
            raise DataError(
                where, f"'{column}' holds {type(value).__name__}, not {'bytes' if root is None else 'a path'}", reason="wrong type"
            )
    return tuple(clips)


def _inside(relative: str, root: Path, where: str, column: str, may_lack: bool) -> Path:
    """The file `root / relative`, links followed.

    Raises:
        DataError: it lies outside the root, or there is no regular file of this name.
    """
    named = f"'{column}' names {relative[:200]!r}"
    try:
        path = Path(os.path.realpath(root / relative))  # Path.resolve raises another error where links go round in a circle
        inside = path.is_relative_to(os.path.realpath(root))
        there, is_file = inside and path.exists(), inside and path.is_file()
    except (OSError, ValueError) as cause:
        raise DataError(where, f"{named}, which is no path", reason="bad path") from cause
    if not inside:
        way_out = "paths are relative to the folder of the jsonl"
        raise DataError(where, f"{named}, which leaves the atlas", way_out, reason="path leaves the atlas")
    if is_file or may_lack:
        return path
    if there:
        raise DataError(where, f"{named}, which is a folder, a pipe or a device", "give a file", reason="not a file")
    raise DataError(where, f"{named}, which is not there", reason="missing file")


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

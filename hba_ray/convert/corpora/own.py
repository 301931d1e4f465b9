"""Converter of a user's own data: a csv or jsonl of clips and labels, as the `dataset.yaml` beside it describes them.

Where no column names the split, rows are divided by `splits`, whole groups together. A prompt shows the clips and the transcript, then
asks the row's question or that of the declaration, and names the labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve
from hba_ray.convert.media import clip_file
from hba_ray.convert.splits import split_by_group, split_named
from hba_ray.convert.tables import column, read_table, read_text
from hba_ray.data.rows import MEDIA_COLUMNS, TAG, Row
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset, consolidate
from hba_ray.data.text import visible
from hba_ray.errors import DataError
from hba_ray.specs.sections.own import DECLARATION, OwnDataset


def convert(request: ConversionRequest) -> Converted:
    """The rows of a user's own dataset.

    Raises:
        DataError: names file, row and column.
    """
    (own,) = request.spec.own
    sieve = Sieve(own.dataset, request.spec.on_bad_row)
    rows: dict[str, tuple[Row, str, str | None]] = {}
    for number, (where, record) in enumerate(records(request.folder / own.file, own)):
        with sieve.row():
            row, group = _row(own, record, request.folder, number, where)
            split = _split(own, record, where)
            if row.sample_id in rows:
                raise DataError(where, f"the id '{visible(row.sample_id)}' is that of a row before", reason="duplicate sample")
            rows[row.sample_id] = row, group, split
    if own.columns.split is not None:
        return Converted({split: [row for row, _, its in rows.values() if its == split] for split in SPLITS}, sieve.drops)
    groups = [group for _, group, _ in rows.values()]
    split_of = split_by_group(groups, _counts(own.splits, len(rows)), request.seed)
    divided = {split: [row for (row, *_), its in zip(rows.values(), split_of, strict=True) if its == split] for split in SPLITS}
    return Converted(divided, sieve.drops)


def records(file: Path, own: OwnDataset) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, record) of each row of a csv or jsonl; an empty record stands for a row that cannot be read.

    Raises:
        DataError: the file is not there, is neither, or lacks a column.
    """
    names = [name for name in own.columns.model_dump().values() if name is not None]
    if file.suffix.lower() == ".csv":
        yield from read_table(file, names)
        return
    if file.suffix.lower() != ".jsonl":
        raise DataError(str(file), "is neither .csv nor .jsonl", f"name such a file as `file` in {DECLARATION}", reason="unread file")
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            record = {}
        if record is not None:
            yield f"{file}, line {number}", record if isinstance(record, dict) else {}


def _row(own: OwnDataset, record: Mapping[str, Any], folder: Path, number: int, where: str) -> tuple[Row, str]:
    """The row, and the group that it belongs to."""
    dataset, columns = DATASETS[own.dataset], own.columns
    media = {}
    for modality, name in (("image", columns.image), ("video", columns.video), ("audio", columns.audio)):
        if name is not None and _has(record, name):
            media[modality] = (_clip(folder, column(record, name, where), where),)
    if "video" in media and columns.audio is None and own.sound:
        media["audio"] = media["video"]
    transcript = _text(record, columns.transcript, where)
    asked = own.prompt if columns.question is None else _text(record, columns.question, where)
    if not (asked or "").strip():
        raise DataError(where, f"'{columns.question}' is empty", "each row of it needs its question", reason="empty text")
    answer = column(record, columns.answer, where)
    label = None if dataset.task.is_open else consolidate(answer, dataset, where=where)
    name = column(record, columns.id, where) if columns.id is not None else f"{number:06d}"
    clip = next((file[0].relative_to(folder.absolute()).with_suffix("").as_posix() for file in media.values()), name)
    row = Row(
        sample_id=f"{dataset.id}-{name}",
        clip_id=f"{dataset.id}-{clip}",
        dataset=dataset,
        problem=_problem(dataset, tuple(media), transcript, str(asked), where),
        answer=answer if label is None else label,
        label=label,
        media=media,
    )
    group = _text(record, columns.group, where)
    return (row, row.clip_id) if group is None else (replace(row, clip_id=f"{dataset.id}-{group}"), group)


def _problem(dataset: Dataset, modalities: tuple[str, ...], transcript: str | None, asked: str, where: str) -> str:
    for text in (transcript or "", asked):
        if mark := TAG.search(text):
            raise DataError(where, f"a text holds {mark.group()}, which stands for a clip", "take it out", reason="mark in text")
    marks = [f"<{name}>" for name in MEDIA_COLUMNS if name in modalities]
    choice = "" if dataset.task.is_open else f" Reply with one of these labels: {', '.join(dataset.labels)}."
    return "\n".join([*marks, *([transcript] if transcript else []), f"{asked.strip()}{choice}"])


def _has(record: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a value; a clip may be missing from some rows."""
    return record.get(name) not in (None, "")


def _text(record: Mapping[str, Any], name: str | None, where: str) -> str | None:
    return column(record, name, where) if name is not None and _has(record, name) else None


def _clip(folder: Path, name: str, where: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(where, f"'{visible(name)}' leads out of the folder", f"clips lie below {folder}", reason="path leaves the atlas")
    return clip_file(folder / name, where)


def _split(own: OwnDataset, record: Mapping[str, Any], where: str) -> str | None:
    if own.columns.split is None:
        return None
    return split_named(column(record, own.columns.split, where), where)


def _counts(shares: tuple[float, float, float], rows: int) -> tuple[int, int, int]:
    """Rows of each split; rounding is to the good of train."""
    validation, test = (int(share * rows + 0.5) for share in shares[1:])
    return rows - validation - test, validation, test

"""Converter of a user's own data: a csv or jsonl of clips and labels, as the `dataset.yaml` beside it describes them.

Where no column names the split, rows are divided by `splits`, whole groups together. A prompt shows the clips and the transcript, then
asks the row's question or that of the declaration, and names the labels.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve
from hba_ray.convert.media import clip_file
from hba_ray.convert.splits import split_by_group, split_named
from hba_ray.convert.tables import column, lines_of, read_table
from hba_ray.data.rows import MEDIA_COLUMNS, TAG, Row
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset, consolidate
from hba_ray.data.text import parse_json, quoted
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow
from hba_ray.specs.sections.own import DECLARATION, OwnDataset

NAME_COLUMNS = f"columns in {DECLARATION} name those of the rows"
_FIELD = re.compile(r"\{(given|labels|question)\}")


def convert(request: ConversionRequest) -> Converted:
    """The rows of a user's own dataset.

    Raises:
        DataError: names file, row and column.
    """
    (own,) = request.spec.own
    sieve = Sieve(own.dataset, request.spec.on_bad_row)
    rows: dict[str, tuple[Row, str, str | None]] = {}
    _check_prompt(own, request.folder)
    names = [name for name in own.columns.model_dump().values() if name is not None]
    for number, (where, record) in enumerate(records(request.folder / own.file, names)):
        with sieve.row():
            if not record:
                is_csv = _ending(request.folder / own.file) == ".csv"
                what = "has more or fewer values than the header" if is_csv else "is no JSON object with each key once"
                raise DataError(where, what, "mend or delete the line", reason="unread row")
            row, group = _row(own, record, request.folder, number, where)
            split = _split(own, record, where)
            if row.sample_id in rows:
                name = quoted(row.sample_id, is_sensitive=own.sensitive)
                raise DataError(where, f"the id {name} is that of a row before", reason="duplicate sample")
            rows[row.sample_id] = row, group, split
    if own.columns.split is not None:
        return Converted({split: [row for row, _, its in rows.values() if its == split] for split in SPLITS}, sieve.drops)
    groups = _together([(group, *(str(clip) for clips in row.files.values() for clip in clips)) for row, group, _ in rows.values()])
    split_of = split_by_group(groups, _counts(own.splits, len(rows)), request.seed)
    divided = {split: [row for (row, *_), its in zip(rows.values(), split_of, strict=True) if its == split] for split in SPLITS}
    return Converted(divided, sieve.drops)


def expected_counts(own: OwnDataset, folder: Path, on_bad_row: OnBadRow) -> tuple[int, int, int]:
    """Rows of train, validation and test before any is looked at: all that the file holds, by their column of splits or by shares.

    Raises:
        DataError: the file cannot be read, or a split has no known name and no row may be dropped.
    """
    sieve, counts = Sieve(own.dataset, on_bad_row), Counter[str | None]()
    for where, record in records(folder / own.file, ()):
        if record:
            with sieve.row():
                counts[_split(own, record, where)] += 1
    if own.columns.split is None:
        return _counts(own.splits, counts[None])
    return counts["train"], counts["validation"], counts["test"]


def _check_prompt(own: OwnDataset, folder: Path) -> None:
    """Refuses a prompt that could not be asked as it stands."""
    if sign := TAG.search(own.prompt) or _FIELD.search(own.prompt):
        what = f"prompt holds {sign.group()}: clips are shown before it, and labels named behind it"
        raise DataError(str(folder / DECLARATION), what, "take it out", reason="mark in text")


def records(file: Path, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, record) of each row of a csv or jsonl; an empty record stands for a row that cannot be read.

    Args:
        names: columns that a csv must have.

    Raises:
        DataError: the file is not there, is neither, or lacks a column.
    """
    if _ending(file) == ".csv":
        yield from read_table(file, names, way_out=NAME_COLUMNS)
        return
    if _ending(file) != ".jsonl":
        raise DataError(str(file), "is neither .csv nor .jsonl", f"name such a file as `file` in {DECLARATION}", reason="unread file")
    found = [(f"{file}, line {number}", _object(line)) for number, line in lines_of(file)]
    if missing := [name for name in names if not any(name in record for _, record in found)]:
        raise DataError(str(file), f"no row has '{missing[0]}'", NAME_COLUMNS, reason="missing column")
    yield from found


def _ending(file: Path) -> str:
    return file.suffix.lower()


def _object(line: str) -> dict[str, Any]:
    """A line of JSON as a row of a csv: whole numbers, true and false, which are ids and labels, are text. Empty where it is no object."""
    try:
        record = parse_json(line)
    except (ValueError, RecursionError):
        return {}
    held = record if isinstance(record, dict) else {}
    return {name: json.dumps(value) if isinstance(value, int) else value for name, value in held.items()}


def _row(own: OwnDataset, record: Mapping[str, Any], folder: Path, number: int, where: str) -> tuple[Row, str]:
    """The row, and the group that it belongs to."""
    dataset, columns = DATASETS[own.dataset], own.columns
    media = {}
    for modality, name in (("image", columns.image), ("video", columns.video), ("audio", columns.audio)):
        if name is not None and _has(record, name):
            media[modality] = (_clip(own, record, name, folder, where),)
    if "video" in media and columns.audio is None and own.sound:
        media["audio"] = media["video"]
    transcript = _text(record, columns.transcript, where)
    if not media and transcript is None and columns.question is None:
        raise DataError(where, "has neither a clip nor a transcript", NAME_COLUMNS, reason="nothing to show")
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
    return (row, row.clip_id) if group is None else (replace(row, clip_id=f"{dataset.id}-{group.strip()}"), group.strip())


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


def _clip(own: OwnDataset, record: Mapping[str, Any], name: str, folder: Path, where: str) -> Path:
    value = column(record, name, where)
    if Path(value).is_absolute() or ".." in Path(value).parts:
        what = f"{quoted(value, is_sensitive=own.sensitive)} leads out of the folder"
        raise DataError(where, what, f"clips lie below {folder}", reason="path leaves the atlas")
    try:
        return clip_file(folder / value, where)
    except DataError as bad:
        if not own.sensitive:
            raise
        what = f"'{name}' holds {quoted(value, is_sensitive=True)}, which is no file of the folder"  # it may be no path, but what was said
        raise DataError(where, what, "restore the clip, or name another column", reason=bad.reason) from None


def _split(own: OwnDataset, record: Mapping[str, Any], where: str) -> str | None:
    if own.columns.split is None:
        return None
    return split_named(column(record, own.columns.split, where), where)


def _together(held: Sequence[Sequence[str]]) -> list[str]:
    """A group for each row, so that rows which share anything, over others too, have the same one.

    >>> _together([("ann", "1.wav"), ("ben", "2.wav"), ("ben", "1.wav"), ("cem", "3.wav")])
    ['1.wav', '1.wav', '1.wav', '3.wav']

    Args:
        held: of each row the group that it names, then its clips.
    """
    from scipy.cluster.hierarchy import DisjointSet

    shared = DisjointSet(name for names in held for name in names)
    for names in held:
        for name in names[1:]:
            shared.merge(names[0], name)
    named = {name: min(subset) for subset in shared.subsets() for name in subset}  # whatever the order of rows
    return [named[names[0]] for names in held]


def _counts(shares: tuple[float, float, float], rows: int) -> tuple[int, int, int]:
    """Rows of each split, as near to the shares as whole rows allow; never more than there are."""
    validation, test = (int(share * rows + 0.5) for share in shares[1:])
    validation = min(validation, rows - test)
    return rows - validation - test, validation, test

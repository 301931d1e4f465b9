"""What the converters share: strict reading of the public files, bad rows, and what a converter returns.

A defect of a file (missing, not UTF-8, no such column, cut off inside a quote) always stops; a
defect of a row stops or leaves the row out, as `atlas.on_bad_row` says.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hba_ray.data.atlas import Drop
from hba_ray.data.rows import Row
from hba_ray.errors import DataError

OnBadRow = Literal["fail", "drop"]


@dataclass(frozen=True)
class Difference:
    """Rows more (positive) or fewer (negative) than published, and why."""

    rows: int
    reason: str


@dataclass(frozen=True)
class Converted:
    """What a converter makes of the public files.

    Attributes:
        rows: split -> rows.
        drops: rows left out; `split` is empty where a row was left out before the split was made.
        differences: split -> what the converter knows about its counts against the published ones.
    """

    rows: dict[str, list[Row]]
    drops: list[Drop] = field(default_factory=list)
    differences: dict[str, list[Difference]] = field(default_factory=dict)


class Sieve:
    """Stops at a bad row, or leaves it out and remembers it."""

    def __init__(self, source: str, on_bad_row: OnBadRow):
        self.source, self.on_bad_row = source, on_bad_row
        self.drops: list[Drop] = []

    @contextmanager
    def row(self, split: str = "") -> Iterator[None]:
        """Guards the making of one row; nothing may be kept of it before the block ends."""
        try:
            yield
        except DataError as bad:
            if self.on_bad_row == "fail":
                raise bad.of_a_row() from None
            self.leave_out(bad.where, bad.reason, split)

    def leave_out(self, row: str, reason: str, split: str = "") -> None:
        self.drops.append(Drop(split, self.source, row, reason))


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        DataError: it is not there, or not UTF-8; names the line.
    """
    try:
        raw = path.read_bytes()
    except OSError as cause:
        way_out = "atlas.root is the folder of the dataset's public files"
        raise DataError(str(path), f"cannot be read: {cause.strerror or cause}", way_out, reason="missing file") from None
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as cause:
        line = raw.count(b"\n", 0, cause.start) + 1
        what = f"byte 0x{raw[cause.start]:02x} is not UTF-8"
        raise DataError(f"{path}, line {line}", what, "fetch the file again, or re-encode it", reason="not UTF-8") from None


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row of a CSV file; read the record by `column`, which checks it.

    The record of a row that is longer or shorter than the header is empty.

    Raises:
        DataError: the file cannot be read, lacks one of `columns`, is no CSV (cut off inside a quote),
            or holds no rows.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}, line 1", f"column '{missing[0]}' is missing", "use the file as published", reason="missing column")
        record = None
        for record in reader:
            fits = None not in record and None not in record.values()
            yield f"{path}, line {reader.line_num}", record if fits else {}
        if record is None:
            raise DataError(str(path), "holds no rows", "a truncated file ends like this", reason="no rows")
    except csv.Error as cause:
        where = f"{path}, line {reader.line_num}"
        raise DataError(where, f"is not CSV: {cause}", "a truncated file ends like this", reason="not CSV") from None


def column(record: Mapping[Any, Any], name: str, where: str) -> str:
    """A value of a record as text.

    Raises:
        DataError: the value is missing, no text, empty, or no Unicode.
    """
    value = record.get(name)
    if value is None:
        what = f"'{name}' is missing; the row may be cut off"
        raise DataError(where, what, "use the file as published", reason="missing value")
    if not isinstance(value, str):
        raise DataError(where, f"'{name}' is {type(value).__name__}, not text", reason="wrong type")
    if not value.strip():
        raise DataError(where, f"'{name}' is empty", reason="empty text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(where, f"'{name}' holds half a character (a lone surrogate)", reason="not UTF-8")
    return value


def first_folder(root: Path, candidates: Sequence[str]) -> Path | None:
    """The first of the candidate folders under `root` that is there."""
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def video_and_audio(clip: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """The media of a row whose video holds its sound."""
    path = clip_file(clip, where)
    return {"video": (path,), "audio": (path,)}


def clip_file(path: Path, where: str) -> Path:
    """`path`, absolute.

    Raises:
        DataError: the file is not there.
    """
    if not path.is_file():
        raise DataError(where, f"{path} is not there", "restore the clip", reason="missing file")
    return path.absolute()

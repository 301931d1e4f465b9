"""Strict reading of the tables of a corpus: text, CSV and JSON, and the values in them.

Values are read as text, so that an id keeps its leading zeros and its dash. No error repeats what a cell holds: it may be a
patient's.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hba_ray.data.shards import check_is_file
from hba_ray.data.text import parse_json
from hba_ray.errors import DataError

APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""First bytes of the side files of macOS, which archives may hold in place of the file itself."""
_CHINESE = "gb18030"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, of which endings need some."""
AS_PUBLISHED = "use the file as published"
_OTHER_SIGNS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What separates columns in files that are called csv all the same."""
_LARGEST_CELL = 2**24
"""Characters of a cell; the `csv` module takes 131,072 by default, less than the transcript of an interview."""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: it is not there, no regular file, the side file of macOS, or not in this encoding; names the line.
    """
    if path.exists():
        check_is_file(path)
    try:
        raw = path.read_bytes()
    except OSError as cause:
        way_out = "atlas.root is the folder of the dataset's public files"
        raise DataError(str(path), f"cannot be read: {cause.strerror or cause}", way_out, reason="missing file") from None
    if raw.startswith(APPLE_DOUBLE):
        what = "is the side file that macOS keeps beside a file, not the file itself"
        raise DataError(str(path), what, f"unpack {path.name} again, without the names that start with '._'", reason="side file of macOS")
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as cause:
        raise _not_decodable(path, raw, cause) from None


def _not_decodable(path: Path, raw: bytes, cause: UnicodeDecodeError) -> DataError:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        way_out = f"iconv -f UTF-16 -t UTF-8 {path.name} > new && mv new {path.name}"
        return DataError(str(path), "is written in UTF-16, not in UTF-8", way_out, reason="not UTF-8")
    line = raw.count(b"\n", 0, cause.start) + 1
    what = f"byte 0x{raw[cause.start]:02x} is not UTF-8"
    way_out = "fetch the file again, or re-encode it"
    if _reads_as_chinese(raw):
        what += "; the file reads as Chinese in GB18030, which spreadsheet programs write"
        way_out = f"fetch it again, or: iconv -f GB18030 -t UTF-8 {path.name} > new && mv new {path.name}"
    return DataError(f"{path}, line {line}", what, way_out, reason="not UTF-8")


def _reads_as_chinese(raw: bytes) -> bool:
    """Whether most of what is not ASCII is common Chinese in GB18030; other encodings give rare characters, or none."""
    try:
        others = [letter for letter in raw.decode(_CHINESE) if not letter.isascii()]
    except UnicodeDecodeError:
        return False
    common = sum("\u4e00" <= letter <= "\u9fff" or "\u3000" <= letter <= "\u303f" or "\uff00" <= letter <= "\uffef" for letter in others)
    return len(others) > 1 and common > 0.9 * len(others)


def read_table(
    path: Path,
    columns: Sequence[str | tuple[str, ...]],
    *,
    delimiter: str = ",",
    encoding: str = "utf-8",
    way_out: str = AS_PUBLISHED,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row of a CSV file. `column` reads values from a record and checks them.

    Names of columns lose the spaces around them. A row that is longer or shorter than the header has an empty record, which
    `column` refuses.

    Args:
        columns: names that must be there. Several names for one column stand in a tuple; records have the first.
        way_out: what to do where one is not.

    Raises:
        DataError: the file cannot be read, lacks one of `columns` or has it twice, is no CSV (cut off inside a quote),
            or holds no rows.
    """
    csv.field_size_limit(_LARGEST_CELL)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL  # in a table by tabs a quote is a sign as any other
    reader = csv.DictReader(io.StringIO(read_text(path, encoding), newline=""), strict=True, delimiter=delimiter, quoting=quoting)
    try:
        reader.fieldnames = _named(path, [name.strip() for name in reader.fieldnames or ()], columns, way_out)
        record = None
        for record in reader:
            fits = None not in record and None not in record.values()
            yield f"{path}, line {reader.line_num}", record if fits else {}
        if record is None:
            raise DataError(str(path), "holds no rows", "a truncated file ends like this", reason="no rows")
    except csv.Error as cause:
        where = f"{path}, line {reader.line_num}"
        raise DataError(where, f"is not CSV: {cause}", "a truncated file ends like this", reason="not CSV") from None


def _named(path: Path, found: list[str], columns: Sequence[str | tuple[str, ...]], way_out: str) -> list[str]:
    """The header, with the first name of each wanted column in place of another one that it may have."""
    if sign := next((sign for sign in _OTHER_SIGNS if len(found) == 1 and sign in found[0] and found[0] not in columns), None):
        what = f"the header is one column, with {_OTHER_SIGNS[sign]} in its name"
        raise DataError(f"{path}, line 1", what, "save the table with commas between columns", reason="not CSV")
    for wanted in columns:
        names = (wanted,) if isinstance(wanted, str) else wanted
        there = [name for name in names if name in found]
        if not there:
            what = f"column '{names[0]}' is missing" + (f", also as {', '.join(names[1:])}" if names[1:] else "")
            raise DataError(f"{path}, line 1", what, way_out, reason="missing column")
        if found.count(there[0]) > 1:
            raise DataError(f"{path}, line 1", f"column '{there[0]}' is there twice", "rename one of them", reason="two columns")
        found[found.index(there[0])] = names[0]
    return found


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: the file cannot be read, or is no JSON.
    """
    return _json(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, place, object) of each line of a file of JSON lines; empty lines are passed over.

    Raises:
        DataError: the file cannot be read, holds no rows, or a line of it is no JSON object.
    """
    is_empty = True
    for number, line in lines_of(path):
        is_empty, where = False, f"{path}, line {number}"
        value = _json(line, where)
        if not isinstance(value, dict):
            raise DataError(where, f"is {type(value).__name__}, not an object", "use the file as published", reason="wrong type")
        yield number, where, value
    if is_empty:
        raise DataError(str(path), "holds no rows", "a truncated file ends like this", reason="no rows")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of each line of a file of JSON lines that is not empty. A text in it may hold other ends of lines that
    Unicode knows, such as U+2028, which end no line here.
    """
    return ((number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip())


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as cause:
        raise DataError(where, f"is not JSON: {cause}", "a truncated file ends like this", reason="not JSON") from None


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
    if _HALF_CHARACTER.search(value):
        raise DataError(where, f"'{name}' holds half a character (a lone surrogate)", reason="not UTF-8")
    return value


def identifier(record: Mapping[Any, Any], name: str, where: str) -> str:
    """A value that names a file, as it stands but for spaces around it.

    Raises:
        DataError: as `column`; or it holds a slash, is the name of a folder, or is longer than a file's may be.
    """
    value = column(record, name, where).strip()
    if not is_name(value):
        raise DataError(where, f"'{name}' is no name of a clip", "use the file as published", reason="bad path")
    return value


def is_name(text: str) -> bool:
    """Whether a text can name a file of a folder, and none elsewhere.

    >>> [is_name(text) for text in ("-a_b", "..", "a/b", "a" * 300)]
    [True, False, False, False]
    """
    return text not in ("", ".", "..") and not any(sign in text for sign in "/\\\0") and len(text.encode()) <= _LONGEST_NAME


def number(value: Any, name: str, where: str, *, lowest: float = -math.inf, highest: float = math.inf) -> float:
    """A number that stands in a file as such, or as text.

    Raises:
        DataError: it is none, or out of range. The value is not repeated.
    """
    try:
        found = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        what = f"'{name}' is " + ("missing" if value is None else "empty" if isinstance(value, str) and not value.strip() else "no number")
        raise DataError(where, what, "use the file as published", reason="missing value" if value is None else "wrong type")
    if not lowest <= found <= highest:
        raise DataError(where, f"'{name}' lies outside {lowest:g} to {highest:g}", reason="out of range")
    return found

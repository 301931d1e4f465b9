"""The files of an atlas: finds them, and reads their records, in the released parquet and in the released jsonl.

Only regular files are opened. A defect of a file (another encoding, a JSON array, damage) is an error whatever
`atlas.on_bad_row` says; a defect of a record stands in the record's place.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hba_ray.data.rows import FEATURE_COLUMNS, MEDIA_COLUMNS, stated_modalities
from hba_ray.data.text import parse_json, visible
from hba_ray.errors import DataError

LIGHT = ("problem", "answer", "dataset", "class_label", "modality_signature", "sample_id", "clip_id")
HEAVY = (*MEDIA_COLUMNS.values(), *FEATURE_COLUMNS)
_REQUIRED = ("problem", "answer", "dataset")
_SPLIT_WORDS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
                "dev": "validation", "test": "test"}  # fmt: skip
_READ_ROWS = 16
"""Parquet rows decoded at a time; it bounds the memory of reading a large row group."""
LONGEST_LINE = 16 << 20
"""Bytes of a line of jsonl. Clips lie beside it, so a line is text."""
_LOOKED_AT = 1 << 16
"""Bytes at the start of a jsonl file that tell its encoding."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)
"""What pyarrow raises about files that are not in order."""
_ENDINGS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_NOT_READ = re.compile(r"\.json$|\.(?:jsonl|ndjson|json|parquet)\.(?:gz|bz2|xz|zst|zip)$")
_PART = re.compile(r"(.*?)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.\w+")
"""Name of a part of a split: `train-00000-of-00600.parquet`, on the hub also with a hash behind it."""


_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "unzip"}
"""First bytes of a packed file -> the program that unpacks it."""


@dataclass(frozen=True)
class Shard:
    """One file of an atlas.

    Attributes:
        root: folder from which the paths of clips start (jsonl).
        part: number of its corpus, where several are joined.
    """

    path: str
    split: str
    root: str = ""
    part: int = 0

    @property
    def is_parquet(self) -> bool:
        return self.path.lower().endswith(".parquet")

    @property
    def name(self) -> str:
        """The file's name, for errors."""
        return visible(Path(self.path).name)


class StoredRow(NamedTuple):
    """A row as it stands in a file.

    Attributes:
        address: its row group (parquet) or byte offset (jsonl).
        position: its place in the row group (parquet), or its line (jsonl).
        columns: those of LIGHT (parquet), or all (jsonl); a DataError where it cannot be read.
        present: modalities of its clips, which parquet keeps apart; None in jsonl, where `columns` tells.
    """

    address: int
    position: int
    columns: dict[str, Any] | DataError
    present: frozenset[str] | None


def find_shards(root: Path, layout: str = "auto", *, part: int = 0) -> tuple[Shard, ...]:
    """The files of an atlas, by name: `<anything with train|val|validation|dev|test>.parquet` or `.jsonl`. Hidden ones do not count.

    Args:
        layout: `parquet` or `jsonl` looks at such files alone; `auto` takes each split as it is.
        part: number of the corpus, where several are joined.

    Raises:
        DataError: no folder, no files; a file of a split that is not read; two versions of a split; a pipe, device or folder
            with the name of a file.
    """
    if not root.is_dir():
        raise DataError(
            str(root),
            "no such folder",
            "give the folder of the parquet or jsonl files as atlas.root or, of one of several, as root in atlas.sources",
            reason="missing file",
        )
    found: list[Shard] = []
    for path in sorted(path for folder in (root, root / "data") for path in _listed(folder)):
        split, kind = _split_of(path.name), _ENDINGS.get(path.suffix.lower())
        if not split or path.name.startswith("."):
            continue
        if kind and layout in ("auto", kind):
            check_is_file(path)
            found.append(Shard(str(path), split, str(root), part))
        elif _NOT_READ.search(path.name.lower()) and layout in ("auto", "parquet" if ".parquet" in path.name.lower() else "jsonl"):
            raise DataError(str(path), f"is named after the {split} split, and not read", _way_out(path.name), reason="unread file")
    if not found:
        wanted = "*.parquet or *.jsonl" if layout == "auto" else f"*.{layout}"
        raise DataError(
            str(root), f"holds no {wanted} named after a split", "expected names such as train-00000-of-00001.parquet or train.jsonl"
        )
    _check_versions(root, found)
    return tuple(sorted(found, key=lambda shard: not shard.is_parquet))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except OSError as cause:
        raise DataError(str(folder), f"cannot be listed: {cause.strerror}", reason="missing file") from cause


def _split_of(name: str) -> str | None:
    words = [_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_WORDS]
    return words[0] if words else None


def _way_out(name: str) -> str:
    if name.lower().endswith(".json"):
        line = f"make it one object a line: jq -c 'if type == \"array\" then .[] else . end' {name} > {name}l"
        return f"if it holds rows, {line}, and remove {name}; if not, move it elsewhere"
    return "unpack it, and remove the packed file"


def _check_versions(root: Path, shards: Sequence[Shard]) -> None:
    """Refuses two versions of a split, of which one would be trained on twice, or silently left out.

    Parts of one version are numbered alike. Several parquet files whose names differ otherwise are several datasets.
    """
    by_split: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        by_split[shard.split].append(shard)
    for split, its in by_split.items():
        names = ", ".join(shard.name for shard in its)
        if len({shard.is_parquet for shard in its}) > 1:
            way_out = "keep one, or say which is meant: atlas.format=parquet or atlas.format=jsonl"
            raise DataError(str(root), f"has the {split} split as parquet and as jsonl: {names}", way_out, reason="two versions")
        parts = [_PART.fullmatch(Path(shard.path).name) for shard in its]
        numbered = [(part[1], part[2], part[3]) for part in parts if part]
        totals = {(name, total) for name, _, total in numbered}
        are_parts = len(totals) == len({name for name, _ in totals}) and len(set(numbered)) == len(numbered)
        if its[0].is_parquet and not are_parts:
            what = f"has two versions of the {split} split: {names}"
            raise DataError(str(root), what, "keep one version of each split in the folder", reason="two versions")
        if not its[0].is_parquet and len(its) > 1 and not (are_parts and len(totals) == 1 and len(numbered) == len(its)):
            way_out = f"keep one version of each split in the folder; parts of one are named {split}-00000-of-00002.jsonl and so on"
            raise DataError(str(root), f"has several jsonl files for one split: {names}", way_out, reason="two versions")


def check_is_file(path: Path) -> None:
    """Refuses what is no regular file: a pipe would be waited for, and a device never ends.

    Raises:
        DataError: it is something else, or not there.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as cause:
        raise DataError(visible(str(path)), f"cannot be read: {cause.strerror}", reason="missing file") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        what = f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"
        raise DataError(visible(str(path)), what, "rows are read from regular files only", reason="not a file")


def records(shard: Shard, also: Sequence[str] = ()) -> Iterator[StoredRow]:
    """Every row of a file, without its clips.

    Args:
        also: columns of parquet to read besides those of LIGHT.

    Raises:
        DataError: the file cannot be read.
    """
    yield from _parquet_records(shard, also) if shard.is_parquet else _jsonl_records(shard)


def read_records(shard: Shard, address: int, positions: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """(position, columns or a DataError) of rows of one row group (parquet), or of the row at one byte offset (jsonl).

    Args:
        columns: to read from parquet.
    """
    yield from _parquet_rows(shard, address, positions, columns) if shard.is_parquet else _jsonl_rows(shard, address, positions)


def _open_parquet(shard: Shard) -> pq.ParquetFile:
    check_is_file(Path(shard.path))
    try:
        file = pq.ParquetFile(shard.path)
    except _UNREADABLE as cause:
        way_out = "compare its size with that at its source: a download that was cut off ends like this"
        raise DataError(shard.name, f"is not a parquet file: {_first_line(cause)}", way_out, reason="corrupt file") from None
    missing = [column for column in _REQUIRED if column not in file.schema_arrow.names]
    if missing:
        way_out = "the released columns are listed in hba_ray/data/rows.py"
        raise DataError(shard.name, f"lacks the columns {', '.join(missing)}", way_out, reason="missing column")
    return file


def _parquet_records(shard: Shard, also: Sequence[str]) -> Iterator[StoredRow]:
    with _open_parquet(shard) as file:
        columns = [column for column in (*LIGHT, *also) if column in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=columns, use_threads=False)
                found = _as_records(table, shard, group, 0)
                present = _present(file, group, found)
            except _UNREADABLE as cause:
                raise _damaged(shard, group, cause) from None
            for position, (record, clips) in enumerate(zip(found, present, strict=True)):
                yield StoredRow(group, position, record, clips)


def _as_records(table: pa.Table | pa.RecordBatch, shard: Shard, group: int, start: int) -> list[dict[str, Any] | DataError]:
    """The rows of a table; one with a text that is not UTF-8, or a date that Python does not have, is a DataError."""
    try:
        return table.to_pylist()
    except (ValueError, OverflowError) as cause:
        if table.num_rows == 1:
            where = f"{shard.name} row {start} of group {group}"
            return [DataError(where, f"holds a value that cannot be read: {_first_line(cause)}", reason="not Unicode")]
        return [_as_records(table.slice(place, 1), shard, group, start + place)[0] for place in range(table.num_rows)]


def _present(file: pq.ParquetFile, group: int, found: Sequence[dict[str, Any] | DataError]) -> list[frozenset[str]]:
    """The modalities of each row's clips.

    The clips themselves are read only where what rows say of them (their signature, else the marks in their prompt) does not
    agree with the number of rows with clips, which the file's statistics tell.
    """
    by_modality: dict[str, Sequence[bool]] = {}
    for modality, column in MEDIA_COLUMNS.items():
        if column not in file.schema_arrow.names:
            continue
        rows, said = _rows_with_clips(file, group, column), [_says(record, modality) for record in found]
        if rows in (0, len(found)):
            by_modality[modality] = [bool(rows)] * len(found)
        elif rows is not None and None not in said and sum(map(bool, said)) == rows:
            by_modality[modality] = [bool(one) for one in said]
        else:
            batches = file.iter_batches(batch_size=_READ_ROWS, row_groups=[group], columns=[column], use_threads=False)
            by_modality[modality] = [has for batch in batches for has in _has_clips(batch.column(0))]
    return [frozenset(name for name, has in by_modality.items() if has[place]) for place in range(len(found))]


def _says(record: dict[str, Any] | DataError, modality: str) -> bool | None:
    """Whether a row says that it has clips of a modality; None where its signature and its prompt disagree."""
    if isinstance(record, DataError):
        return None
    problem, stated = record.get("problem"), stated_modalities(record.get("modality_signature"))
    marked = isinstance(problem, str) and f"<{modality}>" in problem
    if stated is None:
        return marked
    return None if marked and modality not in stated else modality in stated


def _rows_with_clips(file: pq.ParquetFile, group: int, column: str) -> int | None:
    """How many rows of a row group have a clip in a column; None where the file does not say it.

    An empty or absent list counts as one null value in Parquet's statistics.
    """
    metadata = file.metadata.row_group(group)
    leaves = [metadata.column(place) for place in range(metadata.num_columns)]
    its = [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] == column]
    if len(its) != 1 or its[0].statistics is None or not its[0].statistics.has_null_count:
        return None
    return metadata.num_rows - its[0].statistics.null_count


def _has_clips(values: pa.Array) -> list[bool]:
    """Whether each value of a column is a list with something in it; anything else that is there counts, and is refused later."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return [bool(length) for length in values.value_lengths().to_pylist()]
    return values.is_valid().to_pylist()


def _parquet_rows(shard: Shard, group: int, positions: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    wanted = set(positions)
    with _open_parquet(shard) as file:
        there = [column for column in columns if column in file.schema_arrow.names]
        start = 0
        try:
            for batch in file.iter_batches(batch_size=_READ_ROWS, row_groups=[group], columns=there, use_threads=False):
                for offset in range(batch.num_rows):
                    if start + offset in wanted:
                        yield start + offset, _as_records(batch.slice(offset, 1), shard, group, start + offset)[0]
                start += batch.num_rows
                if start > max(wanted):
                    break
        except _UNREADABLE as cause:
            raise _damaged(shard, group, cause) from None


def _damaged(shard: Shard, group: int, cause: Exception) -> DataError:
    way_out = "fetch the file again, if its source has another SHA-256"
    return DataError(f"{shard.name} group {group}", f"is damaged: {_first_line(cause)}", way_out, reason="corrupt file")


def _first_line(cause: Exception) -> str:
    return next(iter(str(cause).splitlines()), type(cause).__name__)


def _jsonl_records(shard: Shard) -> Iterator[StoredRow]:
    check_is_file(Path(shard.path))
    offset = number = 0
    with open(shard.path, "rb") as file:
        _check_encoding(shard, file.read(_LOOKED_AT))
        file.seek(0)
        while line := file.readline(LONGEST_LINE):
            if line.strip() or _is_too_long(line):
                yield StoredRow(offset, number, _json_record(line, shard, number), None)
            offset += len(line)
            while _is_too_long(line):  # its rest is passed over
                line = file.readline(LONGEST_LINE)
                offset += len(line)
            number += 1


def _is_too_long(line: bytes) -> bool:
    """Whether a line goes on behind what was read of it."""
    return len(line) == LONGEST_LINE and line[-1:] != b"\n"


def _jsonl_rows(shard: Shard, offset: int, positions: Sequence[int]) -> Iterator[tuple[int, Any]]:
    check_is_file(Path(shard.path))
    with open(shard.path, "rb") as file:
        file.seek(offset)
        yield positions[0], _json_record(file.readline(LONGEST_LINE), shard, positions[0])


def _check_encoding(shard: Shard, head: bytes) -> None:
    """Refuses a file whose lines are no JSON objects in UTF-8, with what it is and how it becomes jsonl.

    Args:
        head: the first bytes of the file.
    """
    what, command = "", ""
    marks = {codecs.BOM_UTF32_LE: 32, codecs.BOM_UTF32_BE: 32, codecs.BOM_UTF16_LE: 16, codecs.BOM_UTF16_BE: 16}
    bits = next((bits for mark, bits in marks.items() if head.startswith(mark)), None)
    packed = next((program for mark, program in _PACKED.items() if head.startswith(mark)), None)
    if packed is not None:
        raise DataError(shard.path, "is packed", f"unpack it with {packed}, and give the file its name", reason="not JSON")
    if bits or b"\0" in head[:4]:
        name = f"UTF-{bits}" if bits else "UTF-16BE" if head.startswith(b"\0") else "UTF-16LE"
        what, command = f"is written in {name}, not in UTF-8", f"iconv -f {name} -t UTF-8 {shard.name} > rows"
    elif head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        what, command = "is one JSON array; a file of rows has one object a line", f"jq -c '.[]' {shard.name} > rows"
    elif b"\n" not in head and re.search(rb"\}[ \t]*\r\s*\{", head):
        what, command = "ends its lines with CR alone, as old Macs did", f"tr '\\r' '\\n' < {shard.name} > rows"
    if what:
        raise DataError(shard.path, what, f"{command} && mv rows {shard.name}", reason="not JSON")


def _json_record(line: bytes, shard: Shard, number: int) -> dict[str, Any] | DataError:
    if _is_too_long(line):
        what = f"is longer than {LONGEST_LINE >> 20} MiB"
        return DataError(f"{shard.name} row {number}", what, "clips lie beside the jsonl", reason="line too long")
    try:
        record = parse_json(line)
    except UnicodeDecodeError as cause:
        what = f"is not UTF-8: {cause.reason} at byte {cause.start}"
        return DataError(f"{shard.name} row {number}", what, "write the file in UTF-8", reason="not UTF-8")
    except (ValueError, RecursionError) as cause:
        whole = line.endswith(b"\n")
        way_out = (
            "a line holds one JSON object" if whole else "the file ends in this line: it was cut off, or a line holds more than one object"
        )
        return DataError(f"{shard.name} row {number}", f"is not JSON: {_first_line(cause)}", way_out, reason="not JSON")
    if not isinstance(record, dict):
        return DataError(f"{shard.name} row {number}", "is not a JSON object", reason="not JSON")
    return record

"""An atlas on disk: `build_index` finds its files and checks its rows without opening a clip, `read_rows` reads rows on demand.

There are two layouts and one index for both: the released parquet (`train-00000-of-00600.parquet`, clips
inside) and the released jsonl (`final_v8_train_cleaned_2.jsonl`, clips beside it). The index holds where
each row is and what it is about; `read_rows` reads the row itself, clips included.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hba_ray.data.prompts import with_transcript
from hba_ray.data.rows import FEATURE_COLUMNS, MEDIA_COLUMNS, Row, parse_row
from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from hba_ray.store.files import DO_AGAIN, read_parquet

_LIGHT = ("problem", "answer", "dataset", "class_label", "modality_signature", "sample_id", "clip_id")
_HEAVY = (*MEDIA_COLUMNS.values(), *FEATURE_COLUMNS)
_REQUIRED = ("problem", "answer", "dataset")
_SPLIT_WORDS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
                "dev": "validation", "test": "test"}  # fmt: skip
_READ_ROWS = 16
"""Parquet rows decoded at a time; it bounds the memory of reading a large row group."""


@dataclass(frozen=True)
class Shard:
    """One file of an atlas."""

    path: str
    split: str

    @property
    def is_parquet(self) -> bool:
        return self.path.endswith(".parquet")


@dataclass(frozen=True)
class Drop:
    """A row that was left out, and why."""

    split: str
    dataset: str
    row: str
    reason: str


INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("group", pa.int64()),
        ("position", pa.int32()),
        ("split", pa.string()),
        ("dataset", pa.string()),
        ("label", pa.string()),
        ("modality_signature", pa.string()),
        ("characters", pa.int32()),
    ]
)
"""One line for each row: its shard; its row group (parquet) or byte offset (jsonl); its position in the
row group; what it is about. `label` is null for open answers."""


@dataclass(frozen=True)
class AtlasIndex:
    """Where the rows of an atlas are.

    Attributes:
        root: folder of the shards; the paths of clips in jsonl start there.
        table: INDEX_SCHEMA, in file order.
        drops: rows left out when the index was made.
        transcripts: line of the table -> what is said in the row's clip, which `read_rows` puts into its prompt.
    """

    root: str
    shards: tuple[Shard, ...]
    table: pa.Table
    drops: tuple[Drop, ...] = ()
    split_surprise: bool = False
    transcripts: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def _split_rows(self) -> dict[str, np.ndarray]:
        splits = self.table.column("split").to_numpy(zero_copy_only=False)
        return {split: np.flatnonzero(splits == split) for split in ("train", "validation", "test")}

    def rows_of(self, split: str) -> np.ndarray:
        """Line numbers of the table that belong to a split, in file order."""
        return self._split_rows[split]

    def without(self, datasets: Sequence[str], splits: Sequence[str]) -> AtlasIndex:
        """The index without the rows of these datasets in these splits."""
        return self.take(self.lines_without(datasets, splits)) if datasets else self

    def lines_without(self, datasets: Sequence[str], splits: Sequence[str]) -> np.ndarray:
        """Numbers of the lines that `without` keeps, in order."""
        held, split = (self.table[column].to_numpy(zero_copy_only=False) for column in ("dataset", "split"))
        return np.flatnonzero(~(np.isin(held, list(datasets)) & np.isin(split, list(splits))))

    def only(self, dataset: str) -> AtlasIndex:
        """The rows of one dataset."""
        return self.take(np.flatnonzero(self.table["dataset"].to_numpy(zero_copy_only=False) == dataset))

    def of_kind(self, *, open_answers: bool) -> AtlasIndex:
        """The rows with open answers, or those with classes."""
        return self.take(np.flatnonzero(self.table["label"].is_null().to_numpy() == open_answers))

    def take(self, lines: np.ndarray) -> AtlasIndex:
        """These lines alone, in the order given, with their transcripts."""
        said = {place: self.transcripts[line] for place, line in enumerate(lines.tolist()) if line in self.transcripts}
        return replace(self, table=self.table.take(pa.array(lines, pa.int64())), transcripts=said)

    def dataset_of(self, line: int) -> str:
        return str(self.table.column("dataset")[line].as_py())

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of rows: dataset -> split -> rows."""
        return _count(self.table, "split")

    def label_counts(self, split: str) -> dict[str, dict[str, int]]:
        """Number of rows of a split: dataset -> label -> rows. Datasets with open answers are left out."""
        rows = self.table.take(self.rows_of(split))
        return _count(rows.filter(rows.column("label").is_valid()), "label")

    def texts(self, split: str) -> Iterator[str]:
        """Prompts, transcripts and answers of a split; no clip is read."""
        yield from (self.transcripts[line] for line in self.rows_of(split).tolist() if line in self.transcripts)
        for shard in self.shards:
            if shard.split == split:
                for _, _, record in _records(shard):
                    if isinstance(record, dict):
                        yield from (str(record.get(column) or "") for column in ("problem", "answer"))

    def save(self, folder: Path) -> None:
        pq.write_table(self.table, folder / "index.parquet")
        rest = {
            "root": self.root,
            "shards": [[shard.path, shard.split] for shard in self.shards],
            "drops": [[drop.split, drop.dataset, drop.row, drop.reason] for drop in self.drops],
            "split_surprise": self.split_surprise,
            "transcripts": list(self.transcripts.items()),
        }
        (folder / "index.json").write_text(json.dumps(rest, indent=1))

    @classmethod
    def load(cls, folder: Path) -> AtlasIndex:
        """The index that `save` wrote.

        Raises:
            DataError: it is damaged, or gone.
        """
        file = folder / "index.json"
        try:
            rest = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                root=rest["root"],
                shards=tuple(Shard(*shard) for shard in rest["shards"]),
                table=read_parquet(folder / "index.parquet"),
                drops=tuple(Drop(*drop) for drop in rest["drops"]),
                split_surprise=rest["split_surprise"],
                transcripts={int(line): str(text) for line, text in rest["transcripts"]},
            )
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise DataError(str(file), f"cannot be read: {cause}", DO_AGAIN, reason="corrupt file") from cause


def _count(table: pa.Table, column: str) -> dict[str, dict[str, int]]:
    pairs = Counter(zip(table.column("dataset").to_pylist(), table.column(column).to_pylist(), strict=True))
    counts: dict[str, dict[str, int]] = {}
    for (dataset, value), rows in sorted(pairs.items()):
        counts.setdefault(dataset, {})[value] = rows
    return counts


def find_shards(root: Path, layout: str = "auto") -> tuple[Shard, ...]:
    """The files of an atlas, by name: `<anything with train|val|validation|dev|test>.parquet` or `.jsonl`.

    Raises:
        DataError: no folder, no files, or two jsonl files for one split.
    """
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "give the folder of the parquet or jsonl files as atlas.root", reason="missing file")
    found: dict[str, list[Shard]] = {"parquet": [], "jsonl": []}
    for kind, shards in found.items():
        for path in sorted({*root.glob(f"*.{kind}"), *root.glob(f"data/*.{kind}")}):
            split = _split_of(path.name)
            if split:
                shards.append(Shard(str(path), split))
    kinds = [kind for kind, shards in found.items() if shards] if layout == "auto" else [layout]
    if not kinds or not found[kinds[0]]:
        wanted = "*.parquet or *.jsonl" if layout == "auto" else f"*.{layout}"
        raise DataError(
            str(root), f"holds no {wanted} named after a split", "expected names such as train-00000-of-00001.parquet or train.jsonl"
        )
    shards = found[kinds[0]]
    if kinds[0] == "jsonl" and len({shard.split for shard in shards}) < len(shards):
        names = ", ".join(Path(shard.path).name for shard in shards)
        raise DataError(str(root), f"has several jsonl files for one split: {names}", "keep one version of each split in the folder")
    return tuple(shards)


def _split_of(name: str) -> str | None:
    words = [_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_WORDS]
    return words[0] if words else None


def build_index(spec: AtlasSpec, root: Path, layout: str | None = None) -> AtlasIndex:
    """Checks every row of an atlas, clips aside, and notes where it is.

    Only rows of the spec's datasets enter the index, up to its limit. A bad row raises DataError, or is
    left out and noted in `drops`, as `spec.on_bad_row` says.
    """
    wanted = None if spec.datasets is None else {find_dataset(name).id for name in spec.datasets}
    shards = find_shards(root, layout or spec.format)
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    drops: list[Drop] = []
    kept: Counter[tuple[str, str]] = Counter()
    seen: dict[tuple[str, str, str], str] = {}
    for number, shard in enumerate(shards):
        for address, position, record in _records(shard):
            where = f"{Path(shard.path).name} row {position if not shard.is_parquet else f'{position} of group {address}'}"
            try:
                row = _check(record, shard, where, root, spec.split_surprise)
                _check_id(row, record, shard, where, seen)
            except DataError as bad:
                dataset = str(record.get("dataset") or "unknown") if isinstance(record, dict) else "unknown"
                if _unwanted(dataset, wanted):
                    continue
                if spec.on_bad_row == "fail":
                    raise bad.of_a_row() from None
                drops.append(Drop(shard.split, dataset, bad.where, bad.reason))
                continue
            key = (row.dataset.id, shard.split)
            if (wanted is not None and row.dataset.id not in wanted) or (spec.limit is not None and kept[key] >= spec.limit):
                continue
            kept[key] += 1
            signature = record.get("modality_signature") if shard.is_parquet else None
            line = (number, address, position, shard.split, row.dataset.id, row.label, signature or row.signature, len(row.problem))
            for name, value in zip(INDEX_SCHEMA.names, line, strict=True):
                columns[name].append(value)
    if not columns["shard"]:
        held = f"datasets {sorted(wanted)}" if wanted else "rows"
        raise DataError(
            str(root), f"holds none of the {held} asked for" + (f"; {len(drops)} rows were dropped" if drops else ""), _first_reasons(drops)
        )
    return AtlasIndex(str(root), shards, pa.table(columns, schema=INDEX_SCHEMA), tuple(drops), spec.split_surprise)


def _unwanted(dataset: str, wanted: set[str] | None) -> bool:
    return wanted is not None and dataset in DATASETS and dataset not in wanted


def _first_reasons(drops: Sequence[Drop]) -> str:
    reasons = Counter(drop.reason for drop in drops)
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(5))


def _check(record: Any, shard: Shard, where: str, root: Path, split_surprise: bool) -> Row:
    if isinstance(record, DataError):
        raise record
    return parse_row(record, where=where, root=None if shard.is_parquet else root, split_surprise=split_surprise, light=shard.is_parquet)


def _check_id(row: Row, record: Mapping[str, Any], shard: Shard, where: str, seen: dict[tuple[str, str, str], str]) -> None:
    """Refuses a second row with an id, since a prediction is known by the id of its row.

    Training may see a row twice. An id that parquet does not state is made from the clip, which is not read yet.
    """
    if shard.split == "train" or (shard.is_parquet and not record.get("sample_id")):
        return
    before = seen.setdefault((shard.split, row.dataset.id, row.sample_id), where)
    if before != where:
        what, way_out = f"has the id of {before}: '{row.sample_id}'", "give each row a sample_id of its own"
        raise DataError(f"{where} ({row.dataset.id})", what, way_out, reason="duplicate sample")


def _records(shard: Shard) -> Iterator[tuple[int, int, Any]]:
    """(row group or byte offset, position, record without clips) of every row; a damaged line has a DataError as its record."""
    yield from _parquet_records(shard) if shard.is_parquet else _jsonl_records(shard)


def _open_parquet(shard: Shard) -> pq.ParquetFile:
    name = Path(shard.path).name
    try:
        file = pq.ParquetFile(shard.path)
    except (pa.ArrowException, OSError) as cause:
        raise DataError(name, f"is not a parquet file: {str(cause).splitlines()[0]}", "copy it again", reason="corrupt file") from None
    missing = [column for column in _REQUIRED if column not in file.schema_arrow.names]
    if missing:
        way_out = "the released columns are listed in hba_ray/data/rows.py"
        raise DataError(name, f"lacks the columns {', '.join(missing)}", way_out, reason="missing column")
    return file


def _parquet_records(shard: Shard) -> Iterator[tuple[int, int, Any]]:
    with _open_parquet(shard) as file:
        columns = [column for column in _LIGHT if column in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            try:
                records = file.read_row_group(group, columns=columns, use_threads=False).to_pylist()
            except (pa.ArrowException, OSError) as cause:
                raise _damaged(shard, group, cause) from None
            for position, record in enumerate(records):
                yield group, position, record


def _damaged(shard: Shard, group: int, cause: Exception) -> DataError:
    where = f"{Path(shard.path).name} group {group}"
    return DataError(where, f"is damaged: {str(cause).splitlines()[0]}", "copy the file again", reason="corrupt file")


def _jsonl_records(shard: Shard) -> Iterator[tuple[int, int, Any]]:
    offset = 0
    with open(shard.path, "rb") as file:
        for number, line in enumerate(file):
            if line.strip():
                yield offset, number, _json_record(line, shard, number)
            offset += len(line)


def _json_record(line: bytes, shard: Shard, number: int) -> dict[str, Any] | DataError:
    where = f"{Path(shard.path).name} row {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as cause:  # ValueError: not JSON, or not UTF-8
        return DataError(where, f"is not JSON: {cause}", "a truncated file ends like this", reason="not JSON")
    return record if isinstance(record, dict) else DataError(where, "is not a JSON object", reason="not JSON")


def read_rows(index: AtlasIndex, lines: Sequence[int], *, light: bool = False) -> Iterator[Row | DataError]:
    """The rows at these lines of the index, one for each line, in ascending order of the lines.

    The columns of clips are read only here; a row that turns out bad is replaced by its DataError.

    Args:
        light: leave clips and descriptors out: they are not read, and nobody looks whether their files are there.
    """
    ordered = sorted(int(line) for line in lines)
    table = index.table.take(pa.array(ordered)).to_pydict()
    by_group: dict[tuple[int, int], list[int]] = {}
    said: dict[tuple[int, int, int], str] = {}
    for line, *place in zip(ordered, table["shard"], table["group"], table["position"], strict=True):
        shard, group, position = place
        by_group.setdefault((shard, group), []).append(position)
        if line in index.transcripts:
            said[shard, group, position] = index.transcripts[line]
    for (number, group), positions in by_group.items():
        shard = index.shards[number]
        columns = _LIGHT if light else (*_LIGHT, *_HEAVY)
        records = _parquet_rows(shard, group, positions, columns) if shard.is_parquet else _jsonl_rows(shard, group, positions)
        for position, record in records:
            name = Path(shard.path).name
            where = f"{name} row {position} of group {group}" if shard.is_parquet else f"{name} row {position}"
            root = None if shard.is_parquet else Path(index.root)
            try:
                if isinstance(record, DataError):
                    raise record
                if light:
                    record = {name: value for name, value in record.items() if name in _LIGHT}
                row = parse_row(record, where=where, root=root, split_surprise=index.split_surprise, light=light)
                yield with_transcript(row, said.get((number, group, position), ""))
            except DataError as bad:
                yield bad


def _parquet_rows(shard: Shard, group: int, positions: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    wanted = set(positions)
    with _open_parquet(shard) as file:
        there = [column for column in columns if column in file.schema_arrow.names]
        start = 0
        try:
            for batch in file.iter_batches(batch_size=_READ_ROWS, row_groups=[group], columns=there, use_threads=False):
                for offset in range(batch.num_rows):
                    if start + offset in wanted:
                        yield start + offset, batch.slice(offset, 1).to_pylist()[0]
                start += batch.num_rows
                if start > max(wanted):
                    break
        except (pa.ArrowException, OSError) as cause:
            raise _damaged(shard, group, cause) from None


def _jsonl_rows(shard: Shard, offset: int, positions: Sequence[int]) -> Iterator[tuple[int, Any]]:
    with open(shard.path, "rb") as file:
        file.seek(offset)
        yield positions[0], _json_record(file.readline(), shard, positions[0])

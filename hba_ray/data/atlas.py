"""An atlas on disk: `build_index` finds its files and checks its rows without opening a clip, `read_rows` reads rows on demand.

There are two layouts and one index for both: the released parquet (`train-00000-of-00600.parquet`, clips
inside) and the released jsonl (`final_v8_train_cleaned_2.jsonl`, clips beside it). The index holds where
each row is and what it is about; `read_rows` reads the row itself, clips included. The files are read by `data.shards`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hba_ray.data.packed import Pack
from hba_ray.data.prompts import with_transcript
from hba_ray.data.repeats import Kept, Leak, find_repeats, text_digest
from hba_ray.data.rows import Row, contradicts, parse_row, signature_of
from hba_ray.data.sampling import sampled_lines
from hba_ray.data.shards import HEAVY, LIGHT, Shard, StoredRow, find_shards, read_records, records
from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.data.text import clean, visible
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.atlas import SourceSpec
from hba_ray.specs.sections.own import OwnDataset, declared
from hba_ray.store.files import DO_AGAIN, read_parquet

CONTRADICTED = "modality_signature that contradicts the clips"
"""What is counted of a row whose signature names other clips than it has; the clips decide."""


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
"""For each row its shard, its row group (parquet) or byte offset (jsonl), its place there, what it is about; open answers have no label."""


@dataclass(frozen=True)
class AtlasIndex:
    """Where the rows of an atlas are.

    Attributes:
        root: folder of the shards, or several of corpora that are joined, for errors.
        table: INDEX_SCHEMA, in file order.
        drops: rows left out when the index was made.
        transcripts: line of the table -> what is said in the row's clip, which `read_rows` puts into its prompt.
        changes: dataset -> what was changed in a row, or stated wrongly in it -> rows; kept in the result of the atlas step.
        leaks: rows that are in two splits, or twice in one; known and kept likewise.
        pack: where the clips of its rows are decoded already; `read_rows` reads them there, if it is given.
        own: declarations of users' datasets: a process that an index is sent to knows them, too.
    """

    root: str
    shards: tuple[Shard, ...]
    table: pa.Table
    drops: tuple[Drop, ...] = ()
    split_surprise: bool = False
    transcripts: Mapping[int, str] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    leaks: tuple[Leak, ...] = ()
    pack: Pack | None = None
    own: tuple[OwnDataset, ...] = field(default_factory=declared, repr=False)

    @cached_property
    def _split_rows(self) -> dict[str, np.ndarray]:
        splits = self.table.column("split").to_numpy(zero_copy_only=False)
        return {split: np.flatnonzero(splits == split) for split in ("train", "validation", "test")}

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders from which the paths of clips start."""
        return tuple(Path(root) for root in dict.fromkeys(shard.root for shard in self.shards))

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
        """Prompts, transcripts and answers of a split, as rows have them; no clip is read."""
        yield from (clean(self.transcripts[line])[0] for line in self.rows_of(split).tolist() if line in self.transcripts)
        found = (record.columns for shard in self.shards if shard.split == split for record in records(shard))
        for columns in (columns for columns in found if isinstance(columns, dict)):
            texts = (str(columns.get(column) or "") for column in ("problem", "answer"))
            yield from (clean(text.encode(errors="ignore").decode())[0] for text in texts)

    def save(self, folder: Path, *, stated: Sequence[Path | None] = ()) -> None:
        """Writes the index. Rows within the folder are named as seen from it, so that both can be moved together.

        Args:
            stated: of each corpus, the root that is stated elsewhere and given to `load` again; the index does not hold it then.
        """
        pq.write_table(self.table, folder / "index.parquet")
        roots = {shard.part: Path(shard.root) for shard in self.shards}
        shown = {part: root.relative_to(folder) if root.is_relative_to(folder) else root for part, root in roots.items()}
        shown |= {part: None for part, root in enumerate(stated) if root is not None}
        rest = {
            "roots": [None if shown[part] is None else str(shown[part]) for part in sorted(shown)],
            "shards": [[os.path.relpath(shard.path, shard.root), shard.split, shard.part] for shard in self.shards],
            "drops": [[drop.split, drop.dataset, drop.row, drop.reason] for drop in self.drops],
            "split_surprise": self.split_surprise,
            "transcripts": list(self.transcripts.items()),
            **({} if self.pack is None else {"pack": self.pack.folder}),
        }
        (folder / "index.json").write_text(json.dumps(rest, indent=1))

    @classmethod
    def load(cls, folder: Path, *, stated: Sequence[Path | None] = ()) -> AtlasIndex:
        """The index that `save` wrote.

        Args:
            stated: of each corpus, the root of its rows where it is stated elsewhere; see `store.roots.stated_roots`.

        Raises:
            DataError: it is damaged, or gone.
        """
        file = folder / "index.json"
        try:
            rest = json.loads(file.read_bytes())
            former = [Path(noted or "") for noted in (rest["roots"] if "roots" in rest else [rest["root"]])]
            elsewhere = [*stated, *[None] * len(former)]
            roots = [elsewhere[part] or folder / _within(root, folder) for part, root in enumerate(former)]
            return cls(
                root=", ".join(map(str, roots)),
                shards=tuple(_noted_shard(former, roots, *noted) for noted in rest["shards"]),
                table=read_parquet(folder / "index.parquet", schema=INDEX_SCHEMA),
                drops=tuple(Drop(*drop) for drop in rest["drops"]),
                split_surprise=rest["split_surprise"],
                transcripts={int(line): str(text) for line, text in rest["transcripts"]},
                pack=Pack(rest["pack"]) if rest.get("pack") else None,
            )
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as cause:
            raise DataError(str(file), f"cannot be read: {cause}", DO_AGAIN, reason="corrupt file") from cause


def _noted_shard(former: Sequence[Path], roots: Sequence[Path], path: str, split: str, part: int = 0) -> Shard:
    """A shard as an index notes it, whose corpus was at one root and is at another one."""
    return Shard(str(roots[part] / os.path.relpath(former[part] / path, former[part])), split, str(roots[part]), part)


def _within(root: Path, folder: Path) -> Path:
    """A root as it is seen from the folder of its index, also where a former version of hba_ray noted where the folder once was."""
    return Path(root.name) if root.parent.name == folder.name and (folder / root.name).is_dir() else root


def _count(table: pa.Table, column: str) -> dict[str, dict[str, int]]:
    pairs = Counter(zip(table.column("dataset").to_pylist(), table.column(column).to_pylist(), strict=True))
    counts: dict[str, dict[str, int]] = {}
    for (dataset, value), rows in sorted(pairs.items()):
        counts.setdefault(dataset, {})[value] = rows
    return counts


def datasets_of(spec: AtlasSpec, part: SourceSpec) -> frozenset[str] | None:
    """The ids of the datasets that are wanted of one corpus; None is all that it holds.

    Raises:
        DataError: a name is none of a dataset.
    """
    lists = [names for names in (spec.datasets, part.datasets) if names is not None]
    return frozenset.intersection(*(frozenset(find_dataset(name).id for name in names) for names in lists)) if lists else None


def build_index(spec: AtlasSpec, roots: Path | Sequence[Path], layout: str | None = None) -> AtlasIndex:
    """Checks every row of an atlas, clips aside, and notes where it is.

    Args:
        roots: the folder of the rows of each corpus.
        layout: to read; by default that which the spec states of a released atlas, and whatever is there of others.

    Only rows of the spec's datasets enter the index, up to its limit. A bad row raises DataError, or is
    left out and noted in `drops`, as `spec.on_bad_row` says.

    Raises:
        DataError: a file or a row is bad, or no row is left; rows are in two splits, and `spec.leaks` says to refuse that.
    """
    each = [roots] if isinstance(roots, Path) else list(roots)
    found: list[Shard] = []
    for number, (part, root) in enumerate(zip(spec.parts, each, strict=True)):
        found += find_shards(root, layout or (part.format if part.source == "released" else "auto"), part=number)
    made = _Making(spec, ", ".join(map(str, each)), tuple(found))
    for number, shard in enumerate(made.shards):
        for record in records(shard):
            made.take(number, record)
    return made.finish()


class _Making:
    """An index while it is made."""

    def __init__(self, spec: AtlasSpec, root: str, shards: tuple[Shard, ...]):
        self.spec, self.root, self.shards = spec, root, shards
        self.wanted = [datasets_of(spec, part) for part in spec.parts]
        self.columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
        self.kept: list[Kept] = []
        self.places: list[str] = []
        self.drops: list[Drop] = []
        self.changes: dict[str, Counter[str]] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.seen: dict[tuple[str, str, str], str] = {}

    def take(self, number: int, record: StoredRow) -> None:
        """Enters one row, or drops it."""
        shard, where = self.shards[number], _place(self.shards[number], record.address, record.position)
        try:
            row, sample_id = self._check(record, shard, where)
        except DataError as bad:
            dataset = _named(record.columns)
            if dataset not in DATASETS or self._is_wanted(dataset, shard):
                self._drop(bad, shard.split, dataset)
            return
        key = (row.dataset.id, shard.split)
        if not self._is_wanted(row.dataset.id, shard):
            return
        if self.spec.limit is not None and self.counts[key] >= self.spec.limit:
            return
        self.counts[key] += 1
        assert isinstance(record.columns, dict)
        stated, present = record.columns.get("modality_signature"), _present(record, row)
        told = (*row.changes, *((CONTRADICTED,) if contradicts(stated, present) else ()))
        self.changes.setdefault(row.dataset.id, Counter()).update(told)
        signature = signature_of(stated, present)
        line = (number, record.address, record.position, shard.split, row.dataset.id, row.label, signature, len(row.problem))
        for name, value in zip(INDEX_SCHEMA.names, line, strict=True):
            self.columns[name].append(value)
        self.kept.append(Kept(shard.split, row.dataset.id, text_digest(row), sample_id, bool(present)))
        self.places.append(f"{where} ({row.dataset.id})")

    def _is_wanted(self, dataset: str, shard: Shard) -> bool:
        wanted = self.wanted[shard.part]
        return wanted is None or dataset in wanted

    def finish(self) -> AtlasIndex:
        """The index, without the rows that turn out to be there twice."""
        if not self.kept:
            wanted = sorted(set().union(*(one or () for one in self.wanted)))
            held = f"datasets {wanted}" if wanted else "rows"
            dropped = f"; {len(self.drops)} rows were dropped" if self.drops else ""
            raise DataError(self.root, f"holds none of the {held} asked for{dropped}", _first_reasons(self.drops))
        table = pa.table(self.columns, schema=INDEX_SCHEMA)
        index = AtlasIndex(self.root, self.shards, table, split_surprise=self.spec.split_surprise)
        repeats = find_repeats(self.kept, lambda lines: read_rows(index, lines))
        for line, before in repeats.duplicates.items():
            self._drop(_is_there_twice(self.places[line], self.places[before]), self.kept[line].split, self.kept[line].dataset)
        across = [leak for leak in repeats.leaks if leak.is_across]
        if across and self.spec.leaks == "refuse":
            what = f"rows are in two splits: {across[0]}"
            raise DataError(self.root, what, "take them out of one, or set atlas.leaks=tell", reason="leak between splits")
        left = np.setdiff1d(np.arange(len(self.kept)), list(repeats.duplicates))
        changes = {dataset: dict(counts) for dataset, counts in sorted(self.changes.items()) if counts}
        table = table.take(pa.array(left, pa.int64()))
        if self.spec.sample is not None:
            table = table.take(sampled_lines(table, self.spec.sample))
        return replace(index, table=table, drops=tuple(self.drops), changes=changes, leaks=repeats.leaks)

    def _drop(self, bad: DataError, split: str, dataset: str) -> None:
        if self.spec.on_bad_row == "fail":
            raise bad.of_a_row() from None
        self.drops.append(Drop(split, dataset, bad.where, bad.reason))

    def _check(self, record: StoredRow, shard: Shard, where: str) -> tuple[Row, str | None]:
        """The row, without the clips of parquet, and its id; None where that follows from such clips.

        A second row of an id is refused, since a prediction is known by the id of its row. Training may see a row twice.
        """
        if isinstance(record.columns, DataError):
            raise record.columns
        root = None if shard.is_parquet else Path(shard.root)
        row = parse_row(record.columns, where=where, root=root, split_surprise=self.spec.split_surprise, light=shard.is_parquet)
        if record.present and not record.columns.get("sample_id"):
            return row, None
        if shard.split != "train":
            before = self.seen.setdefault((shard.split, row.dataset.id, row.sample_id), where)
            if before != where:
                raise _is_there_twice(f"{where} ({row.dataset.id})", before, f": '{visible(row.sample_id)}'")
        return row, row.sample_id


def _is_there_twice(where: str, before: str, which: str = "") -> DataError:
    what, way_out = f"has the id of {before}{which}", "give each row a sample_id of its own"
    if not which:
        what, way_out = f"is {before} once more: the same question, answer and clip", "take one out, or give each a sample_id of its own"
    return DataError(where, what, way_out, reason="duplicate sample")


def _place(shard: Shard, address: int, position: int) -> str:
    return f"{shard.name} row {position}" + (f" of group {address}" if shard.is_parquet else "")


def _named(columns: dict[str, Any] | DataError) -> str:
    """What a bad row calls its dataset."""
    name = columns.get("dataset") if isinstance(columns, dict) else None
    return visible(name) if isinstance(name, str) and name else "unknown"


def _present(record: StoredRow, row: Row) -> frozenset[str]:
    """The modalities of a row's clips."""
    return frozenset(row.media) if record.present is None else record.present


def _first_reasons(drops: Sequence[Drop]) -> str:
    reasons = Counter(drop.reason for drop in drops)
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(5))


def read_rows(index: AtlasIndex, lines: Sequence[int], *, light: bool = False) -> Iterator[Row | DataError]:
    """The rows at these lines of the index, one for each line, in ascending order of the lines.

    The columns of clips are read only here; a row that turns out bad is replaced by its DataError.

    Args:
        light: leave clips and descriptors out: they are not read, and nobody looks whether their files are there.
    """
    ordered = sorted(int(line) for line in lines)
    table = index.table.take(pa.array(ordered, pa.int64())).to_pydict()
    by_group: dict[tuple[int, int], list[int]] = {}
    said: dict[tuple[int, int, int], str] = {}
    for line, *place in zip(ordered, table["shard"], table["group"], table["position"], strict=True):
        shard, group, position = place
        by_group.setdefault((shard, group), []).append(position)
        if line in index.transcripts:
            said[shard, group, position] = index.transcripts[line]
    for (number, group), positions in by_group.items():
        shard = index.shards[number]
        root = None if shard.is_parquet else Path(shard.root)
        without_clips = light or index.pack is not None
        for position, record in read_records(shard, group, positions, LIGHT if without_clips else (*LIGHT, *HEAVY)):
            try:
                if isinstance(record, DataError):
                    raise record
                if without_clips:
                    record = {name: value for name, value in record.items() if name in LIGHT}
                where = _place(shard, group, position)
                row = parse_row(record, where=where, root=root, split_surprise=index.split_surprise, light=without_clips)
                if index.pack is not None and not light:
                    row = replace(row, **index.pack.row((number, group, position)))
                yield with_transcript(row, clean(said.get((number, group, position), ""))[0])
            except DataError as bad:
                yield bad

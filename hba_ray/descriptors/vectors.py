"""Reads descriptors of an atlas's rows from the tables: vectors and transcripts, for any lines of the index, a batch at a time.

Shapes: B rows, D values of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hba_ray.descriptors.keys import KeyStore, find_wanted
from hba_ray.descriptors.pooling import ZScoreStatistics
from hba_ray.descriptors.store import Table
from hba_ray.descriptors.tables import table_of
from hba_ray.errors import DataError
from hba_ray.specs.sections.descriptors import AcousticSpec, PoseSpec, Stream

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.specs.sections.descriptors import DescriptorsSpec


@dataclass(frozen=True)
class _Column:
    """Where the values of one stream are.

    Attributes:
        name: column of the table that holds the values.
        width: D; 0 for transcripts.
        clips: key of the clip of each line of the index, bytes [lines]; empty for a row without a clip.
    """

    table: Table
    name: str
    width: int
    clips: np.ndarray


@dataclass(frozen=True)
class Descriptors:
    """The descriptors of an atlas's rows. It holds keys and no vectors, so it is light to send to other processes.

    Attributes:
        columns: stream -> where its values are.
        lines: whether each line of the index belongs to a split that was opened, bool [lines].
        names: line of the index -> (sample id, clip id), of the rows that could be read.
        places: split -> sample id -> line of the index; None for an id that several rows of the split have.
    """

    columns: dict[str, _Column]
    lines: np.ndarray
    names: dict[int, tuple[str, str]]
    places: dict[str, dict[str, int | None]]

    @classmethod
    def open(cls, store: Path, spec: DescriptorsSpec, index: AtlasIndex, splits: Sequence[str]) -> Descriptors:
        """Opens the descriptors of these splits, also where atlas or store were moved since: clips are known by their bytes.

        Raises:
            DataError: a clip of a split was not extracted, or has changed since.
        """
        kept, tables = KeyStore.of(store, index), {stream: table_of(store, spec, stream) for stream in spec.streams}
        lines = np.zeros(len(index.table), bool)
        clips = {stream: np.zeros(len(index.table), "S64") for stream in spec.streams}
        names: dict[int, tuple[str, str]] = {}
        places: dict[str, dict[str, int | None]] = {split: {} for split in splits}
        for split, chunk in [(name, chunk) for name in splits for chunk in kept.chunks(index.rows_of(name))]:
            known = kept.load(chunk, bad_rows=True)
            keys = kept.make(index, chunk) if known is None else known
            lines[list(chunk)] = True
            for line, sample, clip in zip(*(keys.column(name).to_pylist() for name in ("line", "sample_id", "clip_id")), strict=True):
                if sample is not None:
                    names[line] = (sample, clip)
                    places[split][sample] = None if sample in places[split] else line
            for stream in spec.streams:
                for one in find_wanted(keys, spec, stream, index):
                    if known is None and not tables[stream].holds(one.clip):
                        raise _not_extracted(str(store), "clips have no descriptors, or have changed since they were extracted")
                    clips[stream][one.line] = one.clip
        return cls({stream: _column(tables[stream], spec, stream, clips[stream]) for stream in spec.streams}, lines, names, places)

    def lines_of(self, split: str, samples: Sequence[str]) -> list[int]:
        """The lines of the index that hold these samples of a split.

        Raises:
            DataError: the split has no row with this id, or several.
        """
        found = [self.places[split].get(sample, -1) for sample in samples]
        for sample, line in zip(samples, found, strict=True):
            if line is None:
                raise DataError(
                    f"sample {sample}", f"is the id of several rows of {split}", "give each row an id", reason="duplicate sample"
                )
            if line < 0:
                raise _not_extracted(f"sample {sample}", f"is no extracted row of {split}")
        return [line for line in found if line is not None]

    def width(self, stream: Stream) -> int:
        """D of a stream's vectors."""
        return self.columns[stream].width

    def vectors(self, stream: Stream, lines: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of rows, float32 [B, D], and whether each row has one, bool [B]; a missing vector is zero.

        Vectors are not normalised. Only the row groups that hold these rows are read.

        Raises:
            DataError: a row was not extracted.
        """
        column = self.columns[stream]
        values = self._read(stream, lines)
        matrix_BD = np.zeros((len(values), column.width), np.float32)
        present_B = np.array([value is not None for value in values], bool)
        for position, value in enumerate(values):
            if value is not None:
                matrix_BD[position] = value
        return matrix_BD, present_B

    def transcripts(self, lines: Sequence[int] | np.ndarray) -> list[str | None]:
        """The transcript of each row; None for a row without one."""
        return self._read("transcripts", lines)

    def z_score(self, stream: Stream, lines: Sequence[int] | np.ndarray, batch: int = 512) -> ZScoreStatistics:
        """Mean and deviation of a stream over these lines, which are usually the training split.

        Args:
            batch: rows that are held in memory at a time.

        Raises:
            DataError: no row has the stream.
        """

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            by_place = np.asarray(lines)[np.argsort(self.columns[stream].clips[np.asarray(lines)], kind="stable")]
            for start in range(0, len(by_place), batch):
                yield self.vectors(stream, by_place[start : start + batch])

        try:
            return ZScoreStatistics.fit(batches())
        except ValueError as cause:
            raise DataError(f"descriptors.{stream}", str(cause), reason="missing descriptors") from None

    def _read(self, stream: Stream, lines: Sequence[int] | np.ndarray) -> list[Any]:
        column, wanted = self.columns[stream], np.asarray(lines, np.int64)
        if not self.lines[wanted].all():
            raise _not_extracted(f"line {wanted[~self.lines[wanted]][0]} of the index", "belongs to a split that was not opened")
        clips = [clip.decode() or None for clip in column.clips[wanted]]
        unknown = next((clip for clip in clips if clip and not column.table.holds(clip)), None)
        if unknown:
            raise _not_extracted(str(column.table.folder), f"holds no row of clip {unknown[:12]}")
        return column.table.read(clips, column.name)


def _column(table: Table, spec: DescriptorsSpec, stream: Stream, clips: np.ndarray) -> _Column:
    settings = spec.of(stream)
    name, width = (settings.column, settings.width) if isinstance(settings, PoseSpec | AcousticSpec) else ("text", 0)
    return _Column(table, name, width, clips)


def _not_extracted(where: str, what: str) -> DataError:
    return DataError(where, what, "extract descriptors first: hba describe, or the step `describe` of a run", reason="missing descriptors")

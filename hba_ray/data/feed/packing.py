"""Writes a pack (`data.packed`): every clip of an atlas is decoded once, for all stages and trials that show it in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.clips import decode, length_of
from hba_ray.data.feed.spread import Spread
from hba_ray.data.packed import PLACES_SCHEMA, ROWS, clip_record, error_record, shard_file, write_shard
from hba_ray.data.rows import Clip, Row
from hba_ray.errors import BadMedia, DataError
from hba_ray.specs import MediaSpec
from hba_ray.store.files import write_parquet

SHARD_ROWS = 64
"""Rows of an Arrow file: what a task decodes, and what is decoded again after a break."""


@dataclass(frozen=True)
class Packing:
    """A pack that is to be written; picklable.

    Attributes:
        index: without a pack of its own.
        media: how much of a clip is shown.
    """

    index: AtlasIndex
    media: MediaSpec
    folder: Path

    def write(self, spread: Spread, on_rows: Callable[[int], None] = lambda rows: None) -> None:
        """Writes the files that are not there yet, then says where the rows are.

        Args:
            on_rows: called with the number of rows that were written since the last call.
        """
        index, count = replace(self.index, transcripts={}), len(self.index.table)
        numbers = range(-(-count // SHARD_ROWS))
        missing = [number for number in numbers if not shard_file(self.folder, number).exists()]
        on_rows(count - sum(len(self.lines(number)) for number in missing))
        for written in spread(partial(_write, replace(self, index=index)), missing):
            on_rows(written)
        lines = np.arange(count)
        places = index.table.select(["shard", "group", "position"])
        places = places.append_column("file", pa.array(lines // SHARD_ROWS, pa.int32()))
        places = places.append_column("row", pa.array(lines % SHARD_ROWS, pa.int32()))
        write_parquet(places.cast(PLACES_SCHEMA), self.folder / ROWS)

    def records(self, number: int) -> Iterator[dict[str, Any]]:
        """The records of one file; errors of rows and clips are records too, for stages to refuse or to drop."""
        for row in read_rows(self.index, self.lines(number)):
            if isinstance(row, DataError):
                yield {"where": row.where, **error_record(row)}
            else:
                clips = [self._clip(name, clip, row) for name, several in row.media.items() for clip in several]
                yield {"sample_id": row.sample_id, "clip_id": row.clip_id, "clips": clips}

    def _clip(self, modality: str, clip: Clip, row: Row) -> Mapping[str, Any]:
        length = None
        with suppress(BadMedia):  # most often decoding says what is wrong; some clips have all but a length
            length = length_of(modality, clip, where=row.sample_id)
        try:
            return clip_record(modality, decode(modality, clip, self.media, where=row.sample_id), length)
        except BadMedia as bad:
            return {"modality": modality, "length": length, **error_record(bad)}

    def lines(self, number: int) -> range:
        """Lines of the index whose rows a file holds."""
        return range(number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, len(self.index.table)))


def _write(packing: Packing, number: int) -> int:
    """Writes one file, and returns the number of its rows."""
    write_shard(shard_file(packing.folder, number), packing.records(number))
    return len(packing.lines(number))

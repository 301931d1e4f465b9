"""What an atlas's descriptors say about its clips: corrupt ones, silent ones, faces that were never seen, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hba_ray.data.checkup import SILENCE
from hba_ray.descriptors.clips import KeyStore, Wanted, find_wanted
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.store import Table
from hba_ray.descriptors.tables import table_of
from hba_ray.specs.descriptors import Stream

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.specs.descriptors import DescriptorsSpec


@dataclass(frozen=True)
class Health:
    """One dataset's rows and one stream.

    Attributes:
        rows: rows of the dataset.
        clips: rows that have a clip for the stream; a video without sound is none for the acoustic one.
        described: rows with a vector or a transcript.
        missing: rows whose clip was not extracted with these settings, or changed since.
        bad: reason -> rows.
        faceless: rows in no frame of which a face was found (pose).
        face_share: mean share of frames with a face (pose); None without a described row.
        silent: rows whose sound stays below -60 dB (acoustic).
        seconds: total length of the sound (acoustic, transcripts); 0 where it is not known.
    """

    dataset: str
    stream: str
    rows: int
    clips: int
    described: int
    missing: int
    bad: dict[str, int]
    faceless: int = 0
    face_share: float | None = None
    silent: int = 0
    seconds: float = 0.0


def examine(store: Path, spec: DescriptorsSpec, index: AtlasIndex, splits: Sequence[str]) -> list[Health]:
    """Each dataset and stream of these splits; reads small columns only and extracts nothing."""
    kept = KeyStore.of(store, index)
    keys = [kept.load(chunk, bad_rows=True) for split in splits for chunk in kept.chunks(index.rows_of(split))]
    datasets = index.table.column("dataset").to_numpy(zero_copy_only=False)
    rows = Counter(datasets[line] for split in splits for line in index.rows_of(split))
    found = []
    for stream in spec.streams:
        wanted: dict[str, list[Wanted]] = {dataset: [] for dataset in rows}
        unkept = Counter(rows)
        for chunk in keys:
            if chunk is not None:
                unkept.subtract(datasets[chunk.column("line").to_numpy()])
                for one in find_wanted(chunk, spec, stream, index):
                    wanted[datasets[one.line]].append(one)
        facts = _facts(table_of(store, spec, stream))
        found += [_examine(dataset, stream, rows[dataset], unkept[dataset], clips, facts) for dataset, clips in sorted(wanted.items())]
    return found


def _facts(table: Table) -> dict[str, dict]:
    """Clip -> what the small columns of its row say."""
    names = [name for name in ("clip", "reason", "seconds", "peak", "detected") if name in table.schema.names]
    return {row["clip"]: row for row in table.columns(names).to_pylist()}


def _examine(dataset: str, stream: Stream, rows: int, unkept: int, wanted: list[Wanted], facts: dict[str, dict]) -> Health:
    known = [(one, facts[one.clip]) for one in wanted if one.clip in facts]
    there = [row for one, row in known if not one.lacks_sound(row["reason"])]
    good = [row for row in there if row["reason"] is None]
    faces = [row["detected"][list(PARTS).index("face")] for row in good] if stream == "pose" else []
    return Health(
        dataset=dataset,
        stream=stream,
        rows=rows,
        clips=len(wanted) - len(known) + len(there),
        described=len(good),
        missing=len(wanted) - len(known) + unkept,
        bad=dict(Counter(row["reason"] for row in there if row["reason"])),
        faceless=sum(share == 0 for share in faces),
        face_share=float(np.mean(faces)) if faces else None,
        silent=sum(row["peak"] < SILENCE for row in good if row.get("peak") is not None),
        seconds=float(sum(row["seconds"] or 0.0 for row in good)),
    )

"""What `hba atlas check` shows: `examine` reads what descriptors say of the clips, `*_sheet` are tables of what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hba_ray.actions.check_clips import Clips
from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.rows import MEDIA_COLUMNS
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.descriptors.keys import KeyStore, Wanted, find_wanted
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.store import Table
from hba_ray.descriptors.summary import SILENCE
from hba_ray.descriptors.tables import table_of
from hba_ray.evaluation.survey import LETTERS
from hba_ray.report.sheets import MISSING, Sheet
from hba_ray.specs.sections.descriptors import Stream

if TYPE_CHECKING:
    from hba_ray.specs.sections.descriptors import DescriptorsSpec


@dataclass(frozen=True)
class Health:
    """What the descriptors of one stream say of the clips of one dataset.

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
    """The health of each dataset and stream in these splits. Only small columns are read, and nothing is extracted."""
    kept = KeyStore.of(store, index)
    keys = [kept.load(chunk, bad_rows=True) for split in splits for chunk in kept.chunks(index.rows_of(split))]
    datasets = index.table.column("dataset").to_numpy(zero_copy_only=False)
    rows = Counter(datasets[line] for split in splits for line in index.rows_of(split))
    signatures = index.table.column("modality_signature").to_pylist()
    described = {line for chunk in keys if chunk is not None for line in chunk.column("line").to_pylist()}
    found = []
    for stream in spec.streams:
        wanted: dict[str, list[Wanted]] = {dataset: [] for dataset in rows}
        sources = {"video"} if stream == "pose" else {"video", "audio"}
        unread = (line for split in splits for line in index.rows_of(split).tolist() if line not in described)
        unkept = Counter(datasets[line] for line in unread if sources.intersection(signatures[line].split("_")))
        for chunk in keys:
            if chunk is not None:
                for one in find_wanted(chunk, spec, stream, index):
                    wanted[datasets[one.line]].append(one)
        facts = _facts(table_of(store, spec, stream))
        found += [_examine(dataset, stream, rows[dataset], unkept[dataset], clips, facts) for dataset, clips in sorted(wanted.items())]
    return found


def _facts(table: Table) -> dict[str, dict]:
    """Clip -> the small columns of its row in the table of descriptors."""
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


def row_sheet(index: AtlasIndex) -> Sheet:
    """Rows of each dataset and split beside the published counts."""
    rows = []
    for dataset, counts in index.counts().items():
        for split, expected in zip(SPLITS, DATASETS[dataset].counts or (None, None, None), strict=True):
            found = counts.get(split, 0)
            difference = MISSING if expected is None else f"{found - expected:+d}" if found != expected else "0"
            rows.append((dataset, split, str(found), MISSING if expected is None else str(expected), difference))
    return Sheet("Rows", ("dataset", "split", "rows", "Table 7", "difference"), tuple(rows), 2)


def modality_sheet(index: AtlasIndex) -> Sheet:
    """Rows that have each modality, over all splits, beside what Table 2 says of the dataset."""
    names = ("text", *MEDIA_COLUMNS)
    counts: dict[str, dict[str, int]] = {}
    for dataset, signature in zip(*(index.table.column(name).to_pylist() for name in ("dataset", "modality_signature")), strict=True):
        own = counts.setdefault(dataset, dict.fromkeys(("rows", *names), 0))
        own["rows"] += 1
        for name in set(names) & set(signature.split("_")):
            own[name] += 1
    rows = [
        (dataset, *(str(count) for count in own.values()), ", ".join(LETTERS[letter] for letter in DATASETS[dataset].modalities))
        for dataset, own in sorted(counts.items())
    ]
    return Sheet("Rows by modality", ("dataset", "rows", *names, "Table 2"), tuple(rows), 1)


def clip_sheet(clips: Sequence[Clips], unreadable: Mapping[str, int]) -> Sheet:
    """Clips that were decoded: how long they are, and what is wrong with them."""
    rows = [
        (
            one.dataset,
            one.modality,
            str(one.clips),
            *_lengths(one.seconds),
            str(one.silent) if one.modality == "audio" else MISSING,
            str(one.black) if one.modality == "video" else MISSING,
            str(one.longer) if one.modality == "audio" else MISSING,
            counted(one.bad) or "0",
        )
        for one in clips
    ]
    notes = (f"Rows that could not be read: {counted(unreadable)}.",) if unreadable else ()
    header = ("dataset", "modality", "clips", "minutes", "shortest, s", "longest, s", "silent", "black", "longer than read", "bad")
    return Sheet("Clips", header, tuple(rows), 2, notes)


def descriptor_sheet(health: Sequence[Health]) -> Sheet:
    """What is extracted, and what it says about the clips."""
    rows = [
        (
            one.stream,
            one.dataset,
            str(one.rows),
            str(one.clips),
            str(one.described),
            str(one.missing),
            counted(one.bad) or "0",
            str(one.faceless) if one.stream == "pose" else MISSING,
            f"{one.face_share:.1%}" if one.face_share is not None else MISSING,
            str(one.silent) if one.stream == "acoustic" else MISSING,
            f"{one.seconds / 60:.1f}" if one.seconds else MISSING,
        )
        for one in health
    ]
    header = ("stream", "dataset", "rows", "with a clip", "described", "missing or stale", "masked", "no face", "frames with a face")
    return Sheet("Descriptors", (*header, "silent", "minutes"), tuple(rows), 2)


def counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, for example `corrupt audio: 2, empty file: 1`."""
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))


def _lengths(seconds: Sequence[float]) -> tuple[str, str, str]:
    if not seconds:
        return MISSING, MISSING, MISSING
    return f"{np.sum(seconds) / 60:.1f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}"

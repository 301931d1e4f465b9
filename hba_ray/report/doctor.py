"""What `hba atlas check` shows: rows beside Table 7, the modalities that rows have, clips, and descriptors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hba_ray.data.rows import MEDIA_COLUMNS
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.report.tables import MISSING, Sheet

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.data.checkup import Clips
    from hba_ray.descriptors.health import Health

LETTERS = {"T": "text", "A": "audio", "V": "video"}
"""Table 2's letters."""


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
            counted(one.bad) or "0",
        )
        for one in clips
    ]
    notes = (f"Rows that could not be read: {counted(unreadable)}.",) if unreadable else ()
    return Sheet("Clips", ("dataset", "modality", "clips", "minutes", "shortest, s", "longest, s", "silent", "bad"), tuple(rows), 2, notes)


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
    """`corrupt audio: 2, empty file: 1`."""
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))


def _lengths(seconds: Sequence[float]) -> tuple[str, str, str]:
    if not seconds:
        return MISSING, MISSING, MISSING
    return f"{np.sum(seconds) / 60:.1f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}"

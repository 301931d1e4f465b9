"""Clips to look at and to listen to in a page: those that fit into a budget of bytes, the others by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.errors import DataError

BUDGET = 4 << 20
"""Bytes of all clips in a page."""
LARGEST = 1 << 20
"""Bytes of one clip."""
ROWS, MISSES = 64, 8
"""Rows of a dataset that are looked at; after so many clips in a row that do not fit, no more."""

_KINDS = (
    (rb"RIFF....WAVE", "audio/wav", ("audio",)),
    (rb"....ftyp", "{modality}/mp4", ("audio", "video")),
    (rb"\x1aE\xdf\xa3", "{modality}/webm", ("audio", "video")),
    (rb"OggS", "audio/ogg", ("audio",)),
    (rb"fLaC", "audio/flac", ("audio",)),
    (rb"ID3|\xff[\xe2-\xfb]", "audio/mpeg", ("audio",)),
    (rb"\x89PNG", "image/png", ("image",)),
    (rb"\xff\xd8\xff", "image/jpeg", ("image",)),
)
"""First bytes, the media type, and the modalities that browsers show it as."""

Key = tuple[str, str]
"""(dataset, sample_id)."""


@dataclass(frozen=True)
class Clip:
    """
    Attributes:
        modality: audio, video or image.
        name: its path in the atlas, or what it is where it lies in a parquet file.
        size: bytes; None where it could not be read.
        kind: media type; None where browsers show no such file.
        content: None where it is only named.
    """

    modality: str
    name: str
    size: int | None = None
    kind: str | None = None
    content: bytes | None = None


def sampled_clips(index: AtlasIndex, split: str, *, budget: int = BUDGET) -> dict[Key, tuple[Clip, ...]]:
    """The clips of the first rows of each dataset of a split; every dataset has an equal share of the budget.

    Rows that cannot be read have no clips here: evaluation has counted them.

    Raises:
        DataError: a parquet shard is not there any more, or is damaged.
        FileNotFoundError: a jsonl shard is not there any more.
    """
    lines = index.rows_of(split)
    datasets = index.table.column("dataset").take(lines).to_pylist()
    by_dataset: dict[str, list[int]] = {}
    for line, dataset in zip(lines.tolist(), datasets, strict=True):
        by_dataset.setdefault(dataset, []).append(line)
    found: dict[Key, tuple[Clip, ...]] = {}
    left = budget
    for number, dataset in enumerate(sorted(by_dataset)):
        share = left // (len(by_dataset) - number)
        for key, clips in _of_dataset(index, by_dataset[dataset][:ROWS], share):
            found[key] = clips
            left -= sum(len(clip.content) for clip in clips if clip.content is not None)
    return found


def _of_dataset(index: AtlasIndex, lines: list[int], share: int) -> Iterator[tuple[Key, tuple[Clip, ...]]]:
    misses = 0
    for row in read_rows(index, lines):
        if isinstance(row, DataError):
            continue
        clips = tuple(_clip(clip, modality, index.root) for modality, several in row.media.items() for clip in several)
        size = sum(clip.size or 0 for clip in clips)
        fits = size <= share and all((clip.size or 0) <= LARGEST for clip in clips)
        share -= size if fits else 0
        yield (row.dataset.id, row.sample_id), (clips if fits else tuple(replace(clip, content=None) for clip in clips))
        misses = 0 if fits else misses + 1
        if misses == MISSES:
            return


def _clip(clip: bytes | Path, modality: str, root: str) -> Clip:
    if isinstance(clip, bytes):
        return _embedded(clip, modality, f"{modality} inside the parquet file")
    name = clip.relative_to(Path(root).resolve()).as_posix()
    try:
        size = clip.stat().st_size
        return _embedded(clip.read_bytes(), modality, name) if size <= LARGEST else Clip(modality, name, size)
    except OSError:
        return Clip(modality, name)  # shown as a name whose size is not known


def _embedded(content: bytes, modality: str, name: str) -> Clip:
    kind = media_type(content, modality)
    return Clip(modality, name, len(content), kind, content if kind else None)


def media_type(content: bytes, modality: str) -> str | None:
    """What a browser has to be told of a file; None where it shows none such.

    >>> media_type(b"RIFF1234WAVE", "audio"), media_type(b"RIFF1234AVI ", "video")
    ('audio/wav', None)
    """
    for magic, kind, shown_as in _KINDS:
        if modality in shown_as and re.match(magic, content, re.DOTALL):
            return kind.format(modality=modality)
    return None


def clips_note(clips: Mapping[Key, tuple[Clip, ...]]) -> str:
    """What a reader has to know of the clips that are there and of those that are not."""
    inside = [clip for several in clips.values() for clip in several if clip.content is not None]
    named = sum(len(several) for several in clips.values()) - len(inside)
    said = f"{len(inside)} clips are inside this file ({sum(clip.size or 0 for clip in inside) / 2**20:.1f} of at most {BUDGET >> 20} MiB)"
    return said + (f", {named} are only named." if named else ".")

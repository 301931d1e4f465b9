"""Every clip of an atlas decoded once: what is wrong with it, and a name for what is seen or heard in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter

from hba_ray.actions.through_rows import through_rows, through_rows_of
from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.feed.spread import Spread, spread_here
from hba_ray.data.media import (
    LONGEST_SECONDS,
    SAMPLE_RATE,
    SHORTEST_AUDIO,
    SHORTEST_SIDE,
    decode_audio,
    decode_image,
    decode_video,
    probe_video,
)
from hba_ray.data.rows import Row
from hba_ray.descriptors.summary import SILENCE
from hba_ray.errors import BadMedia, DataError
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.atlas import MediaSpec

DARK, DARK_SHARE = 0.1, 0.98
"""A frame is black where this share of its pixels is no brighter than 0.1 of white (the defaults of FFmpeg's blackdetect)."""
WHITE = 255
IMAGE_PIXELS = 1 << 20
"""Of an image at most, when it is decoded."""


class Content(NamedTuple):
    """What is seen or heard in a clip of a row, by a name that two clips share whose decoded content is the same."""

    name: str
    split: str
    dataset: str
    sample_id: str


@dataclass
class Clips:
    """What was found in the clips of one modality of one dataset.

    Attributes:
        clips: how many there are.
        seconds: length of each sound or video that can be read, in the order of the index.
        silent: sounds that stay below -60 dB.
        black: videos in which every frame that is read is black.
        longer: sounds that go on after the part that is read.
        bad: reason -> clips.
        places: the first rows of each finding, each with what is wrong.
    """

    dataset: str
    modality: str
    clips: int = 0
    seconds: list[float] = field(default_factory=list)
    silent: int = 0
    black: int = 0
    longer: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)


@dataclass
class Checked:
    """What was found in some rows; as JSON, a line of the file that an interrupted check goes on from.

    Attributes:
        said: (dataset, modality, kind of finding, sentence) in the order of the rows.
        unreadable: reason -> rows.
        contents: of the clips that have a name, in the order of the rows.
    """

    clips: list[Clips] = field(default_factory=list)
    said: list[tuple[str, str, str, str]] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)
    contents: list[Content] = field(default_factory=list)


class CheckedClips(NamedTuple):
    """What was found in all rows.

    Attributes:
        clips: by dataset and modality.
        unreadable: reason -> rows that could not be read at all.
        contents: see `Checked`.
    """

    clips: list[Clips]
    unreadable: dict[str, int]
    contents: list[Content]


_CHECKED = TypeAdapter(Checked)


def check_clips(
    index: AtlasIndex,
    splits: Sequence[str],
    media: MediaSpec,
    progress: Callable[[int], None] = lambda rows: None,
    *,
    places: int = 5,
    spread: Spread = spread_here,
    kept: Path | None = None,
    part_rows: int = 64,
) -> CheckedClips:
    """Decodes the sound of every clip whole, of every video the frames that a model would be shown, and its last one, every image.

    Args:
        media: how much of a clip is read.
        progress: told how many rows are done.
        places: rows that are named for each finding (bad, silent, black, longer), dataset and modality.
        spread: does the work on several rows.
        kept: file of what an interrupted check of the same clips has found; it is taken away at the end.
        part_rows: rows that are checked at a time.
    """
    work = partial(_check_rows, media=media)
    return _together(through_rows(index, splits, work, _CHECKED, progress, spread=spread, kept=kept, part_rows=part_rows), places)


def check_clips_of(spec: ExperimentSpec, index: AtlasIndex, progress: Callable[[int], None], *, places: int = 5) -> CheckedClips:
    """`check_clips` of all splits, on all CPUs of the spec's Ray where it has workers; an interrupted check goes on where it was.

    Args:
        index: of the spec's rows.
    """
    media = spec.atlas.media
    work = partial(_check_rows, media=media)
    return _together(through_rows_of(spec, index, work, _CHECKED, progress, name="clips", settings=media.identity()), places)


def _check_rows(index: AtlasIndex, lines: Sequence[int], *, media: MediaSpec) -> Checked:
    """What is found in the rows at these lines."""
    found: dict[tuple[str, str], Clips] = {}
    checked = Checked()
    splits = index.table.column("split").take(lines).to_pylist()
    for row, split in zip(read_rows(index, lines), splits, strict=True):
        if isinstance(row, DataError):
            checked.unreadable[row.reason] += 1
            continue
        names: set[str] = set()
        for modality, clips in row.files.items():
            one = found.setdefault((row.dataset.id, modality), Clips(row.dataset.id, modality))
            for clip in clips:
                for finding, what in _check(one, clip, row, media, names):
                    checked.said.append((row.dataset.id, modality, finding, f"{row.dataset.id} {row.sample_id}: {what}"))
        checked.contents += [Content(name, split, row.dataset.id, row.sample_id) for name in sorted(names)]
    checked.clips = list(found.values())
    return checked


def _together(parts: Sequence[Checked], places: int) -> CheckedClips:
    """All parts as one."""
    found: dict[tuple[str, str], Clips] = {}
    named: Counter[tuple[str, str, str]] = Counter()
    unreadable: Counter[str] = Counter()
    for part in parts:
        unreadable += part.unreadable
        for one in part.clips:
            whole = found.setdefault((one.dataset, one.modality), Clips(one.dataset, one.modality))
            for count in ("clips", "silent", "black", "longer", "seconds", "bad"):
                setattr(whole, count, getattr(whole, count) + getattr(one, count))
        for dataset, modality, finding, sentence in part.said:
            named[dataset, modality, finding] += 1
            if named[dataset, modality, finding] <= places:
                found[dataset, modality].places.append(sentence)
    return CheckedClips([found[key] for key in sorted(found)], dict(unreadable), [one for part in parts for one in part.contents])


def _check(found: Clips, clip: bytes | Path, row: Row, media: MediaSpec, names: set[str]) -> Iterator[tuple[str, str]]:
    """Counts a clip, and tells what is to be said of it: (kind of finding, sentence). Adds the name of its content."""
    found.clips += 1
    where = f"{row.dataset.id} {row.sample_id}"
    try:
        if found.modality == "audio":
            samples_T = decode_audio(clip, LONGEST_SECONDS, where=where, shortest=SHORTEST_AUDIO)
            seconds = len(samples_T) / SAMPLE_RATE
            found.seconds.append(seconds)
            names |= content_names(found.modality, samples_T)
            if np.abs(samples_T).max() < SILENCE:
                found.silent += 1
                yield "silent", "the sound is silent"
            if seconds > media.audio_seconds:
                found.longer += 1
                yield "longer", f"the sound has {seconds:.1f} s, of which the first {media.audio_seconds:g} are read"
        elif found.modality == "video":
            frames_TCHW, _ = decode_video(clip, max(2, media.video_frames), SHORTEST_SIDE**2, where=where)
            names |= content_names(found.modality, frames_TCHW[[0, -1]])
            found.seconds.append(probe_video(clip, where=where).seconds)
            if ((frames_TCHW.max(axis=1) <= DARK * WHITE).mean(axis=(1, 2)) >= DARK_SHARE).all():
                found.black += 1
                yield "black", "the video is black"
        else:
            names |= content_names(found.modality, decode_image(clip, IMAGE_PIXELS, where=where))
    except BadMedia as bad:
        found.bad[bad.reason] += 1
        yield "bad", bad.what


def content_names(modality: str, content: np.ndarray) -> set[str]:
    """A name for what is seen or heard; none of silence and of black pictures, two of which are alike without being one recording.

    Args:
        content: the samples of a sound, the first and last frame of a video or the pixels of an image. Formats without loss give
            the same ones.
    """
    if modality == "audio":
        if np.abs(content).max() < SILENCE:
            return set()
        content = np.round(content * 2**15).astype(np.int32)
    elif content.max() <= DARK * WHITE:
        return set()
    return {f"{modality}-{hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()[:32]}"}

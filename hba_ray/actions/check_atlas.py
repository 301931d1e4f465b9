"""`hba atlas check`: `check_clips` decodes every clip once, `examine` reads what descriptors say of them, `*_sheet` show what was found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
from hba_ray.data.rows import MEDIA_COLUMNS, Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.descriptors.keys import KeyStore, Wanted, find_wanted
from hba_ray.descriptors.pose import PARTS
from hba_ray.descriptors.store import Table
from hba_ray.descriptors.summary import SILENCE
from hba_ray.descriptors.tables import table_of
from hba_ray.errors import BadMedia, DataError
from hba_ray.evaluation.survey import LETTERS
from hba_ray.report.sheets import MISSING, Sheet
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.atlas import MediaSpec
from hba_ray.specs.sections.descriptors import Stream

if TYPE_CHECKING:
    from hba_ray.specs.sections.descriptors import DescriptorsSpec


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

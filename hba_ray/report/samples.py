"""Rows to read on a page: what was asked, what is true, what every arm said and whether it is right, and the clips to look at.

Of each dataset some rows are chosen (`samples`), and of the first rows the clips are put into the page as far as they fit into
a budget of bytes; the others are named (`sampled_clips`). Rows of sensitive datasets are shown only where that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.prompts import plain_text
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError
from hba_ray.evaluation.pairs import ArmRows
from hba_ray.evaluation.scores import Record

Key = tuple[str, str]
"""(dataset, sample_id)."""
PER_DATASET, MOST = 60, 400
"""Most rows of a dataset and of a page."""
BUDGET = 4 << 20
"""Most bytes of all clips in a page."""
LARGEST = 1 << 20
"""Most bytes of one clip."""
ROWS, MISSES = 64, 8
"""Rows of a dataset whose clips are looked at; the search ends after so many rows in a row whose clips do not fit."""

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


@dataclass(frozen=True)
class Clip:
    """A clip of a row.

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


@dataclass(frozen=True)
class Answer:
    """What one arm said of a row.

    Attributes:
        text: a class, or the text of an open answer; None where nothing could be read.
        is_right: by the judge where it has graded the answer, else by the text.
        probability: of the class, by models with heads.
        response: all that a model without heads wrote.
        is_cut: whether what it wrote ended at the limit of tokens and not by itself.
    """

    arm: str
    text: str | None
    is_right: bool
    probability: float | None = None
    response: str | None = None
    is_cut: bool = False


@dataclass(frozen=True)
class Sample:
    """A row of the atlas with what the arms said of it.

    Attributes:
        answers: of the arms that have predicted the row.
        clips: None where the page has not looked at them.
    """

    dataset: str
    sample_id: str
    question: str
    true: str
    answers: tuple[Answer, ...]
    clips: tuple[Clip, ...] | None = None


@dataclass(frozen=True)
class Samples:
    """The rows that were chosen.

    Attributes:
        total: number of rows that they were chosen from.
        notes: sentences on how they were chosen.
    """

    arms: tuple[str, ...]
    rows: tuple[Sample, ...]
    total: int
    notes: tuple[str, ...] = ()


def samples(
    arms: Sequence[ArmRows], clips: Mapping[Key, tuple[Clip, ...]], notes: Sequence[str] = (), *, show_sensitive: bool = False
) -> Samples:
    """Chooses rows: of each dataset first those whose clips are known, evenly from the rest, and as many on which arms do not agree.

    Args:
        clips: of rows that were looked at.
        notes: on the clips.
        show_sensitive: choose from sensitive datasets, too.
    """
    right = {arm.name: _right(arm) for arm in arms}
    by_dataset: dict[str, list[Key]] = {}
    for key in sorted({key for arm in right.values() for key in arm}):
        by_dataset.setdefault(key[0], []).append(key)
    hidden = [] if show_sensitive else [name for name in by_dataset if DATASETS[name].sensitive]
    kept_back = {name: len(by_dataset.pop(name)) for name in hidden}
    quota = min(PER_DATASET, MOST // max(1, len(by_dataset)))
    ordered = [name for name in DATASETS if name in by_dataset]
    chosen = [key for name in ordered for key in _choose(by_dataset[name], quota, right, clips)]
    records = {arm.name: _records(arm.predictions, chosen) for arm in arms}
    rows = tuple(_sample(key, arms, records, right, clips.get(key)) for key in chosen)
    total = sum(map(len, by_dataset.values()))
    said = (f"{len(rows)} of {total} rows: of each dataset up to {quota}, half of them because an arm is wrong there.",)
    apart = (
        f"Not shown, since texts are of patients or minors: {', '.join(f'{count} rows of {name}' for name, count in kept_back.items())}.",
    )
    return Samples(
        tuple(arm.name for arm in arms), rows, total, (*(said if len(rows) < total else ()), *(apart if kept_back else ()), *notes)
    )


def _choose(keys: list[Key], quota: int, right: Mapping[str, Mapping[Key, bool]], clips: Mapping[Key, object]) -> list[Key]:
    """At most `quota` of a dataset's keys, in their order."""
    if len(keys) <= quota:
        return keys
    known = [key for key in keys if key in clips]
    half = quota - quota // 2
    plain = _evenly(known if len(known) >= half else keys, half)
    wrong = [key for key in keys if key not in set(plain) and not all(arm.get(key, True) for arm in right.values())]
    rest = _evenly(wrong, quota - half)
    filled = _evenly([key for key in keys if key not in {*plain, *rest}], quota - half - len(rest))
    return sorted({*plain, *rest, *filled})


def _evenly(keys: Sequence[Key], count: int) -> list[Key]:
    """
    >>> _evenly([("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")], 2)
    [('a', '1'), ('a', '3')]
    """
    return list(keys) if len(keys) <= count else [keys[place * len(keys) // count] for place in range(count)]


def _right(arm: ArmRows) -> dict[Key, bool]:
    """Whether an arm is right, for each row: by the judge where it has graded the answer, else by the text."""
    table = arm.predictions
    names = ("dataset", "sample_id", "true", "predicted", "answer")
    columns = [table.column(name).to_pylist() if name in table.column_names else [None] * len(table) for name in names]
    found = {}
    for dataset, sample, true, predicted, answer in zip(*columns, strict=True):
        is_open = DATASETS[dataset].task.is_open
        said = answer if is_open else predicted
        if is_open and arm.verdicts is not None:
            found[dataset, sample] = arm.verdicts.get((dataset, sample)) is True
        else:
            found[dataset, sample] = said is not None and plain_text(said) == plain_text(true)
    return found


def _records(table: pa.Table, keys: Iterable[Key]) -> dict[Key, Record]:
    """The rows of a table that are wanted."""
    places = {
        key: place for place, key in enumerate(zip(*(table.column(name).to_pylist() for name in ("dataset", "sample_id")), strict=True))
    }
    wanted = [key for key in keys if key in places]
    return dict(zip(wanted, table.take(pa.array([places[key] for key in wanted], pa.int64())).to_pylist(), strict=True))


def _sample(
    key: Key,
    arms: Sequence[ArmRows],
    records: Mapping[str, Mapping[Key, Record]],
    right: Mapping[str, Mapping[Key, bool]],
    clips: tuple[Clip, ...] | None,
) -> Sample:
    own = {arm.name: records[arm.name][key] for arm in arms if key in records[arm.name]}
    first: dict[str, Any] = next(iter(own.values()))
    is_open = DATASETS[key[0]].task.is_open
    answers = tuple(
        Answer(
            arm=name,
            text=record.get("answer") if is_open else record["predicted"],
            is_right=right[name][key],
            probability=record.get("probability"),
            response=record.get("response"),
            is_cut=record.get("cut") is True,
        )
        for name, record in own.items()
    )
    question = next((record["question"] for record in own.values() if record.get("question")), "")
    return Sample(*key, question, first["true"], answers, clips)


def sampled_clips(index: AtlasIndex, split: str, *, budget: int = BUDGET, show_sensitive: bool = False) -> dict[Key, tuple[Clip, ...]]:
    """The clips of the first rows of each dataset of a split; every dataset has an equal share of the budget.

    Rows that cannot be read have no clips here: evaluation has counted them.

    Args:
        show_sensitive: look at those of sensitive datasets, too.

    Raises:
        DataError: a parquet shard is not there any more, or is damaged.
        FileNotFoundError: a jsonl shard is not there any more.
    """
    lines = index.rows_of(split)
    datasets = index.table.column("dataset").take(lines).to_pylist()
    by_dataset: dict[str, list[int]] = {}
    for line, dataset in zip(lines.tolist(), datasets, strict=True):
        if DATASETS[dataset].sensitive and not show_sensitive:
            continue
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
        clips = tuple(_clip(clip, modality, index.roots) for modality, several in row.files.items() for clip in several)
        size = sum(clip.size or 0 for clip in clips)
        fits = size <= share and all((clip.size or 0) <= LARGEST for clip in clips)
        share -= size if fits else 0
        yield (row.dataset.id, row.sample_id), (clips if fits else tuple(replace(clip, content=None) for clip in clips))
        misses = 0 if fits else misses + 1
        if misses == MISSES:
            return


def _clip(clip: bytes | Path, modality: str, roots: Sequence[Path]) -> Clip:
    if isinstance(clip, bytes):
        return _embedded(clip, modality, f"{modality} inside the parquet file")
    name = next(clip.relative_to(root).as_posix() for root in (one.resolve() for one in roots) if clip.is_relative_to(root))
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

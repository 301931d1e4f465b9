"""Counts what the atlas of a spec holds: its rows from the index, prompts from the rows without clips, lengths from the clips' headers."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from hba_ray.actions.describe import MadeAtlas
from hba_ray.actions.through_rows import through_rows_of
from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.media import probe_audio, probe_video
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import BadMedia, DataError
from hba_ray.evaluation.survey import DatasetSurvey, Lengths, Survey, shared_lines
from hba_ray.specs import ExperimentSpec

NAMED_BY_BYTES = 1 << 16
FEWEST_PROMPTS = 10
"""What fewer rows than these share may be somebody's words, so it is not shown."""


def survey_of(
    spec: ExperimentSpec,
    made: MadeAtlas,
    *,
    prompts: bool = False,
    lengths: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Survey:
    """What a spec's atlas holds.

    Args:
        prompts: look at the prompts of all rows, for what those of a dataset share.
        lengths: look at the clips; what is found is kept in the storage.
        progress: told for how many rows the clips are looked at.
    """
    found = count_rows(made.index, prompts=prompts)
    clips = lengths_of(spec, made.index, progress) if lengths else None
    return Survey(spec.name, made.step.fingerprint, spec.atlas.is_toy, found, clips)


def count_rows(index: AtlasIndex, *, prompts: bool = False) -> dict[str, DatasetSurvey]:
    """Dataset -> what the index, and its rows without their clips, say of it, in the benchmark's order."""
    counts, labels = index.counts(), {split: index.label_counts(split) for split in SPLITS}
    columns = (index.table.column(name).to_pylist() for name in ("dataset", "modality_signature"))
    signatures: dict[str, Counter[str]] = {}
    for dataset, signature in zip(*columns, strict=True):
        signatures.setdefault(dataset, Counter())[signature] += 1
    return {
        dataset: DatasetSurvey(
            rows={split: counts[dataset].get(split, 0) for split in SPLITS},
            labels={split: labels[split][dataset] for split in SPLITS if dataset in labels[split]},
            signatures=dict(signatures[dataset]),
            has_descriptors=_brings_descriptors(index, dataset),
            prompt=_prompt(index, dataset) if prompts else (),
        )
        for dataset in DATASETS
        if dataset in counts
    }


def _brings_descriptors(index: AtlasIndex, dataset: str) -> bool:
    first = np.flatnonzero(index.table.column("dataset").to_numpy(zero_copy_only=False) == dataset)[:1]
    return any(isinstance(row, Row) and row.descriptors for row in read_rows(index, first.tolist()))


def _prompt(index: AtlasIndex, dataset: str) -> tuple[str, ...]:
    """The lines that a dataset's prompts share; none of a sensitive corpus, whose interviewers say the same to everybody."""
    if DATASETS[dataset].sensitive:
        return ()
    own = index.only(dataset)
    signatures = own.table.column("modality_signature").to_numpy(zero_copy_only=False)
    (commonest, _), *_ = Counter(signatures.tolist()).most_common(1)
    lines = np.flatnonzero(signatures == commonest).tolist()
    prompts = [row.problem for row in read_rows(own, lines, light=True) if isinstance(row, Row)]
    return shared_lines(prompts) if len(prompts) >= FEWEST_PROMPTS else ()


@dataclass
class Probed:
    """The clips of some rows.

    Attributes:
        clips: (corpus, name of the clip, modality, seconds).
        unreadable: (corpus, reason) of each clip or row that cannot be read.
    """

    clips: list[tuple[str, str, str, float]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


_PROBED = TypeAdapter(Probed)


def lengths_of(spec: ExperimentSpec, index: AtlasIndex, progress: Callable[[int], None] = lambda rows: None) -> dict[str, Lengths]:
    """Corpus -> its clips, each once whichever rows share it; what was found is kept in the storage, and not looked at again."""
    if not any(
        set(signature.split("_")) & {"video", "audio"} for signature in index.table.column("modality_signature").unique().to_pylist()
    ):
        return {}
    parts = through_rows_of(spec, index, probe_rows, _PROBED, progress, name="lengths", settings=NAMED_BY_BYTES, keep=True)
    clips = {(corpus, clip): (modality, seconds) for part in parts for corpus, clip, modality, seconds in part.clips}
    bad: dict[str, Counter[str]] = {}
    for corpus, reason in (one for part in parts for one in part.unreadable):
        bad.setdefault(corpus, Counter())[reason] += 1
    found: dict[str, Lengths] = {}
    for corpus in dict.fromkeys([*(corpus for corpus, _ in clips), *bad]):
        its = [clip for (name, _), clip in clips.items() if name == corpus]
        videos = sum(modality == "video" for modality, _ in its)
        seconds = tuple(seconds for _, seconds in its)
        found[corpus] = Lengths(videos, len(its) - videos, seconds, dict(bad.get(corpus, {})))
    return found


def probe_rows(index: AtlasIndex, lines: Sequence[int]) -> Probed:
    """The lengths of the clips of some rows, as their headers state them."""
    probed = Probed()
    datasets = index.table.column("dataset")
    for line, row in zip(lines, read_rows(index, lines), strict=True):
        corpus = DATASETS[datasets[line].as_py()].source
        if isinstance(row, DataError):
            probed.unreadable.append((corpus, row.reason))
            continue
        for modality, clip in _clips(row):
            try:
                seconds = _seconds(modality, clip, f"{row.dataset.id} {row.sample_id}")
                probed.clips.append((corpus, f"{row.clip_id} {_content_name(clip)}", modality, seconds))
            except BadMedia as bad:
                probed.unreadable.append((corpus, bad.reason))
    return probed


def _clips(row: Row) -> Iterator[tuple[str, bytes | Path]]:
    """(modality, clip) of a row's videos or, where it has none, of its sounds: a video and its own sound are one clip."""
    modality = next((name for name in ("video", "audio") if row.files.get(name)), None)
    for clip in row.files[modality] if modality else ():
        yield modality or "", clip


def _content_name(clip: bytes | Path) -> str:
    """A name for a clip that was read, by its size, its start and its middle: a `clip_id` may be that of a scene or a speaker."""
    with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        named = hashlib.sha256(str(size).encode())
        for start in (0, size // 2):
            file.seek(start)
            named.update(file.read(NAMED_BY_BYTES))
    return named.hexdigest()[:16]


def _seconds(modality: str, clip: bytes | Path, where: str) -> float:
    return probe_video(clip, where=where).seconds if modality == "video" else probe_audio(clip, where=where)

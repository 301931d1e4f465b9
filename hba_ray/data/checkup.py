"""Every clip of an atlas decoded once, for what is wrong with it: damage, silence, length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.media import LONGEST_SECONDS, SAMPLE_RATE, SHORTEST_SIDE, decode_audio, decode_image, decode_video, probe_video
from hba_ray.data.rows import Row
from hba_ray.errors import BadMedia, DataError

SILENCE = 1e-3
"""Peaks below this share of full scale, -60 dB, count as silence."""
_READ_ROWS = 256


@dataclass
class Clips:
    """One dataset's clips of one modality.

    Attributes:
        clips: how many there are.
        seconds: length of each sound or video that can be read, in the order of the index.
        silent: sounds that stay below -60 dB.
        bad: reason -> clips.
        places: the first rows with a bad clip, each with what is wrong.
    """

    dataset: str
    modality: str
    clips: int = 0
    seconds: list[float] = field(default_factory=list)
    silent: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)


def check_clips(
    index: AtlasIndex, splits: Sequence[str], progress: Callable[[int], None] = lambda rows: None, *, places: int = 5
) -> tuple[list[Clips], dict[str, int]]:
    """Decodes the sound of every clip whole, of every video its first and last frame, every image.

    Args:
        progress: told how many rows are done.
        places: rows with a bad clip that are named, for each dataset and modality.

    Returns:
        the clips by dataset and modality, and reason -> rows that could not be read at all.
    """
    found: dict[tuple[str, str], Clips] = {}
    unreadable: Counter[str] = Counter()
    done = 0
    for lines in (
        index.rows_of(split)[start : start + _READ_ROWS] for split in splits for start in range(0, len(index.rows_of(split)), _READ_ROWS)
    ):
        for row in read_rows(index, lines.tolist()):
            if isinstance(row, DataError):
                unreadable[row.reason] += 1
            else:
                for modality, clips in row.media.items():
                    one = found.setdefault((row.dataset.id, modality), Clips(row.dataset.id, modality))
                    for clip in clips:
                        _check(one, clip, row, places)
            done += 1
            progress(done)
    return [found[key] for key in sorted(found)], dict(unreadable)


def _check(found: Clips, clip: bytes | Path, row: Row, places: int) -> None:
    found.clips += 1
    where = f"{row.dataset.id} {row.sample_id}"
    try:
        if found.modality == "audio":
            samples_T = decode_audio(clip, LONGEST_SECONDS, where=where)
            found.silent += bool(np.abs(samples_T).max() < SILENCE)
            found.seconds.append(len(samples_T) / SAMPLE_RATE)
        elif found.modality == "video":
            decode_video(clip, 2, SHORTEST_SIDE**2, where=where)
            found.seconds.append(probe_video(clip, where=where).seconds)
        else:
            decode_image(clip, SHORTEST_SIDE**2, where=where)
    except BadMedia as bad:
        found.bad[bad.reason] += 1
        if len(found.places) < places:
            found.places.append(f"{where}: {bad.what}")

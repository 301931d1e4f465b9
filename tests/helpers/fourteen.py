"""All fourteen corpora in one folder, as their publishers lay them out, with clips that decode, and the sources that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.convert.conftest import CLIP_FOLDERS, CREMAD_NAMES, MELD_ROWS, mustard_entries, write_cremad, write_meld, write_mustard
from tests.helpers.corpora import WRITERS, put, tiny_film, tiny_sound

NO_CLIP = ("110", "7")
"""Dialogue and utterance of MELD whose clip its publishers do not give."""


def write_meld_with_films(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file, rows in MELD_ROWS.items():
        for *_, dialogue, utterance in rows:
            if (dialogue, utterance) != NO_CLIP:
                put(folder / CLIP_FOLDERS[file] / f"dia{dialogue}_utt{utterance}.mp4", tiny_film())
    return write_meld(folder)


def write_mustard_with_films(folder: Path) -> Path:
    for name in mustard_entries():
        put(folder / "utterances_final" / f"{name}.mp4", tiny_film())
    return write_mustard(folder)


def write_cremad_with_sounds(folder: Path) -> Path:
    for name in CREMAD_NAMES:
        put(folder / "AudioWAV" / f"{name}.wav", tiny_sound())
    return write_cremad(folder)


FOURTEEN = {**WRITERS, "meld": write_meld_with_films, "mustard": write_mustard_with_films, "cremad": write_cremad_with_sounds}
"""Source -> what writes its corpus into a folder."""


def write_fourteen(folder: Path) -> list[dict[str, Any]]:
    """Writes each corpus into a folder of its own; returns `atlas.sources` for them."""
    return [{"source": source, "root": str(write(folder / source))} for source, write in sorted(FOURTEEN.items())]

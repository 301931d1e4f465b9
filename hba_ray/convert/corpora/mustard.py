"""Converter of MUStARD: whether a line of a sitcom is meant sarcastically, given the lines before it. The split is ours, by scene.

Expected in the folder, as published: `sarcasm_data.json`; and, for rows with media, the clips of the
utterances, `utterances_final/1_60.mp4`, directly or in `videos`, `mmsd_raw_data` or `data`. A clip is
both the row's video and its audio. Without this folder rows are text-only. Texts stay as published,
with their `<i>` and the few apostrophes that the published file has garbled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row
from hba_ray.convert.media import first_folder, video_and_audio
from hba_ray.convert.splits import share_out, split_rows
from hba_ray.convert.tables import column, read_json
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

FILE = "sarcasm_data.json"
CLIP_FOLDERS = ("utterances_final", "videos/utterances_final", "mmsd_raw_data/utterances_final", "data/utterances_final")
SHARED_WORDS = 5
"""A line of at least so many words that two entries share puts them in one scene; shorter lines
("What are you doing?") recur anywhere."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def convert(request: ConversionRequest) -> Converted:
    """The rows of MUStARD; see `read_mustard`."""
    return read_mustard(request.folder, seed=request.seed, on_bad_row=request.spec.on_bad_row, prompts=request.prompts)


def read_mustard(folder: Path, *, seed: int = 0, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None) -> Converted:
    """The rows of MUStARD in a seeded split of Table 7's sizes, entries of one scene together.

    `clip_id` is the first entry of the scene: entries that share a line (see `scenes`) are cut from
    one recording, often overlapping.

    Raises:
        DataError: names file, entry and reason.
    """
    path = folder / FILE
    entries = _entries(path)
    clips = first_folder(folder, CLIP_FOLDERS)
    sieve = Sieve("mustard", on_bad_row)
    rows: dict[str, Row] = {}
    lines_of: dict[str, list[str]] = {}
    for name, entry in entries.items():
        where = f"{path}, entry '{name}'"
        with sieve.row():
            turns = _turns(name, entry, where)
            media = video_and_audio(clips / f"{name}.mp4", where) if clips else {}
            rows[name] = _row(name, turns, _label(entry, where), media, where, prompts)
            lines_of[name] = [line for _, line in turns]
    scene_of = scenes(lines_of)
    placed = [replace(row, clip_id=f"mustard-{scene_of[name]}") for name, row in rows.items()]
    counts = share_out(DATASETS["mmsd"], len(placed))
    divided = split_rows(placed, [row.clip_id for row in placed], counts, seed, where=str(path))
    return Converted(divided, sieve.drops, rules=["No official split; ours is by scene, whose entries share a line."])


def scenes(lines_of: Mapping[str, list[str]]) -> dict[str, str]:
    """Entry -> the first entry of its scene. Entries that share a line of at least SHARED_WORDS words are of one scene.

    Args:
        lines_of: entry -> its lines, context and utterance.
    """
    scene_of = {name: name for name in lines_of}
    members = {name: [name] for name in lines_of}
    first_with: dict[tuple[str, ...], str] = {}
    for name, lines in lines_of.items():
        for line in lines:
            words = tuple(re.findall(r"\w+", line.lower()))
            if len(words) < SHARED_WORDS:
                continue
            kept, gone = scene_of[first_with.setdefault(words, name)], scene_of[name]
            if kept != gone:
                for member in members[gone]:
                    scene_of[member] = kept
                members[kept] += members.pop(gone)
    return scene_of


def _entries(path: Path) -> dict[str, Any]:
    entries = read_json(path)
    if not isinstance(entries, dict) or not entries:
        raise DataError(str(path), "is not an object of entries", "use the file as published", reason="wrong type")
    return entries


def _turns(name: str, entry: Any, where: str) -> list[tuple[str, str]]:
    """(speaker, line) of the context and, last, of the utterance; a line break inside a line becomes a space."""
    if not _NAME.fullmatch(name):
        raise DataError(where, "is no name of a clip", reason="bad path")
    if not isinstance(entry, dict):
        raise DataError(where, f"is {type(entry).__name__}, not an object", reason="wrong type")
    lines, speakers = entry.get("context"), entry.get("context_speakers")
    if not isinstance(lines, list) or not isinstance(speakers, list):
        raise DataError(where, "'context' or 'context_speakers' is no list", "use the file as published", reason="wrong type")
    if len(lines) != len(speakers):
        raise DataError(where, f"has {len(lines)} lines of context but {len(speakers)} speakers of them", reason="missing value")
    turns = [*({"speaker": speaker, "utterance": line} for speaker, line in zip(speakers, lines, strict=True)), entry]
    return [(column(turn, "speaker", where), " ".join(column(turn, "utterance", where).split())) for turn in turns]


def _label(entry: Mapping[str, Any], where: str) -> str:
    stated = entry.get("sarcasm")
    if not isinstance(stated, bool):
        raise DataError(where, f"'sarcasm' is {stated!r}, not true or false", "use the file as published", reason="unknown label")
    return "sarcasm" if stated else "not sarcasm"


def _row(
    name: str, turns: list[tuple[str, str]], label: str, media: dict[str, tuple[Path, ...]], where: str, prompts: DatasetPrompts | None
) -> Row:
    dataset = DATASETS["mmsd"]
    said = [f"{speaker}: {line}" for speaker, line in turns]
    problem = question(dataset, tuple(media), said[-1], "\n".join(said[:-1]) or None, where=where, prompts=prompts)
    return labelled_row(dataset, sample_id=f"mmsd-{name}", clip_id=f"mustard-{name}", problem=problem, label=label, media=media)

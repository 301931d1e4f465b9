"""Converter of IntentQA: why people in everyday videos do what they do, in the official splits.

Expected in the folder, as published: `train.csv`, `val.csv`, `test.csv`; and, for rows with media, the videos
`Videos/<video_id>.mp4`, or those of NExT-QA, nested as its `map_vid_vidorID.json` says. Without videos rows are questions alone.
No transcript is published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, left_out, open_row
from hba_ray.convert.media import clip_file, first_folder, sounding
from hba_ray.convert.splits import tell_crossings
from hba_ray.convert.tables import column, identifier, is_name, read_json, read_table
from hba_ray.convert.wording import DatasetPrompts, open_question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

FILES = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
CLIP_FOLDERS = ("Videos", "videos", "NExTVideo")
MAP = "map_vid_vidorID.json"
CHOICES = 5
RULES = ["The answer is the text of the right one of five choices; the choices are not shown."]


def convert(request: ConversionRequest) -> Converted:
    """The rows of IntentQA; see `read_intentqa`."""
    return read_intentqa(request.folder, on_bad_row=request.spec.on_bad_row, prompts=request.prompts)


def read_intentqa(folder: Path, *, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None) -> Converted:
    """The rows of IntentQA.

    Raises:
        DataError: names file, line and reason.
    """
    clips = first_folder(folder, CLIP_FOLDERS)
    nested = _nested(folder / MAP) if clips else {}
    sieve = Sieve("intentqa", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    known: dict[str, dict[str, tuple[Path, ...]]] = {}
    for split, file in FILES.items():
        seen: set[str] = set()
        wanted = (("video_id", "video"), "question", "answer", "qid", *(f"a{choice}" for choice in range(CHOICES)))
        for where, record in read_table(folder / file, wanted):
            with sieve.row(split):
                video = identifier(record, "video_id", where)
                if clips and video not in known:
                    known[video] = sounding(clip_file(_clip(clips, video, nested), where), where)
                rows[split].append(_row(record, split, video, known.get(video, {}), where, seen, prompts))
    findings = tell_crossings({split: [row.clip_id for row in its] for split, its in rows.items()}, "videos")
    return Converted(rows, sieve.drops, left_out(sieve.drops, SPLITS), RULES, findings)


def _nested(path: Path) -> dict[str, str]:
    """Video -> its place below the folder of videos, where NExT-QA's map is there."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict) or not all(isinstance(place, str) and all(map(is_name, place.split("/"))) for place in found.values()):
        raise DataError(str(path), "is no map from videos to places", "use the file as published", reason="wrong type")
    return found


def _clip(clips: Path, video: str, nested: dict[str, str]) -> Path:
    flat = clips / f"{video}.mp4"
    return flat if flat.is_file() or video not in nested else clips / f"{nested[video]}.mp4"


def _row(
    record: dict[str, Any],
    split: str,
    video: str,
    media: dict[str, tuple[Path, ...]],
    where: str,
    seen: set[str],
    prompts: DatasetPrompts | None,
) -> Row:
    dataset = DATASETS["intentqa"]
    sample = f"intentqa-{split}-{video}-{identifier(record, 'qid', where)}"  # a qid alone comes again with other videos
    if sample in seen:
        raise DataError(where, "the video and the qid occur twice", reason="duplicate row")
    index = column(record, "answer", where).strip()
    if index not in map(str, range(CHOICES)):
        raise DataError(where, f"'answer' is none of 0 to {CHOICES - 1}", "use the file as published", reason="unknown label")
    answer = column(record, f"a{index}", where).strip()
    problem = open_question(dataset, tuple(media), column(record, "question", where).strip(), where=where, prompts=prompts)
    row = open_row(dataset, sample_id=sample, clip_id=f"intentqa-{video}", problem=problem, answer=answer, media=media)
    seen.add(sample)
    return row

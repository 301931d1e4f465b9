"""Converter of Social-IQ 2.0: questions about what happens between people in a clip of a minute.

Expected in the folder, as published: `qa/qa_train.json` and `qa/qa_val.json` (JSON lines, despite their name), also without `qa` or
below `siq2`; and, for rows with media, what the publishers' script downloads: `video/<id>.mp4`, `audio/wav/<id>.wav` or
`audio/mp3/<id>.mp3`, `transcript/<id>.vtt`. Without a folder `video` rows are questions alone.

`qa_test.json` has no answers and shares videos with the others: it is not read. Nor is `original_split.json`, which contradicts the
question files, nor `current_split.json`, which leaves clips without captions out.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, left_out, open_row
from hba_ray.convert.media import NOT_ONLINE, first_file, needed_file, sounding
from hba_ray.convert.splits import tell_crossings
from hba_ray.convert.tables import column, identifier, read_json_lines, read_text
from hba_ray.convert.wording import DatasetPrompts, open_question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow
from hba_ray.specs.sections.corpora import Siq2Spec

FILES = {"train": "qa_train.json", "val": "qa_val.json"}
FOLDERS = ("qa", "siq2/qa", ".", "siq2")
CHOICES = 4
Media = dict[str, tuple[Path, ...]]

_TAG = re.compile(r"<[^>]*>")
_NO_CUE = ("WEBVTT", "NOTE", "STYLE", "REGION")


def convert(request: ConversionRequest) -> Converted:
    """The rows of Social-IQ 2.0; see `read_siq2`."""
    return read_siq2(request.folder, request.spec.corpora.siq2, on_bad_row=request.spec.on_bad_row, prompts=request.prompts)


def read_siq2(
    folder: Path, rules: Siq2Spec | None = None, *, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None
) -> Converted:
    """The rows of Social-IQ 2.0. Rows whose clip is not there are left out, and counted, once there are clips.

    Raises:
        DataError: names file, line and reason.
    """
    rules = rules or Siq2Spec()
    base = folder / "siq2" if (folder / "siq2").is_dir() else folder
    has_clips = (base / "video").is_dir()
    split_of = {"train": "train", "val": rules.validation_as}
    sieve = Sieve("siq2", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    known: dict[str, tuple[Media, str | None]] = {}
    for name, file in FILES.items():
        split = split_of[name]
        for number, where, record in read_json_lines(needed_file(folder, [f"{place}/{file}" for place in FOLDERS])):
            with sieve.row(split):
                video = identifier(record, "vid_name", where)
                if video not in known:
                    known[video] = (
                        _media(base, video, where) if has_clips else {},
                        _captions(base / "transcript" / f"{video}.vtt") if rules.transcripts else None,
                    )
                media, said = known[video]
                if has_clips and not media and rules.without_clip == "leave_out":
                    sieve.leave_out(where, NOT_ONLINE, split)
                    continue
                rows[split].append(_row(record, f"siq2-{name}-{number:05d}", video, media, said, where, prompts))
    findings = tell_crossings({split: [row.clip_id for row in its] for split, its in rows.items()}, "videos")
    stated = [
        f"The validation file is our {rules.validation_as} split; the test file has no answers.",
        f"Captions are {'shown where there are any' if rules.transcripts else 'not shown'}.",
        "Rows without a clip are " + ("left out." if rules.without_clip == "leave_out" else "asked without one."),
    ]
    return Converted(rows, sieve.drops, left_out(sieve.drops, SPLITS), stated, findings)


def _media(base: Path, video: str, where: str) -> Media:
    """The clips of a video; empty where it could not be downloaded."""
    path = base / "video" / f"{video}.mp4"
    if not path.is_file():
        return {}
    sound = first_file(base / "audio", (f"wav/{video}.wav", f"mp3/{video}.mp3"))
    return {"video": (path.absolute(),), "audio": (sound.absolute(),)} if sound else sounding(path.absolute(), where)


def _row(record: dict[str, Any], place: str, video: str, media: Media, said: str | None, where: str, prompts: DatasetPrompts | None) -> Row:
    dataset = DATASETS["siq2"]
    qid = identifier(record, "qid", where)  # comes again with other questions, so the line is part of the row's name
    answer = column(record, "ans_corr", where)
    index = record.get("answer_idx")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < CHOICES:
        raise DataError(where, f"'answer_idx' is none of 0 to {CHOICES - 1}", "use the file as published", reason="unknown label")
    if column(record, f"a{index}", where) != answer:
        raise DataError(where, f"'ans_corr' is not 'a{index}'", "use the file as published", reason="answer contradicts label")
    problem = open_question(dataset, tuple(media), column(record, "q", where).strip(), said, where=where, prompts=prompts)
    return open_row(dataset, sample_id=f"{place}-{qid}", clip_id=f"siq2-{video}", problem=problem, answer=answer.strip(), media=media)


def _captions(path: Path) -> str | None:
    """The words of a WebVTT file; None where there is none, or no words in it."""
    return spoken(read_text(path)) if path.is_file() else None


def spoken(captions: str) -> str | None:
    """The words of captions in WebVTT, without times, tags, notes and the lines that rolling captions show again.

    >>> spoken("WEBVTT\\n\\n00:00.0 --> 00:01.0\\nSo <c>I</c> said\\n\\n00:01.0 --> 00:02.0\\nSo I said\\nno &amp; left")
    'So I said no & left'
    """
    kept: list[str] = []
    for block in re.split(r"\n\n+", captions.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        times = next((place for place, line in enumerate(lines) if "-->" in line), None)
        if times is None or lines[0].startswith(_NO_CUE):
            continue
        for line in lines[times + 1 :]:
            text = " ".join(html.unescape(_TAG.sub("", line)).split())
            if text and text not in kept[-1:]:
                kept.append(text)
    return " ".join(kept) or None

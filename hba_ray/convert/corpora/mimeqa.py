"""Converter of MimeQA: what mimes tell without words.

Expected in the folder, as published: one table with columns file, timestamp, question type, question and answer (or
reference_answer), `metadata.csv` or `annotation_final_human.csv`; or, as in the publishers' code, the questions in
`annotation_final.csv` and the answers in `annotation_final_human.csv`, row by row; directly or in `data`. For rows with media the
videos `mp4/0002.mp4`. `test_files.json` lists the videos of the test split; without it the split is ours, by video.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Difference, Sieve, open_row
from hba_ray.convert.media import clip_file, first_file, first_folder, needed_file, sounding
from hba_ray.convert.splits import share_out, split_rows
from hba_ray.convert.tables import column, identifier, read_json, read_table
from hba_ray.convert.wording import DatasetPrompts, open_question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

QUESTIONS_AND_ANSWERS = ("metadata.csv", "data/metadata.csv", "annotation_final_human.csv", "data/annotation_final_human.csv")
QUESTIONS_ALONE = ("annotation_final.csv", "data/annotation_final.csv")
TEST_FILES = ("test_files.json", "data/test_files.json")
CLIP_FOLDERS = ("mp4", "videos", "data/mp4")
ANSWER = ("answer", "reference_answer")

_TIMES = re.compile(r"[(\[]\s*([0-9.:]+)\s*,\s*([0-9.:]+)\s*[)\]]")


def convert(request: ConversionRequest) -> Converted:
    """The rows of MimeQA; see `read_mimeqa`."""
    spec = request.spec
    return read_mimeqa(
        request.folder,
        seed=request.seed,
        by_clip=spec.split_by == "clip",
        timestamps=spec.corpora.mimeqa.timestamps,
        on_bad_row=spec.on_bad_row,
        prompts=request.prompts,
    )


def read_mimeqa(
    folder: Path,
    *,
    seed: int = 0,
    by_clip: bool = False,
    timestamps: bool = True,
    on_bad_row: OnBadRow = "fail",
    prompts: DatasetPrompts | None = None,
) -> Converted:
    """The rows of MimeQA; nothing validates, as in Table 7.

    Args:
        by_clip: where there is no list of test videos, split by question instead of by video.
        timestamps: name the seconds that a question is about in front of it.

    Raises:
        DataError: names file, line and reason.
    """
    clips = first_folder(folder, CLIP_FOLDERS)
    sieve = Sieve("mimeqa", on_bad_row)
    rows: list[Row] = []
    files: list[str] = []
    known: dict[str, dict[str, tuple[Path, ...]]] = {}
    for number, (where, record) in enumerate(_records(folder), 1):
        with sieve.row():
            name = PurePosixPath(identifier(record, "file", where)).stem
            if clips and name not in known:
                known[name] = sounding(clip_file(clips / f"{name}.mp4", where), where)
            rows.append(_row(record, number, name, known.get(name, {}), where, timestamps, prompts))
            files.append(name)
    split, differences, rule = _split(folder, rows, files, seed, by_clip)
    prefix = "stand in front of them" if timestamps else "are left out"
    return Converted(split, sieve.drops, differences, [rule, f"The seconds that questions are about {prefix}."])


def _records(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, record) of each question with its answer."""
    path = first_file(folder, QUESTIONS_ALONE)
    own = ("file", "timestamp", "question")
    if path is None:
        return list(read_table(needed_file(folder, QUESTIONS_AND_ANSWERS), (*own, ANSWER)))
    answers_path = needed_file(folder, QUESTIONS_AND_ANSWERS)
    asked, answers = list(read_table(path, own)), list(read_table(answers_path, (ANSWER,)))
    if len(asked) != len(answers):
        what = f"has {len(answers)} rows, and {path.name} has {len(asked)}; they belong together row by row"
        raise DataError(str(answers_path), what, "use both files as published", reason="missing value")
    return [(where, {**record, "answer": answer.get("answer")}) for (where, record), (_, answer) in zip(asked, answers, strict=True)]


def _row(
    record: dict[str, Any],
    number: int,
    name: str,
    media: dict[str, tuple[Path, ...]],
    where: str,
    timestamps: bool,
    prompts: DatasetPrompts | None,
) -> Row:
    dataset = DATASETS["mimeqa"]
    asked = column(record, "question", where).strip()
    stated = str(record.get("timestamp") or "").strip()
    if stated and stated.lower() not in ("nan", "none"):
        times = _TIMES.fullmatch(stated)
        if times is None:
            raise DataError(where, "'timestamp' is not (START, END)", "(12.0, 34.5) is an example", reason="wrong type")
        asked = f"Between {_seconds(times[1])} and {_seconds(times[2])} of the clip: {asked}" if timestamps else asked
    problem = open_question(dataset, tuple(media), asked, where=where, prompts=prompts)
    answer = column(record, "answer", where).strip()
    return open_row(dataset, sample_id=f"mimeqa-{number:04d}", clip_id=f"mimeqa-{name}", problem=problem, answer=answer, media=media)


def _seconds(stated: str) -> str:
    return stated if ":" in stated else f"{stated} s"


def _split(
    folder: Path, rows: list[Row], files: list[str], seed: int, by_clip: bool
) -> tuple[dict[str, list[Row]], dict[str, list[Difference]], str]:
    """Split -> rows, the differences that whole videos make, and the rule as a sentence."""
    path = first_file(folder, TEST_FILES)
    if path is not None:
        listed = read_json(path)
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise DataError(str(path), "is no list of file names", "use the file as published", reason="wrong type")
        stems = {PurePosixPath(name).stem for name in listed}
        if unknown := sorted(stems - set(files)):
            raise DataError(str(path), f"names {len(unknown)} videos without a question, the first {unknown[0]}", reason="unknown clip")
        split = {"train": [], "validation": [], "test": []}
        for row, name in zip(rows, files, strict=True):
            split["test" if name in stems else "train"].append(row)
        return split, {}, f"The test split is the videos of {path.name}."
    counts = share_out(DATASETS["mimeqa"], len(rows))
    split = split_rows(rows, [row.sample_id for row in rows] if by_clip else files, counts, seed, where=str(folder))
    shifts = {name: len(split[name]) - count for name, count in zip(SPLITS, counts, strict=True)}
    differences = {name: [Difference(shift, "a video's questions stay in one split")] for name, shift in shifts.items() if shift}
    unit = "question, so a video is in both splits" if by_clip else "video"
    return split, differences, f"The published list of test videos is not there; the split is ours, by {unit}."

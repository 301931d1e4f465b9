"""Converter of MMPsy: answers of students, scored for depression (PHQ-9) and anxiety (GAD-7). Texts of minors: rows are sensitive.

Expected in the folder, as published: `data/wav_select.json` or `wav_select.json`. Sound is not published, so rows are text-only.
The split is ours, by student, and the same for both tasks. No error repeats what a student said.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row
from hba_ray.convert.discretise import HIGHEST_SCORE, is_present
from hba_ray.convert.media import needed_file
from hba_ray.convert.splits import share_out, split_rows
from hba_ray.convert.tables import column, identifier, number, read_json
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

FILES = ("data/wav_select.json", "wav_select.json")
SCALES = {"mmpsy_depression": ("phq-label", "PHQ-9", "depression"), "mmpsy_anxiety": ("gad-label", "GAD-7", "anxiety")}
"""Dataset -> key of its score, questionnaire, label of those who score high."""
RULES = [
    "Depression from a PHQ-9 score of 10, anxiety from a GAD-7 score of 10.",
    "No official split; ours is by student, 70/15/15 as in Table 7, and one for both tasks. The authors' own is not published.",
]

_NUMBER = re.compile(r"(\d+)(?:\.\w+)?$")


def convert(request: ConversionRequest) -> Converted:
    """The rows of the datasets that are wanted; see `read_mmpsy`."""
    return read_mmpsy(
        request.folder,
        datasets=request.datasets,
        seed=request.seed,
        on_bad_row=request.spec.on_bad_row,
        prompts=request.prompts,
    )


def read_mmpsy(
    folder: Path,
    *,
    datasets: Collection[str] = tuple(SCALES),
    seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    prompts: DatasetPrompts | None = None,
) -> Converted:
    """The rows of MMPsy, student by student, one for each of `datasets`.

    Raises:
        DataError: names file, entry and reason, and no text.
    """
    path = needed_file(folder, FILES)
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(str(path), "is not a list of students", "use the file as published", reason="wrong type")
    chosen = [name for name in SCALES if name in datasets]
    sieve = Sieve("mmpsy", on_bad_row)
    of_student: dict[str, list[Row]] = {}
    for place, entry in enumerate(entries, 1):
        with sieve.row():
            where = f"{path}, entry {place}"
            student, rows = _rows(entry, chosen, where, prompts)
            if student in of_student:
                raise DataError(where, f"{student} occurs twice", reason="duplicate row")
            of_student[student] = rows
    first = [rows[0] for rows in of_student.values()]
    counts = share_out(DATASETS["mmpsy_depression"], len(first))
    placed = split_rows(first, list(of_student), counts, seed, where=str(path))
    rows_of = {row.clip_id: rows for rows in of_student.values() for row in rows}
    return Converted({split: [row for one in placed[split] for row in rows_of[one.clip_id]] for split in SPLITS}, sieve.drops, rules=RULES)


def _rows(entry: Any, datasets: list[str], where: str, prompts: DatasetPrompts | None) -> tuple[str, list[Row]]:
    """A student and the rows of all datasets."""
    if not isinstance(entry, dict):
        raise DataError(where, f"is {type(entry).__name__}, not an object", "use the file as published", reason="wrong type")
    student = identifier(entry, "user_id", where)
    said = _answers(entry.get("audios"), where)
    rows = []
    for name in datasets:
        key, scale, present = SCALES[name]
        scored = entry.get(key)
        if not isinstance(scored, dict):
            raise DataError(where, f"'{key}' is missing, or no object", "use the file as published", reason="missing value")
        score = number(scored.get("score"), f"{key}.score", where, lowest=0, highest=HIGHEST_SCORE[scale])
        label = present if is_present(scale, score) else f"no {present}"
        dataset = DATASETS[name]
        problem = question(dataset, (), said, where=where, prompts=prompts)
        clip = f"mmpsy-{student}"
        rows.append(labelled_row(dataset, sample_id=f"{name}-{student}", clip_id=clip, problem=problem, label=label, media={}))
    return student, rows


def _answers(audios: Any, where: str) -> str:
    """The answers in the order of their numbers, wav_2 before wav_10, a line each."""
    if not isinstance(audios, dict) or not audios:
        raise DataError(where, "'audios' holds no answers", "use the file as published", reason="missing value")
    numbers = {name: _NUMBER.search(name) for name in audios}
    ordered = sorted(audios, key=lambda name: int(found[1]) if (found := numbers[name]) else -1)
    if not all(numbers.values()):
        raise DataError(where, "an answer's name ends in no number", "wav_1.wav is an example", reason="bad name")
    return "\n".join(" ".join(column(audios, name, where).split()) for name in ordered)

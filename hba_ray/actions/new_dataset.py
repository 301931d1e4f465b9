"""`hba atlas new`: a commented `dataset.yaml` for the rows that lie in a folder; columns are guessed, labels counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hba_ray.convert.corpora.own import records
from hba_ray.convert.tables import is_name
from hba_ray.data.tasks import BENCHMARK_TASKS, CLASS_TASKS, Task, find_dataset
from hba_ray.data.text import comparable, visible
from hba_ray.errors import DataError
from hba_ray.specs.reading.yaml_text import dump_yaml
from hba_ray.specs.sections.own import DECLARATION
from hba_ray.store.folders import write_text

MOST_LABELS = 40
"""A column with more different values holds open answers."""
_SUFFIXES = {
    "video": (".mp4", ".mkv", ".webm", ".avi", ".mov"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
    "image": (".png", ".jpg", ".jpeg", ".webp"),
}
_NAMES = {
    "answer": (
        "label",
        "emotion",
        "sentiment",
        "class",
        "target",
        "answer",
        "verdict",
        "annotation",
        "rating",
        "category",
        "reply",
        "response",
    ),
    "transcript": ("transcript", "text", "utterance", "sentence", "said", "note"),
    "question": ("question", "query"),
    "split": ("split", "mode", "fold", "partition"),
    "group": (
        "speaker",
        "actor",
        "group",
        "participant",
        "subject",
        "person",
        "patient",
        "user",
        "who",
        "pid",
        "dialogue",
        "session",
        "scene",
    ),
    "id": ("id", "row_id", "sample_id", "utterance_id", "utt_id", "clip_id", "segment_id"),
}


def new_dataset(folder: Path) -> tuple[Path, dict[str, int]]:
    """Writes the declaration of the rows in a folder.

    Returns:
        the file, and the labels with their rows; empty for open answers.

    Raises:
        DataError: there is a declaration already, no csv or jsonl, or several; no column could be the answer, or all rows have one label.
    """
    target = folder / DECLARATION
    if target.exists():
        raise DataError(str(target), "is there already", "edit it, or move it away", reason="two versions")
    file = _file(folder)
    rows = _rows(file)
    columns = guess_columns(folder, rows)
    if "answer" not in columns:
        what = f"has no column, or several, that could be the label or the answer: {', '.join(rows[0])}"
        raise DataError(str(file), what, "name that of the labels label, or that of open answers answer", reason="missing column")
    values = Counter(comparable(str(row.get(columns["answer"]) or "")) for row in rows)
    labels = {label: number for label, number in values.most_common() if label} if len(values) <= MOST_LABELS else {}
    if len(labels) == 1 and _task_of(labels) is None:
        what = f"all rows have the same value in column '{columns['answer']}', and a task has two labels or more"
        raise DataError(str(file), what, "name the column of the labels label", reason="one label")
    write_text(target, _declaration(folder, file, columns, labels))
    return target, labels


def guess_columns(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a column holds -> its name, by what its values are (files that are there) or else by its name."""
    found: dict[str, str] = {}
    names = list(dict.fromkeys(name for record in records for name in record))
    for name in names:
        values = [str(record[name]) for record in records if record.get(name)]
        for modality, suffixes in _SUFFIXES.items():
            are_files = values and all(Path(value).suffix.lower() in suffixes for value in values)
            if are_files and modality not in found and all(map(is_name, Path(values[0]).parts)) and (folder / values[0]).is_file():
                found[modality] = name
    for what, words in _NAMES.items():
        free = [name for name in names if name not in found.values()]
        exact = [name for word in words for name in free if name.lower() == word]
        near = [name for word in words for name in free if word in re.split(r"[^a-z]+", name.lower()) and what not in ("id",)]
        if exact or near:
            found[what] = (exact or near)[0]
    labels = [name for name in names if name not in found.values() and _are_labels([record.get(name) for record in records])]
    if "answer" not in found and len(labels) == 1:
        found["answer"] = labels[0]
    return found


def _are_labels(values: Sequence[Any]) -> bool:
    """Whether a column could be that of the labels: all rows have one, there are few, and each comes again."""
    counts = Counter(comparable(str(value or "")) for value in values)
    return "" not in counts and 2 <= len(counts) <= MOST_LABELS and min(counts.values()) > 1


def _file(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(str(folder), "no such folder", "give the folder of a csv or jsonl", reason="missing file")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".csv", ".jsonl") and not path.name.startswith(".")]
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise DataError(
            str(folder), f"holds not one csv or jsonl: {names}", "keep one; rows of several files can be joined", reason="no rows"
        )
    return files[0]


def _rows(file: Path) -> list[Mapping[str, Any]]:
    """The rows that can be read, as the converter will read them."""
    found = [record for _, record in records(file, ()) if record]
    if not found:
        raise DataError(str(file), "holds no row that can be read", "a csv has a header, and a jsonl one object a line", reason="no rows")
    return found


def _id_of(folder: Path) -> str:
    """An id for the dataset in a folder, by the folder's name."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.absolute().name.lower()).strip("_")
    if not re.match(r"[a-z].", name):
        return f"own_{name}"[:40]
    try:
        is_taken = not find_dataset(name).is_own
    except DataError:
        is_taken = False
    return (f"own_{name}" if is_taken else name)[:40]


def _task_of(labels: Mapping[str, int]) -> Task | None:
    """The task of the benchmark that has all these labels."""
    return next((task for task in CLASS_TASKS if labels and set(labels) <= set(task.labels)), None)


def _declaration(folder: Path, file: Path, columns: Mapping[str, str], labels: Mapping[str, int]) -> str:
    """The text of the file, with a comment at whatever was guessed."""
    known, name = _task_of(labels), _id_of(folder)
    task_id = (f"OWN_{name}" if name.upper() in {task.id for task in BENCHMARK_TASKS} else name).upper()[:16]
    counted = ", ".join(f"{visible(label)} {rows}" for label, rows in labels.items())
    if known is not None:
        task = f"# All labels are those of {known.name}: {counted}.\n" + dump_yaml({"task": known.id, "labels": list(labels)})
    elif labels:
        made = {"id": task_id, "name": "what is asked", "labels": list(labels), "metric": "weighted_f1"}
        task = f"# A task of your own, with a head of its own. Rows: {counted}.\n" + dump_yaml({"task": made})
    else:
        made = {"id": task_id, "name": "what is asked", "metric": "judge_accuracy"}
        rubric = {"rubric": "The answer is right if it says the same as the reference."}
        task = "# Open answers, which a judge grades by this rubric.\n" + dump_yaml({"task": {**made, **rubric}})
    asked = {} if "question" in columns and not labels else {"prompt": "What does the person in the clip show?"}
    shown = {what: one for what, one in columns.items() if what != "question" or not labels}
    others = [what for what in ("video", "audio", "image", "transcript", "group", "split", "id") if what not in shown]
    return "\n".join(
        [
            f"# Describes {visible(file.name)} to hba_ray. Guessed from the files; correct what is wrong.",
            dump_yaml({"dataset": name, "title": folder.absolute().name}).rstrip(),
            task.rstrip(),
            dump_yaml({"file": file.name}).rstrip(),
            f"# What the columns hold. Not found: {', '.join(others) or 'nothing'}.",
            dump_yaml({"columns": shown}).rstrip(),
            *(["# What each row is asked; the labels are named behind it.", dump_yaml(asked).rstrip()] if asked else []),
            *(
                []
                if "split" in shown
                else ["# Shares of train, validation and test; rows of one group stay together.", "splits: [0.7, 0.15, 0.15]"]
            ),
            "# Texts of patients and the like belong in no error, log, page or MLflow store: then true.",
            "sensitive: false",
            "",
        ]
    )

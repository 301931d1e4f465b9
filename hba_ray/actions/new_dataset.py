"""`hba atlas new`: a commented `dataset.yaml` for the rows that lie in a folder; columns are guessed, labels counted."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hba_ray.convert.tables import read_text
from hba_ray.data.tasks import CLASS_TASKS, Task
from hba_ray.data.text import comparable
from hba_ray.errors import DataError
from hba_ray.specs.reading.yaml_text import dump_yaml
from hba_ray.specs.sections.own import DECLARATION
from hba_ray.store.folders import write_text

MOST_LABELS = 40
"""A column with more different values holds open answers."""
ROWS_LOOKED_AT = 2000
_SUFFIXES = {
    "video": (".mp4", ".mkv", ".webm", ".avi", ".mov"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
    "image": (".png", ".jpg", ".jpeg", ".webp"),
}
_NAMES = {
    "answer": ("label", "emotion", "sentiment", "class", "target", "answer", "verdict", "annotation"),
    "transcript": ("transcript", "text", "utterance", "sentence", "said"),
    "question": ("question", "query"),
    "split": ("split", "mode", "fold", "partition"),
    "group": ("speaker", "actor", "group", "participant", "subject", "dialogue", "scene"),
    "id": ("id", "row_id", "sample_id", "utterance_id"),
}


def new_dataset(folder: Path) -> tuple[Path, dict[str, int]]:
    """Writes the declaration of the rows in a folder.

    Returns:
        the file, and the labels with their rows; empty for open answers.

    Raises:
        DataError: there is a declaration already, no csv or jsonl, or several; or no column could be the answer.
    """
    target = folder / DECLARATION
    if target.exists():
        raise DataError(str(target), "is there already", "edit it, or move it away", reason="two versions")
    file = _file(folder)
    records = _records(file)
    columns = guess_columns(folder, records)
    if "answer" not in columns:
        what = f"has no column that could be the label or the answer: {', '.join(records[0])}"
        raise DataError(str(file), what, "give it one named label or answer", reason="missing column")
    values = Counter(comparable(str(record.get(columns["answer"]) or "")) for record in records)
    labels = {label: rows for label, rows in values.most_common() if label} if len(values) <= MOST_LABELS else {}
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
            if are_files and modality not in found and (folder / values[0]).is_file():
                found[modality] = name
    for what, words in _NAMES.items():
        free = [name for name in names if name not in found.values()]
        exact = [name for word in words for name in free if name.lower() == word]
        near = [name for word in words for name in free if word in re.split(r"[^a-z]+", name.lower()) and what not in ("id",)]
        if exact or near:
            found[what] = (exact or near)[0]
    return found


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


def _records(file: Path) -> list[dict[str, Any]]:
    text = read_text(file)
    if file.suffix.lower() == ".csv":
        found: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))[:ROWS_LOOKED_AT]
    else:
        try:
            found = [json.loads(line) for line in text.splitlines()[:ROWS_LOOKED_AT] if line.strip()]
        except (ValueError, RecursionError) as cause:
            raise DataError(str(file), f"is not jsonl: {cause}", "write one object a line", reason="not JSON") from None
    records = [{str(name): value for name, value in one.items() if name is not None} for one in found if isinstance(one, dict)]
    if not records:
        raise DataError(str(file), "holds no rows", "give it a header and rows", reason="no rows")
    return records


def _task_of(labels: Mapping[str, int]) -> Task | None:
    """The task of the benchmark that has all these labels."""
    return next((task for task in CLASS_TASKS if labels and set(labels) <= set(task.labels)), None)


def _declaration(folder: Path, file: Path, columns: Mapping[str, str], labels: Mapping[str, int]) -> str:
    """The text of the file, with a comment at whatever was guessed."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.absolute().name.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"own_{name}"
    known = _task_of(labels)
    counted = ", ".join(f"{label} {rows}" for label, rows in labels.items())
    if known is not None:
        task = f"# All labels are those of {known.name}: {counted}.\n" + dump_yaml({"task": known.id, "labels": list(labels)})
    elif labels:
        made = {"id": "OWN", "name": "what is asked", "labels": list(labels), "metric": "weighted_f1"}
        task = f"# A task of your own, with a head of its own. Rows: {counted}.\n" + dump_yaml({"task": made})
    else:
        made = {"id": "OWN", "name": "what is asked", "metric": "judge_accuracy"}
        rubric = {"rubric": "The answer is right if it says the same as the reference."}
        task = "# Open answers, which a judge grades by this rubric.\n" + dump_yaml({"task": {**made, **rubric}})
    asked = {} if "question" in columns and not labels else {"prompt": "What does the person in the clip show?"}
    shown = {what: one for what, one in columns.items() if what != "question" or not labels}
    others = [what for what in ("video", "audio", "image", "transcript", "group", "split", "id") if what not in shown]
    return "\n".join(
        [
            f"# Describes {file.name} to hba_ray. Guessed from the files; correct what is wrong.",
            dump_yaml({"dataset": name[:40], "title": folder.absolute().name}).rstrip(),
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

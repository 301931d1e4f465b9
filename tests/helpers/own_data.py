"""A user's own data: short sounds with labels of a task that the benchmark does not have, or with open questions."""

import csv
import json
from pathlib import Path

import numpy as np

from hba_ray.data.toy import speak
from hba_ray.specs.sections.own import OwnDataset

POLITE = """\
dataset: {id}
task: {{id: {task}, name: politeness, labels: [rude, polite], metric: weighted_f1}}
columns: {{answer: verdict, audio: sound, transcript: said, group: speaker}}
prompt: Is the speaker polite?
"""


def write_own(folder: Path, *, dataset: str = "courtesy", task: str = "POLITE", rows: int = 24, declared: bool = True) -> Path:
    """Sounds of four rows a speaker, low for rude and high for polite."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("sound", "said", "verdict", "speaker"))
        for place in range(rows):
            name = f"clips/{place:02d}.wav"
            (folder / name).write_bytes(speak(("sad", "happy")[place % 2], rng))
            writer.writerow((name, f"Sentence {place}, if you please.", ("rude", "Polite ")[place % 2], f"s{place // 4}"))
    if declared:
        (folder / "dataset.yaml").write_text(POLITE.format(id=dataset, task=task))
    return folder


def write_questions(folder: Path) -> Path:
    """Open questions in jsonl, with their own splits."""
    folder.mkdir(parents=True)
    rows = [
        {"q": f"Why does she do it, in scene {place}?", "reply": "To help.", "part": ("train", "val", "test")[place % 3]}
        for place in range(9)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dataset.yaml").write_text(
        "dataset: motives\n"
        "task: {id: MOTIVE, name: motives, metric: judge_accuracy, rubric: Right if the motive is the same.}\n"
        "file: rows.jsonl\ncolumns: {answer: reply, question: q, split: part}\n"
    )
    return folder


def sensitive_questions() -> str:
    """The id of a dataset with open answers whose texts are sensitive, made known in this process."""
    task = {"id": "DIARY", "name": "what is told", "metric": "judge_accuracy", "rubric": "Right if it says the same."}
    columns = {"answer": "told", "question": "asked", "transcript": "said", "split": "part"}
    stated = {"dataset": "diaries", "task": task, "file": "rows.jsonl", "columns": columns, "sensitive": True}
    return OwnDataset.model_validate(stated).dataset

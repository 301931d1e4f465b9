"""A bag of words finds what words give away, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from hba_ray.data.atlas import build_index
from hba_ray.data.predictions import SCHEMA
from hba_ray.evaluation.words import probe_words
from hba_ray.specs import AtlasSpec


def write(folder: Path, *, telling: bool) -> Path:
    """An atlas of twenty training and ten test rows; the word that tells the label is in the prompt, or is not."""
    folder.mkdir()
    for split, count in (("train", 20), ("test", 10)):
        lines = []
        for number in range(count):
            label = ("sarcasm", "not sarcasm")[number % 2]
            word = {"sarcasm": "obviously", "not sarcasm": "kindly"}[label] if telling else "perhaps"
            problem = f"Number {number} said it {word}.\nIs this sarcasm?"
            row = {"problem": problem, "answer": label, "dataset": "mmsd", "class_label": label, "sample_id": f"{split}-{number}"}
            lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def right(folder: Path) -> float:
    table, probed = probe_words(build_index(AtlasSpec(root=str(folder)), folder), "test")
    assert table.schema == SCHEMA and len(table) == 10 and probed == ["mmsd"]
    return sum(row["predicted"] == row["true"] for row in table.to_pylist()) / 10


def test_a_telling_word_is_found_and_a_silent_one_leaves_the_majority(tmp_path: Path):
    assert right(write(tmp_path / "telling", telling=True)) == 1.0
    assert right(write(tmp_path / "silent", telling=False)) <= 0.6

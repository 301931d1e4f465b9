"""`hba atlas check` finds what is in two splits or twice in one, in both released layouts, and names each row in a file."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from hba_ray.cli import main as cli
from hba_ray.data.rows import SCHEMA
from hba_ray.data.tasks import SPLITS
from tests.helpers.films import film

Record = dict[str, Any]
Splits = dict[str, list[Record]]


def sound(seed: int, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(seed).uniform(-6000, 6000, 4000)
    soundfile.write(file, values.astype(np.int16), 16_000, format=kind, subtype="PCM_16")
    return file.getvalue()


def picture(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def row(split: str, place: int) -> Record:
    """A row of CREMA-D that shares nothing with another one."""
    number = 100 * SPLITS.index(split) + place
    return {
        **{"problem": f"<audio>\nFeels? {split} {place}", "answer": ("anger", "sad", "neutral")[place % 3], "dataset": "cremad"},
        **{"sample_id": f"{split}-{place}", "clip_id": f"{1000 + number}_DFA_ANG_XX", "audios": [sound(number)]},
    }


def same(rows: Splits, place: int, *names: str) -> None:
    """A row of the test split gets these values of a row in training."""
    rows["test"][place] |= {name: rows["train"][place][name] for name in names}


def same_picture(rows: Splits, place: int) -> None:
    for split, kind in (("train", "PNG"), ("test", "BMP")):
        rows[split][place] |= {"problem": f"<image>\nFeels? {split} {place}", "audios": [], "images": [picture(place, kind)]}


def same_film(rows: Splits, place: int, folder: Path) -> None:
    for split, name in (("train", "a.mp4"), ("test", "a.mkv")):
        clip = film(folder / name, "mpeg4", 10)
        rows[split][place] |= {"problem": f"<video>\nFeels? {split} {place}", "audios": [], "videos": [clip]}


def same_of(corpus: dict[str, tuple[str, str, str]]) -> Callable[[Splits, int], None]:
    """Rows of other corpora, by split: dataset, answer, name of the clip."""

    def leak(rows: Splits, place: int) -> None:
        for split, (dataset, answer, clip) in corpus.items():
            rows[split][place] |= {"dataset": dataset, "answer": answer, "clip_id": clip}

    return leak


LEAKS: list[tuple[str, str, Callable[[Splits, int], None]]] = [
    ("test-0", "row in two splits", lambda rows, place: same(rows, place, "problem", "answer", "audios")),
    ("train-1", "sample_id in two splits", lambda rows, place: same(rows, place, "sample_id")),
    ("test-2", "clip in two splits", lambda rows, place: same(rows, place, "clip_id")),
    ("test-3", "content in two splits", lambda rows, place: rows["test"][place].update(audios=[sound(place, "FLAC")])),
    ("test-4", "content in two splits", same_picture),
    ("test-5", "actor in two splits", lambda rows, place: rows["test"][place].update(clip_id=f"{1000 + place}_TSI_SAD_XX")),
    (
        "test-6",
        "video in two splits",
        same_of({"train": ("mosei_senti", "neutral", "mosei-a_b-3"), "test": ("mosei_emotion", "sad", "mosei-a_b-12")}),
    ),
    (
        "test-7",
        "session in two splits",
        same_of({"train": ("iemocap", "sad", "iemocap-Ses01F_impro01_F000"), "test": ("iemocap", "anger", "iemocap-Ses01M_script01_M001")}),
    ),
    ("row 8", "duplicate sample", lambda rows, place: rows["test"].insert(place, dict(rows["test"][place - 1]))),
    ("again", "row twice", lambda rows, place: rows["test"].append(rows["test"][place + 1] | {"sample_id": "again"})),
    ("train-10", "sample_id twice", lambda rows, place: rows["train"].append(dict(rows["train"][place]))),
]
"""Row that is named, kind of the finding, what leaks: a row whose place is the number of the leak."""


def write(folder: Path, rows: Splits, layout: str) -> Path:
    (folder / "clips").mkdir(parents=True)
    for split, records in rows.items():
        if layout == "parquet":
            pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), folder / f"{split}-00000-of-00001.parquet")
            continue
        for place, record in enumerate(records):
            for column in ("images", "videos", "audios"):
                clips = record.get(column, [])
                record[column] = [f"clips/{split}{place}-{number}" for number in range(len(clips))]
                for name, clip in zip(record[column], clips, strict=True):
                    (folder / name).write_bytes(clip)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
def test_leaks_of_all_kinds_in_one_atlas_are_each_found_and_named(tmp_path: Path, monkeypatch, capsys, layout: str):
    rows = {split: [row(split, place) for place in range(16)] for split in SPLITS}
    same_film(rows, 15, tmp_path)
    for place, (*_, leak) in enumerate(LEAKS):
        leak(rows, place)
    folder = write(tmp_path / "atlas", rows, layout)
    words = ["atlas", "check", str(folder), "atlas.on_bad_row=drop", f"compute.storage={tmp_path / 'runs'}", "compute.workers=0"]
    monkeypatch.setattr("sys.argv", ["hba", *words, "--clips", "--strict", "--to", str(tmp_path / "found.csv")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert end.value.code == 3 and "Findings" in said
    with (tmp_path / "found.csv").open(newline="") as file:
        found = {(one["kind"], one["row"]) for one in csv.DictReader(file) if one["kind"] != "labels"}
    for name, kind in [*((name, kind) for name, kind, _ in LEAKS), ("test-15", "content in two splits")]:
        assert any(one == kind and name in place for one, place in found), (name, kind)
    assert all(kind in said for _, kind, _ in LEAKS)

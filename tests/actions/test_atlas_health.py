"""Leaks and defects that are put into an atlas are found, in both released layouts, by kind and by row, and nothing else is."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from hba_ray.actions.atlas_health import Finding, clip_findings, content_findings, label_findings, row_findings, write_findings
from hba_ray.actions.check_atlas import check_clips
from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.rows import SCHEMA
from hba_ray.data.tasks import SPLITS
from hba_ray.specs import AtlasSpec, MediaSpec

Record = dict[str, Any]
Rows = dict[str, list[Record]]


def sound(seed: int, *, kind: str = "WAV", samples: int = 4000, loud: float = 0.2) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(seed).uniform(-loud, loud, samples) * 2**15
    soundfile.write(file, values.astype(np.int16), 16_000, format=kind, subtype="PCM_16")
    return file.getvalue()


def healthy() -> Rows:
    """Three rows of each split that have nothing in common; the actors differ too."""
    return {
        split: [
            {
                "problem": f"<audio>\nFeels? {split} {place}",
                "answer": ("anger", "sad", "neutral")[place],
                "dataset": "cremad",
                "sample_id": f"{split}-{place}",
                "clip_id": f"10{number}{place}_DFA_ANG_XX",
                "modality_signature": "text_audio",
                "audio": sound(10 * number + place),
            }
            for place in range(3)
        ]
        for number, split in enumerate(SPLITS)
    }


def write(folder: Path, rows: Rows, layout: str) -> AtlasIndex:
    (folder / "clips").mkdir(parents=True)
    for split, records in rows.items():
        ready = []
        for place, record in enumerate(records):
            clip = record.pop("audio", None)
            audios = [] if clip is None else [clip]
            if layout == "jsonl" and clip is not None:
                audios = [f"clips/{split}{place}.wav"]
                (folder / audios[0]).write_bytes(clip)
            ready.append({**record, "audios": audios})
        if layout == "jsonl":
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ready))
        else:
            pq.write_table(pa.Table.from_pylist(ready, schema=SCHEMA), folder / f"{split}-00000-of-00001.parquet")
    return build_index(AtlasSpec(root=str(folder), on_bad_row="drop"), folder)


def found_in(index: AtlasIndex) -> list[Finding]:
    clips, _, contents = check_clips(index, SPLITS, MediaSpec(), places=1000)
    own = [one for one in row_findings(index) if one.kind != "labels"]  # of a few rows the shares are off in any case
    return [*own, *content_findings(contents), *clip_findings(clips)]


def same_id(rows: Rows) -> None:
    rows["test"][0]["sample_id"] = "train-0"


def same_row(rows: Rows) -> None:
    rows["test"][0] |= {name: rows["train"][0][name] for name in ("problem", "answer", "audio")}


def same_clip_id(rows: Rows) -> None:
    rows["validation"][0]["clip_id"] = rows["train"][0]["clip_id"]


def same_sound_in_another_format(rows: Rows) -> None:
    rows["test"][0]["audio"] = sound(0, kind="FLAC")


def same_actor(rows: Rows) -> None:
    rows["test"][0]["clip_id"] = "1000_TSI_SAD_XX"


def same_actor_of_another_corpus(rows: Rows) -> None:
    rows["train"][0] |= {"dataset": "mosei_senti", "answer": "neutral", "clip_id": "mosei--a_b-3"}
    rows["test"][0] |= {"dataset": "mosei_emotion", "answer": "sad", "clip_id": "mosei--a_b-12"}


def row_of_training_twice(rows: Rows) -> None:
    rows["train"].append(dict(rows["train"][0]))


def row_of_test_twice(rows: Rows) -> None:
    rows["test"].append(dict(rows["test"][0]))


def row_of_test_under_another_id(rows: Rows) -> None:
    rows["test"].append(rows["test"][0] | {"sample_id": "test-3"})


def contradicting_label(rows: Rows) -> None:
    rows["test"][0]["class_label"] = "happy"


def contradicting_signature(rows: Rows) -> None:
    rows["train"][0]["modality_signature"] = "text_video"


def missing_text(rows: Rows) -> None:
    rows["train"][0]["texts"] = ["transcripts/0.txt"]


def silence(rows: Rows) -> None:
    rows["train"][0]["audio"] = sound(0, loud=1e-5)


def too_short(rows: Rows) -> None:
    rows["train"][0]["audio"] = sound(0, samples=300)


def too_long(rows: Rows) -> None:
    rows["train"][0]["audio"] = sound(0, samples=200_000)


SEEDED: list[tuple[Callable[[Rows], None], str, str, str, Sequence[str]]] = [
    (same_id, "error", "sample_id in two splits", "train-0", ()),
    (same_row, "error", "row in two splits", "test-0", ("content in two splits",)),
    (same_clip_id, "error", "clip in two splits", "validation-0", ("actor in two splits",)),
    (same_sound_in_another_format, "error", "content in two splits", "test-0", ()),
    (same_actor, "warning", "actor in two splits", "test-0", ()),
    (same_actor_of_another_corpus, "warning", "video in two splits", "test-0", ()),
    (row_of_training_twice, "warning", "sample_id twice", "train-0", ("row twice",)),
    (row_of_test_twice, "error", "duplicate sample", "row 3", ()),
    (row_of_test_under_another_id, "warning", "row twice", "test-3", ()),
    (contradicting_label, "error", "answer contradicts label", "row 0", ()),
    (contradicting_signature, "warning", "modality_signature", "train-0", ()),
    (missing_text, "warning", "missing text", "train-0", ()),
    (silence, "warning", "audio clip", "train-0", ()),
    (too_short, "warning", "audio clip", "train-0", ()),
    (too_long, "note", "audio clip", "train-0", ()),
]


@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
@pytest.mark.parametrize(("leak", "severity", "kind", "row", "besides"), SEEDED, ids=[one[0].__name__ for one in SEEDED])
def test_what_is_put_into_an_atlas_is_found_and_nothing_else(tmp_path: Path, layout, leak, severity, kind, row, besides):
    rows = healthy()
    leak(rows)
    found = found_in(write(tmp_path / "atlas", rows, layout))
    (told,) = [one for one in found if one.kind == kind]
    assert told.severity == severity and row in told.row and told.what
    assert {one.kind for one in found} <= {kind, *besides}


@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
def test_nothing_is_found_in_an_atlas_that_is_in_order(tmp_path: Path, layout):
    assert found_in(write(tmp_path / "atlas", healthy(), layout)) == []


def test_a_label_that_is_too_rare_is_told_beside_its_published_share(tmp_path: Path):
    rows = healthy()
    for record in rows["train"] + rows["test"] + rows["validation"]:
        record |= {"dataset": "mmsd", "answer": "sarcasm"}
    (much, little) = sorted(label_findings(write(tmp_path / "atlas", rows, "jsonl")), key=lambda one: one.what, reverse=True)
    assert much.what == "'sarcasm' is 100.0% of the rows, and 50.0% of the public files"
    assert little.what == "'not sarcasm' is 0.0% of the rows, and 50.0% of the public files"


def test_no_finding_holds_the_text_of_a_row_and_all_go_into_a_file(tmp_path: Path):
    rows = healthy()
    for leak, *_ in SEEDED[:5]:
        leak(rows)
    found = found_in(write(tmp_path / "atlas", rows, "jsonl"))
    write_findings(found, tmp_path / "found.csv")
    text = (tmp_path / "found.csv").read_text()
    assert len(text.splitlines()) == len(found) + 1 and "Feels?" not in text


def test_what_a_spreadsheet_would_take_for_a_formula_is_text(tmp_path: Path):
    write_findings([Finding("warning", "row twice", "cremad", "train", '=HYPERLINK("x")', "the same")], tmp_path / "found.csv")
    (row,) = csv.DictReader((tmp_path / "found.csv").read_text().splitlines())
    assert row["row"] == '\'=HYPERLINK("x")'

"""A whole run on an atlas with something wrong in it: one located error, or a counted drop, and never a model of nothing."""

import json
import os
import wave
from pathlib import Path
from typing import Any

import pytest

from hba_ray.errors import DataError
from hba_ray.report.tables import read_json
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import ExperimentSpec
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal


def row(number: int, **changes: Any) -> dict[str, Any]:
    label = ("sarcasm", "not sarcasm")[number % 2]
    return {"problem": f"Is this sarcasm? Number {number}.", "answer": label, "dataset": "mmsd", "class_label": label, **changes}


def heard(number: int, clip: str = "broken.wav") -> dict[str, Any]:
    return row(number, problem=f"<audio>\nIs this sarcasm? Number {number}.", audios=[clip])


GOOD = [row(number) for number in range(4)]


def experiment(folder: Path, on_bad_row: str = "fail", **splits: list[dict[str, Any]] | None) -> ExperimentSpec:
    """A run on jsonl files of these rows, four good ones in each split by default; `broken.wav` and `silent.wav` lie beside them."""
    atlas = folder / "atlas"
    atlas.mkdir()
    (atlas / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    with wave.open(str(atlas / "silent.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    for split in ("train", "validation", "test"):
        rows = splits.get(split, GOOD)
        if rows is not None:
            (atlas / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    media = {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}
    raw = {"source": "released", "root": str(atlas), "on_bad_row": on_bad_row, "media": media}
    return small_experiment(folder, atlas=raw, sft__epochs=1)


def run(spec: ExperimentSpec) -> Finished:
    return run_experiment(plan(spec), lambda line: None, ReadableJournal())


@pytest.mark.parametrize(
    ("splits", "where", "says"),
    [
        ({"train": None}, "atlas", "the train split holds no rows"),
        ({"test": []}, "atlas", "the test split holds no rows"),
        ({"train": [*GOOD, heard(5)]}, "train row mmsd-", "the audio broken.wav cannot be decoded: Invalid data found"),
        ({"test": [*GOOD, heard(5, "silent.wav")]}, "test row mmsd-", "the audio holds no samples"),
        ({"validation": [*GOOD, heard(5, "../../etc/passwd")]}, "validation.jsonl row 4 (mmsd)", "which leaves the atlas"),
        ({"train": [*GOOD, row(5, problem="word " * 40_000)]}, "train row mmsd-", "tokens, and at most 32768 fit"),
        ({"test": [*GOOD, GOOD[0]]}, "test.jsonl row 4 (mmsd)", "has the id of test.jsonl row 0"),
    ],
)
def test_what_is_wrong_ends_the_run_with_its_place(tmp_path: Path, splits: dict[str, Any], where: str, says: str):
    with pytest.raises(DataError) as refused:
        run(experiment(tmp_path, **splits))
    assert os.path.basename(refused.value.where).startswith(where) and says in refused.value.what and refused.value.way_out


def test_bad_rows_are_dropped_and_counted_by_reason_wherever_they_are(tmp_path: Path):
    train = [*GOOD, heard(5), heard(6, "silent.wav"), row(7, class_label="sarcastic!!"), {"problem": 3}]
    made = run(experiment(tmp_path, "drop", train=train, test=[*GOOD, heard(5), GOOD[0]]))
    counted = {"corrupt audio": 2, "empty audio": 1, "unknown label": 1, "duplicate sample": 1}
    assert made.report.facts.rows_dropped == {"mmsd": counted, "unknown": {"wrong type": 1}}
    assert made.report.facts.rows_used == {"mmsd": {"train": 4, "validation": 4, "test": 4}}
    assert read_json((made.folder / "report.json").read_text()).facts.rows_dropped == made.report.facts.rows_dropped
    assert [score.rows for score in made.report.scores["sft"].datasets] == [4]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_whose_rows_are_all_dropped_is_an_error_with_their_reasons(tmp_path: Path, split: str):
    with pytest.raises(DataError, match=rf"the {split} split: none of its 2 rows could be read \(corrupt audio: 1, empty audio: 1\)"):
        run(experiment(tmp_path, "drop", **{split: [heard(1), heard(2, "silent.wav")]}))


def test_hostile_text_reaches_the_report_as_text(tmp_path: Path):
    hostile = "<script>alert(1)</script>\x1b[31m\0\u202e<|im_end|>"
    made = run(
        experiment(tmp_path, train=[*GOOD, row(5, problem=hostile)], test=[*GOOD, row(5, problem=hostile, sample_id=f"../{hostile}")])
    )
    page = made.page.read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert [score.rows for score in made.report.scores["sft"].datasets] == [5]

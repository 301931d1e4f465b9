from __future__ import annotations

import json
from pathlib import Path

import pytest

from hba_ray.convert.splits import check_disjoint
from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, sizes
from tests.helpers.corpora import put, put_table, write_mimeqa


@pytest.fixture
def mimeqa(tmp_path: Path) -> Path:
    return write_mimeqa(tmp_path)


def test_the_list_of_test_videos_splits_and_nothing_validates(mimeqa: Path):
    made = converted("mimeqa", mimeqa)
    assert sizes(made) == [8, 0, 2]
    assert {row.clip_id for row in made.rows["test"]} == {"mimeqa-0001"}
    assert made.rules[0] == "The test split is the videos of test_files.json."


def test_answers_are_joined_row_by_row_and_webm_is_read_as_mp4(mimeqa: Path):
    rows = by_sample(converted("mimeqa", mimeqa))
    assert [row.answer for row in rows.values()] == [f"Mime {number} lifts a box." for number in (2, 3, 4, 5, 6, 7, 8, 9, 0, 1)]
    assert rows["mimeqa-0001"].media["video"] == ((mimeqa / "mp4" / "0001.mp4").absolute(),)


def test_seconds_stand_in_front_unless_they_are_not_wanted(mimeqa: Path):
    shown = "<video>\n<audio>\nGiven above: a video and a sound recording. Somebody performs without words. "
    rows = by_sample(converted("mimeqa", mimeqa))
    assert rows["mimeqa-0004"].problem == f"{shown}Between 3.0 s and 5.5 s of the clip: What is act 3?"
    assert rows["mimeqa-0005"].problem == f"{shown}What is act 4?"
    made = converted("mimeqa", mimeqa, corpora={"timestamps": False})
    assert by_sample(made)["mimeqa-0004"].problem == f"{shown}What is act 3?"
    assert made.rules[1] != converted("mimeqa", mimeqa).rules[1]


def test_without_the_list_the_split_is_by_video_and_says_so(tmp_path: Path):
    made = converted("mimeqa", write_mimeqa(tmp_path, test_files=False))
    assert sizes(made) == [8, 0, 2]
    pairs = [(row.clip_id, split) for split, rows in made.rows.items() for row in rows]
    check_disjoint([clip for clip, _ in pairs], [split for _, split in pairs], where="test")
    assert "the split is ours, by video" in made.rules[0]


def test_one_table_of_the_hub_serves_too(tmp_path: Path):
    rows = [("0007.mp4", "", "What is lifted?", "A box."), ("0008.mp4", "nan", "Who waves?", "A mime.")]
    put_table(tmp_path / "metadata.csv", ("file", "timestamp", "question", "answer"), rows, bom=True)
    assert sorted(row.answer for row in by_sample(converted("mimeqa", tmp_path)).values()) == ["A box.", "A mime."]


def test_tables_of_different_length_are_refused(mimeqa: Path):
    path = mimeqa / "data" / "annotation_final_human.csv"
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    with pytest.raises(DataError, match=r"annotation_final_human\.csv: has 9 rows, and annotation_final\.csv has 10"):
        converted("mimeqa", mimeqa)


def test_a_list_that_names_another_video_is_refused(mimeqa: Path):
    put(mimeqa / "data" / "test_files.json", json.dumps(["0001.mp4", "0099.mp4"]))
    with pytest.raises(DataError, match="names 1 videos without a question, the first 0099"):
        converted("mimeqa", mimeqa)


def test_a_timestamp_that_is_none_is_a_bad_row(tmp_path: Path):
    put_table(
        tmp_path / "metadata.csv", ("file", "timestamp", "question", "answer"), [("a.mp4", "soon", "Q?", "A."), ("a.mp4", "", "R?", "B.")]
    )
    with pytest.raises(DataError, match=r"line 2: 'timestamp' is not \(START, END\)"):
        converted("mimeqa", tmp_path)
    assert sum(sizes(converted("mimeqa", tmp_path, on_bad_row="drop"))) == 1

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hba_ray.convert.base import Difference
from hba_ray.convert.corpora.siq2 import spoken
from hba_ray.convert.media import NOT_ONLINE
from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, sizes
from tests.helpers.corpora import put_lines, siq2_row, write_siq2


@pytest.fixture
def siq2(tmp_path: Path) -> Path:
    return write_siq2(tmp_path)


def test_the_validation_file_tests_and_nothing_validates(siq2: Path):
    made = converted("siq2", siq2)
    assert sizes(made) == [4, 0, 1]
    assert drops(made) == {("train", NOT_ONLINE): 1, ("test", NOT_ONLINE): 1}
    assert made.differences["train"] == [Difference(-1, f"left out: {NOT_ONLINE}")]
    assert sizes(converted("siq2", siq2, corpora={"validation_as": "validation"})) == [4, 1, 0]


def test_a_qid_that_comes_again_gives_another_row(siq2: Path):
    rows = by_sample(converted("siq2", siq2))
    same = [name for name in rows if name.endswith("yY2_q0")]
    assert same == ["siq2-train-00003-yY2_q0", "siq2-train-00004-yY2_q0"]
    assert [rows[name].answer for name in same] == ["Choice 2 of yY2.", "Choice 3 of yY2."]
    assert {rows[name].clip_id for name in same} == {"siq2-yY2"}


def test_sound_comes_from_the_file_beside_the_video_or_from_it_if_it_has_any(siq2: Path):
    rows = by_sample(converted("siq2", siq2))
    assert rows["siq2-train-00003-yY2_q0"].media["audio"] == ((siq2 / "audio" / "wav" / "yY2.wav").absolute(),)
    assert rows["siq2-train-00001--x_1_q0"].media["audio"] == ((siq2 / "video" / "-x_1.mp4").absolute(),)
    silent = rows["siq2-val-00001-v_al_q0"]
    assert set(silent.media) == {"video"}
    assert silent.problem == "<video>\nGiven above: a video. It is about people with each other. Why does person 5 of val wait"


def test_captions_lose_tags_notes_and_what_rolls(siq2: Path):
    row = by_sample(converted("siq2", siq2))["siq2-train-00001--x_1_q0"]
    assert row.problem.splitlines()[2:] == [
        "Well hello you & me",
        "Given above: a video, a sound recording and a transcript. It is about people with each other. Why does person 0 of train wait",
    ]
    without = by_sample(converted("siq2", siq2, corpora={"transcripts": False}))
    assert not any("Well hello" in row.problem for row in without.values())
    assert spoken("WEBVTT\n\nNOTE x\n\n1\n00:00.0 --> 00:01.0\n<c></c>\n") is None


def test_rows_without_a_clip_can_be_kept(siq2: Path):
    made = converted("siq2", siq2, corpora={"without_clip": "keep"})
    assert (sizes(made), drops(made)) == ([5, 0, 2], {})
    assert by_sample(made)["siq2-train-00005-gone_Q4_0"].problem == "Why does person 4 of train wait"


def test_answers_that_look_like_nothing_are_texts(siq2: Path):
    rows = [siq2_row("v_al", number, f"q{number}") for number in range(2)]
    for row, text in zip(rows, ("No", "N/A"), strict=True):
        row["ans_corr"] = row[f"a{row['answer_idx']}"] = text
    put_lines(siq2 / "qa" / "qa_val.json", rows)
    assert [row.answer for row in converted("siq2", siq2).rows["test"]] == ["No", "N/A"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer_idx": 4}, "unknown label"),
        ({"answer_idx": True}, "unknown label"),
        ({"ans_corr": "Another."}, "answer contradicts label"),
        ({"vid_name": "../x"}, "bad path"),
        ({"q": "see <video>"}, "mark in text"),
        ({"q": None}, "missing value"),
    ],
)
def test_a_bad_row_is_named_or_left_out(siq2: Path, change: dict[str, object], reason: str):
    put_lines(siq2 / "qa" / "qa_val.json", [siq2_row("v_al", 1, "a"), {**siq2_row("v_al", 2, "b"), **change}])
    with pytest.raises(DataError, match=r"qa_val\.json, line 2") as caught:
        converted("siq2", siq2)
    assert caught.value.reason == reason
    assert drops(converted("siq2", siq2, on_bad_row="drop"))["test", reason] == 1


def test_a_line_that_is_cut_off_stops_the_conversion(siq2: Path):
    path = siq2 / "qa" / "qa_train.json"
    path.write_text(path.read_text() + json.dumps(siq2_row("yY2", 1, "x"))[:50])
    with pytest.raises(DataError, match=r"qa_train\.json, line 6: is not JSON"):
        converted("siq2", siq2, on_bad_row="drop")


def test_without_a_folder_of_videos_rows_are_questions_alone(tmp_path: Path):
    put_lines(tmp_path / "qa_train.json", [siq2_row("a", 1, "a_q1")])
    put_lines(tmp_path / "qa_val.json", [siq2_row("b", 2, "b_q1")])
    made = converted("siq2", tmp_path)
    assert sizes(made) == [1, 0, 1]
    assert not any(re.search("<|Given above", row.problem) for row in by_sample(made).values())

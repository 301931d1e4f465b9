from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.convert.corpora.iemocap import NO_CLASS
from hba_ray.data.media import probe_video
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import write_iemocap

FOUR = {"neutral": 1, "anger": 1, "happy": 2, "sad": 1}


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    return write_iemocap(tmp_path)


def test_four_classes_with_excitement_as_happiness_by_session(iemocap: Path):
    made = converted("iemocap", iemocap)
    assert sizes(made) == [15, 5, 5]
    assert labels(made, "test") == FOUR
    assert labels(made, "train") == {label: 3 * rows for label, rows in FOUR.items()}
    assert {row.clip_id[len("iemocap-") :][:6] for row in made.rows["validation"]} == {"Ses04F"}
    assert drops(made) == {("train", NO_CLASS): 9, ("validation", NO_CLASS): 3, ("test", NO_CLASS): 3}
    assert "reply with one of these labels: anger, happy, neutral, sad." in made.rows["test"][0].problem.lower()


def test_all_classes_and_no_excitement(iemocap: Path):
    assert labels(converted("iemocap", iemocap, corpora={"classes": "all"}), "test") == {**FOUR, "surprise": 1}
    assert labels(converted("iemocap", iemocap, corpora={"excited": "leave_out"}), "test") == {**FOUR, "happy": 1}


def test_other_sessions_can_validate_and_test(iemocap: Path):
    made = converted("iemocap", iemocap, corpora={"validation_session": 1, "test_session": 2})
    assert {row.clip_id[len("iemocap-") :][:6] for row in made.rows["test"]} == {"Ses02F"}
    assert made.rules[1] == "Sessions 3, 4, 5 train, 1 validates, 2 tests."
    with pytest.raises(ValueError, match="validation_session and test_session are both 3"):
        AtlasSpec.model_validate({"root": "x", "corpora": {"iemocap": {"validation_session": 3, "test_session": 3}}})


def test_words_are_read_as_latin_1_and_sound_by_utterance(iemocap: Path):
    row = by_sample(converted("iemocap", iemocap))["iemocap-Ses03F_impro05a_M001"]
    assert row.problem.startswith("<audio>\nCafé number 1.\n")
    base = iemocap / "IEMOCAP_full_release" / "Session3" / "sentences" / "wav"
    assert row.media["audio"] == ((base / "Ses03F_impro05a" / "Ses03F_impro05a_M001.wav").absolute(),)


@pytest.mark.parametrize(
    ("place", "old", "new", "reason"),
    [
        ("EmoEvaluation", "\tang\t", "\tangr\t", "unknown label"),
        ("transcriptions", "Ses02F_impro05a_M001 [", "Ses02F_impro05a_M01 [", "missing value"),
    ],
)
def test_a_bad_utterance_is_named_or_left_out(iemocap: Path, place: str, old: str, new: str, reason: str):
    path = iemocap / "IEMOCAP_full_release" / "Session2" / "dialog" / place / "Ses02F_impro05a.txt"
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(DataError, match=r"EmoEvaluation/Ses02F_impro05a\.txt, line 6") as caught:
        converted("iemocap", iemocap)
    assert caught.value.reason == reason
    made = converted("iemocap", iemocap, on_bad_row="drop")
    assert (sizes(made), drops(made)["train", reason]) == ([14, 5, 5], 1)


def test_a_session_that_is_not_there_is_named(iemocap: Path):
    (iemocap / "IEMOCAP_full_release" / "Session4").rename(iemocap / "Session4")
    with pytest.raises(DataError, match=r"Session4: holds no dialog/EmoEvaluation"):
        converted("iemocap", iemocap)


def test_videos_are_cut_out_of_dialogs_where_that_is_asked_for(tmp_path: Path):
    folder = write_iemocap(tmp_path, films=True)
    row = by_sample(converted("iemocap", folder, corpora={"video": True}))["iemocap-Ses01F_impro05a_M001"]
    assert set(row.media) == {"video", "audio"}
    assert probe_video(row.media["video"][0], where="test").seconds == pytest.approx(0.9, abs=0.11)  # from 1.2901 to 2.2357 s
    assert set(by_sample(converted("iemocap", folder))["iemocap-Ses01F_impro05a_M001"].media) == {"audio"}
    (folder / "IEMOCAP_full_release" / "Session1" / "dialog" / "avi" / "DivX" / "Ses01F_impro05a.avi").unlink()
    with pytest.raises(DataError, match=r"Ses01F_impro05a\.avi is not there"):
        converted("iemocap", folder, corpora={"video": True})

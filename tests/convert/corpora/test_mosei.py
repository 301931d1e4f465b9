from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hba_ray.convert.corpora.mosei import UNJOINED, WEAK
from hba_ray.convert.segments import CSD, RATED, Segment, by_text_order, by_time, read_lines
from hba_ray.data.media import probe_audio, probe_video
from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import mosei_clips, put, put_table, tiny_film, write_mosei, write_mosei_of_cmu
from tests.helpers.films import film

SENTIMENT = {
    "highly negative": 1,
    "negative": 3,
    "weakly negative": 2,
    "neutral": 1,
    "weakly positive": 2,
    "positive": 1,
    "highly positive": 2,
}
STRONGEST = {
    "0": "fear",
    "1": "fear",
    "2": "fear",
    "3": "happy",
    "4": "happy",
    "5": "happy",
    "6": "happy",
    "7": "happy",
    "8": "happy",
    "9": "happy",
    "10": "happy",
}
"""Clip of the long video -> its emotion; row 2 of CMU's file is clip 10, so a join by number would say `happy` of clip 2."""


@pytest.fixture(params=["mmsa", "cmu"])
def mosei(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pytest.importorskip("h5py")
    return write_mosei(tmp_path) if request.param == "mmsa" else write_mosei_of_cmu(tmp_path)


def test_both_layouts_give_the_same_rows_of_both_tasks(mosei: Path):
    made = converted("mosei", mosei)
    assert sizes(made, "mosei_senti") == sizes(made, "mosei_emotion") == [12, 1, 1]
    assert labels(made, "train", "mosei_senti") == SENTIMENT
    rows = by_sample(made)
    assert {clip: rows[f"mosei_emotion--a_b-{clip}"].label for clip in STRONGEST} == STRONGEST
    assert rows["mosei_senti--a_b-10"].label == "highly positive"
    assert rows["mosei_senti--a_b-10"].clip_id == rows["mosei_emotion--a_b-10"].clip_id == "mosei--a_b-10"
    assert "Words of -a_b 10.\n" in rows["mosei_emotion--a_b-10"].problem
    assert any("CMU's rule" in rule for rule in made.rules)


def test_clips_of_mmsa_are_video_and_sound(tmp_path: Path):
    row = by_sample(converted("mosei", write_mosei(tmp_path, csd=False), datasets=["mosei_senti"]))["mosei_senti-12345-0"]
    assert row.media["video"] == row.media["audio"] == ((tmp_path / "Raw" / "12345" / "0.mp4").absolute(),)
    assert row.problem.startswith("<video>\n<audio>\nWords of 12345 0.\n")


def test_rounding_makes_thirds_neutral_and_says_so(tmp_path: Path):
    made = converted("mosei", write_mosei(tmp_path, csd=False), datasets=["mosei_senti"], corpora={"seven_classes": "round"})
    assert labels(made, "train")["neutral"] == 3
    assert any("rounding" in rule for rule in made.rules)


def test_emotions_need_cmus_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds neither CMU_MOSEI_Labels\.csd nor Labels.*\n.*atlas\.datasets=\[mosei_senti\]"):
        converted("mosei", write_mosei(tmp_path, csd=False))


def test_answers_of_single_raters_serve_for_emotions(tmp_path: Path):
    write_mosei(tmp_path, csd=False)
    header = ("HITId", "Input.VIDEO_ID", "Input.CLIP", *(f"Answer.{name}" for name in RATED))
    answers = [("h", "-a_b", "10", happy, 1, 0, 0, 0, 0) for happy in (0, 1, 1)] + [("h", "12345", "0", 0, 0, 1, 1, 0, 0)]
    put_table(tmp_path / "Labels" / "batch_1.csv", header, answers[:2])
    put_table(tmp_path / "Labels" / "batch_2.csv", header, answers[2:])
    made = converted("mosei", tmp_path)
    assert labels(made, "train", "mosei_emotion") == {"sad": 1, "anger": 1}  # of clip 10 happiness is 2/3 in the mean
    assert (sizes(made, "mosei_senti"), sizes(made, "mosei_emotion")) == ([12, 1, 1], [2, 0, 0])
    assert made.rules[0] == "Layout of MMSA. Emotions are means over raters."
    put_table(tmp_path / "Labels" / "batch_1.csv", header, [("h", "-a_b", "10", 4, 1, 0, 0, 0, 0)])
    with pytest.raises(DataError, match=r"batch_1\.csv, line 2: 'Answer\.happiness' lies outside 0 to 3"):
        converted("mosei", tmp_path)


def test_clips_without_a_strong_emotion_have_no_row_of_it(mosei: Path):
    made = converted("mosei", mosei, corpora={"emotion_from": 1.5})
    assert sizes(made, "mosei_senti") == [12, 1, 1]
    assert sizes(made, "mosei_emotion") == [7, 1, 1]
    assert made.findings == [f"5 clips of train have no row of emotion: {WEAK}."]


def test_a_video_of_which_mmsa_lacks_a_clip_is_joined_by_time_or_not_at_all(tmp_path: Path):
    pytest.importorskip("h5py")
    write_mosei(tmp_path)
    path = tmp_path / "label.csv"
    path.write_text("".join(line for line in path.read_text("utf-8").splitlines(True) if not line.startswith("-a_b,4,")), "utf-8")
    made = converted("mosei", tmp_path)
    assert (sizes(made, "mosei_senti"), sizes(made, "mosei_emotion")) == ([11, 1, 1], [1, 1, 1])
    assert made.findings == [f"10 clips of train have no row of emotion: {UNJOINED}."]
    assert [(one.rows, one.reason) for one in made.differences["mosei_emotion/train"]] == [(-10, UNJOINED)]
    write_mosei_of_cmu(tmp_path)
    assert sizes(converted("mosei", tmp_path), "mosei_emotion") == [11, 1, 1]


def test_labels_that_are_joined_to_another_clip_are_found(tmp_path: Path):
    pytest.importorskip("h5py")
    write_mosei(tmp_path)
    path = tmp_path / "label.csv"
    path.write_text(path.read_text("utf-8").replace("Words of -a_b 3.,-1,", "Words of -a_b 3.,-2,"), "utf-8")
    with pytest.raises(DataError, match=r"line 5: 'label' is not the sentiment that CMU_MOSEI_Labels\.csd has"):
        converted("mosei", tmp_path)
    assert drops(converted("mosei", tmp_path, on_bad_row="drop")) == {("train", "answer contradicts label"): 1}


def test_videos_in_no_fold_are_left_out_and_counted(tmp_path: Path):
    pytest.importorskip("h5py")
    made = converted("mosei", write_mosei_of_cmu(tmp_path))
    assert drops(made) == {("", "video in no fold"): 2}
    assert made.differences == {"train": [], "validation": [], "test": []}


def test_the_table_of_classes_serves_for_sentiment_by_cmus_rule(tmp_path: Path):
    write_mosei_of_cmu(tmp_path, csd=False)
    classes = {-3: -3, -2: -2, -1.6666666: -2, -1: -1, 0: 0, 1: 1, 2: 2, 2.3333333: 3, 3: 3}
    rows = []
    for video in ("-a_b", "12345", "val_1", "Zz9"):
        its = sorted((one for one in mosei_clips() if one[1] == video), key=lambda one: one[2])
        for place, (*_, score, _) in enumerate(its):
            rows.append((len(rows), video, place, place * 3.25 - 0.1, place * 3.25 + 4, classes.get(score, -1 if score < 0 else 1)))
    put_table(tmp_path / "CMU_MOSEI_Labels.csv", ("", "file", "index", "start", "end", "label7"), rows)
    made = converted("mosei", tmp_path, datasets=["mosei_senti"])
    assert labels(made, "train") == SENTIMENT
    with pytest.raises(DataError, match="seven_classes=round cannot be had"):
        converted("mosei", tmp_path, datasets=["mosei_senti"], corpora={"seven_classes": "round"})


def test_a_feature_file_serves_as_the_table(tmp_path: Path):
    held = {
        mode: {
            "id": np.array([f"{video}$_${clip}" for its, video, clip, *_ in mosei_clips() if its == split]),
            "raw_text": np.array([f"Words of {video} {clip}." for its, video, clip, *_ in mosei_clips() if its == split]),
            "regression_labels": np.array([score for its, _, _, score, _ in mosei_clips() if its == split], np.float32),
        }
        for mode, split in (("train", "train"), ("valid", "validation"), ("test", "test"))
    }
    put(tmp_path / "unaligned_50.pkl", pickle.dumps(held))
    made = converted("mosei", tmp_path, datasets=["mosei_senti"])
    assert (sizes(made), labels(made, "train")) == ([12, 1, 1], SENTIMENT)
    del held["valid"]["raw_text"]
    put(tmp_path / "unaligned_50.pkl", pickle.dumps(held))
    with pytest.raises(DataError, match="split 'valid' lacks id, raw_text or regression_labels"):
        converted("mosei", tmp_path, datasets=["mosei_senti"])


def test_folds_are_read_without_being_run(tmp_path: Path):
    pytest.importorskip("h5py")
    write_mosei_of_cmu(tmp_path)
    path = tmp_path / "cmu_mosei_std_folds.py"
    path.write_text("import os\nos.mkdir('made')\n" + path.read_text().replace("['val_1']", "['val_1', 'Zz9']"))
    with pytest.raises(DataError, match="video Zz9 is in two folds"):
        converted("mosei", tmp_path)
    assert not Path("made").exists()


@pytest.mark.parametrize("content", [b"no HDF5", b""])
def test_a_damaged_file_of_labels_is_named(tmp_path: Path, content: bytes):
    pytest.importorskip("h5py")
    put(write_mosei(tmp_path) / CSD, content)
    with pytest.raises(DataError, match=r"CMU_MOSEI_Labels\.csd: is no file of labels"):
        converted("mosei", tmp_path)


def test_times_join_within_two_hundredths_and_never_twice(tmp_path: Path):
    rows = [Segment(0, 4, 1), Segment(3.25, 7.25, 2), Segment(3.25, 7.25, 3), Segment(9, 10, 3)]
    lines = read_lines(put(tmp_path / "a_b.txt", "a_b___5___-0.3___4.01___One ___ two\na_b___6___3.25___7.25___x\n"))
    assert [(line.clip, line.begin, line.text) for line in lines] == [("5", 0.0, "One ___ two"), ("6", 3.25, "x")]
    assert by_time(rows, lines) == {"5": rows[0]}
    assert by_time(rows, [*lines, replace(lines[0], clip="7")]) == {}
    assert by_text_order(rows, ["1", "2"]) == {}


def test_clips_of_cmu_are_those_it_cut_or_cut_out_of_whole_recordings(tmp_path: Path):
    pytest.importorskip("h5py")
    write_mosei_of_cmu(tmp_path)
    for video, seconds in (("-a_b", 40), ("12345", 5), ("val_1", 5), ("Zz9", 5)):
        put(tmp_path / "Audio" / "WAV_16000" / f"{video}.wav", b"")
        soundfile.write(tmp_path / "Audio" / "WAV_16000" / f"{video}.wav", np.zeros(16_000 * seconds), 16_000)
    sound = by_sample(converted("mosei", tmp_path))["mosei_senti--a_b-10"].media
    assert set(sound) == {"audio"}
    assert probe_audio(sound["audio"][0], where="test") == pytest.approx(4.1, abs=0.01)
    (tmp_path / "Videos" / "Full" / "Combined").mkdir(parents=True)
    for video, seconds in (("-a_b", 40), ("12345", 5), ("val_1", 5), ("Zz9", 5)):
        film(tmp_path / "Videos" / "Full" / "Combined" / f"{video}.mp4", "mpeg4", 2 * seconds, rate=2)
    both = by_sample(converted("mosei", tmp_path))["mosei_senti--a_b-10"].media
    assert set(both) == {"video", "audio"}
    assert probe_video(both["video"][0], where="test").seconds == pytest.approx(4, abs=0.6)
    for _, video, clip, *_ in mosei_clips():
        put(tmp_path / "Videos" / "Segmented" / "Combined" / f"{video}_{clip}.mp4", tiny_film())
    ready = by_sample(converted("mosei", tmp_path))["mosei_senti--a_b-10"].media
    assert ready["video"] == ready["audio"] == ((tmp_path / "Videos" / "Segmented" / "Combined" / "-a_b_10.mp4").absolute(),)

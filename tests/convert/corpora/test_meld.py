from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hba_ray.convert.base import Converted, Difference
from hba_ray.convert.corpora.meld import FILES, read_meld
from hba_ray.convert.splits import check_disjoint
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError

LABELS = {"joy": "happy", "sadness": "sad"}
CELLS = (("Emotion", "joyy"), ("Sentiment", "positve"), ("Utterance", " "), ("Utterance", "see <video>"), ("Dialogue_ID", "x"))


def edit(path: Path, row: int, column: str, value: str) -> None:
    with open(path, encoding="utf-8", newline="") as stream:
        records = list(csv.DictReader(stream))
    records[row][column] = value
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def test_an_utterance_gives_a_row_for_each_task(meld: Path):
    first, second = read_meld(meld).rows["train"][:2]
    assert (first.sample_id, second.sample_id) == ("meld_senti-train-dia0_utt0", "meld_emotion-train-dia0_utt0")
    assert (first.label, second.label) == ("negative", "surprise")
    assert first.clip_id == second.clip_id == "meld-train-dia0_utt0"
    assert first.problem.startswith("Where did the ladder go?\nGiven above: a transcript.")
    assert first.answer == first.label
    assert not first.media


def test_one_task_can_be_read_alone(meld: Path):
    rows = read_meld(meld, datasets=["meld_emotion"]).rows["train"]
    assert [row.label for row in rows] == ["surprise", "surprise", "neutral", "happy", "anger"]


def test_curly_quotes_and_dashes_are_kept(meld: Path):
    rows = read_meld(meld).rows["train"]
    assert rows[2].problem.startswith("You\u2019re early — how lovely!\n")
    assert rows[6].problem.startswith("I passed, “just”.\n")


def test_surprise_is_split_by_the_sentiment_where_asked_for(meld: Path):
    rows = [row for row in read_meld(meld, split_surprise=True).rows["train"] if row.dataset.id == "meld_emotion"]
    assert [row.label for row in rows[:3]] == ["negative surprise", "positive surprise", "neutral"]
    assert rows[0].problem.endswith("anger, disgust, fear, happy, neutral, sad, positive surprise, negative surprise.")


def test_a_surprise_without_a_side_is_refused_where_sides_are_asked_for(meld: Path):
    edit(meld / "train_sent_emo.csv", 0, "Sentiment", "neutral")
    assert read_meld(meld).rows["train"][1].label == "surprise"
    with pytest.raises(DataError, match="neutral surprise"):
        read_meld(meld, split_surprise=True)


def test_broken_clips_stay_as_text_and_are_accounted_for(meld: Path):
    converted = read_meld(meld)
    assert len(converted.rows["validation"]) == 4
    assert converted.drops == []
    assert converted.differences["train"] == [Difference(1, "dia125_utt3, whose clip is broken, is not counted there")]


def test_broken_clips_are_left_out_where_clips_are_attached(meld_with_clips: Path):
    converted = read_meld(meld_with_clips)
    assert {split: len(rows) for split, rows in converted.rows.items()} == {"train": 8, "validation": 2, "test": 2}
    assert [(drop.split, drop.reason) for drop in converted.drops] == [("train", "known broken clip"), ("validation", "known broken clip")]
    row = converted.rows["test"][0]
    clip = (meld_with_clips / "output_repeated_splits_test" / "dia0_utt0.mp4").absolute()
    assert row.media == {"video": (clip,), "audio": (clip,)}
    assert row.problem.startswith("<video>\n<audio>\nSomething moved")


def test_clips_are_also_found_in_a_folder_per_split(meld_with_clips: Path):
    for split, name in (("train", "train_splits"), ("dev", "dev_splits_complete"), ("test", "output_repeated_splits_test")):
        (meld_with_clips / split).mkdir()
        (meld_with_clips / name).rename(meld_with_clips / split / name)
    assert all(row.signature == "text_video_audio" for rows in read_meld(meld_with_clips).rows.values() for row in rows)


def test_the_choice_about_broken_clips_can_be_made_without_clips(meld: Path):
    assert len(read_meld(meld, leave_out_broken=True).rows["train"]) == 8


def test_the_choice_about_broken_clips_can_be_made_with_clips(meld_with_clips: Path):
    with pytest.raises(DataError, match=r"dia110_utt7\.mp4 is not there"):
        read_meld(meld_with_clips, leave_out_broken=False)


def test_a_missing_clip_is_never_replaced_by_text(meld_with_clips: Path):
    (meld_with_clips / "train_splits" / "dia0_utt2.mp4").unlink()
    with pytest.raises(DataError, match=r"line 4: .*dia0_utt2\.mp4 is not there"):
        read_meld(meld_with_clips)
    converted = read_meld(meld_with_clips, on_bad_row="drop")
    assert len(converted.rows["train"]) == 6
    assert converted.differences["train"] == [Difference(-1, "left out: missing file")]


def test_clips_of_some_splits_only_are_refused(meld: Path):
    (meld / "train_splits").mkdir()
    with pytest.raises(DataError, match="none of the validation split"):
        read_meld(meld)


@pytest.mark.parametrize(("column", "value"), CELLS)
def test_a_bad_cell_is_named_by_file_and_line(meld: Path, column: str, value: str):
    edit(meld / "dev_sent_emo.csv", 1, column, value)
    with pytest.raises(DataError, match=r"dev_sent_emo\.csv, line 3") as caught:
        read_meld(meld)
    assert caught.value.reason in {"unknown label", "empty text", "mark in text", "wrong type"}
    converted = read_meld(meld, on_bad_row="drop")
    assert len(converted.rows["validation"]) == 2
    assert [drop.split for drop in converted.drops] == ["validation"]


def test_a_misspelt_label_gets_a_suggestion(meld: Path):
    edit(meld / "train_sent_emo.csv", 0, "Sentiment", "negativ")
    with pytest.raises(DataError, match="did you mean 'negative'"):
        read_meld(meld)


def test_an_utterance_that_occurs_twice_is_refused(meld: Path):
    edit(meld / "train_sent_emo.csv", 1, "Utterance_ID", "0")
    with pytest.raises(DataError, match="dia0_utt0 occurs twice"):
        read_meld(meld)


@pytest.mark.parametrize("file", FILES.values())
def test_a_missing_file_or_column_is_named(meld: Path, file: str):
    text = (meld / file).read_text(encoding="utf-8")
    (meld / file).write_text(text.replace("Emotion", "Feeling"), encoding="utf-8")
    with pytest.raises(DataError, match=f"{file}, line 1: column 'Emotion' is missing"):
        read_meld(meld)
    (meld / file).unlink()
    with pytest.raises(DataError, match=f"{file}: cannot be read"):
        read_meld(meld)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(1, 10_000))
def test_a_truncated_file_is_an_error_or_fewer_whole_rows(meld: Path, cut: int):
    path = meld / "train_sent_emo.csv"
    whole = read_meld(meld).rows["train"]
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - 1 - cut % (len(raw) - 1)])
    try:
        rows = read_meld(meld).rows["train"]
    except DataError as error:
        assert "train_sent_emo.csv" in error.where
    else:
        assert rows == whole[: len(rows)]
    finally:
        path.write_bytes(raw)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0x80, 0x92, 0xC0, 0xFF]))
def test_a_byte_that_is_not_utf8_is_named_by_its_line(meld: Path, place: int, byte: int):
    path = meld / "train_sent_emo.csv"
    raw = path.read_bytes()
    place = place % len(raw)
    damaged = raw[:place] + bytes([byte]) + raw[place + 1 :]
    path.write_bytes(damaged)
    try:
        damaged.decode()
    except UnicodeDecodeError as expected:
        with pytest.raises(DataError, match=f"line {damaged[: expected.start].count(10) + 1}: byte") as caught:
            read_meld(meld)
        assert caught.value.reason == "not UTF-8"
    finally:
        path.write_bytes(raw)


@pytest.fixture(scope="module")
def public_meld(public_data: Path) -> Converted:
    return read_meld(public_data / "meld")


def test_the_public_files_give_every_row_and_label_that_they_hold(public_data: Path, public_meld: Converted):
    for split, file in FILES.items():
        table = pd.read_csv(public_data / "meld" / file, dtype=str, keep_default_na=False)
        for dataset, column in (("meld_senti", "Sentiment"), ("meld_emotion", "Emotion")):
            rows = [row for row in public_meld.rows[split] if row.dataset.id == dataset]
            assert Counter(row.label for row in rows) == Counter(table[column].replace(LABELS))
            assert [row.problem.split("\nGiven above:")[0] for row in rows] == table["Utterance"].tolist()
    assert public_meld.drops == []


def test_the_public_files_without_the_broken_clips_give_table_7(public_data: Path):
    converted = read_meld(public_data / "meld", leave_out_broken=True)
    for dataset in ("meld_senti", "meld_emotion"):
        found = tuple(sum(row.dataset.id == dataset for row in rows) for rows in converted.rows.values())
        assert found == DATASETS[dataset].counts == (9988, 1108, 2610)
    assert len(converted.drops) == 2


def test_public_dialogues_ids_and_clips_stay_apart_and_the_sides_of_surprise_add_up(public_data: Path):
    converted = read_meld(public_data / "meld", split_surprise=True)
    pairs = [(row, split) for split, rows in converted.rows.items() for row in rows]
    check_disjoint([row.clip_id.split("_utt")[0] for row, _ in pairs], [split for _, split in pairs], where="MELD")
    assert len({row.sample_id for row, _ in pairs}) == len(pairs)
    sides = Counter(row.label for row, split in pairs if split == "train" and row.dataset.id == "meld_emotion")
    table = pd.read_csv(public_data / "meld" / FILES["train"])
    surprised = Counter(table["Sentiment"][table["Emotion"] == "surprise"])
    assert (sides["positive surprise"], sides["negative surprise"], sides["surprise"]) == (surprised["positive"], surprised["negative"], 0)


def test_reading_twice_gives_the_same(public_data: Path, public_meld: Converted):
    assert read_meld(public_data / "meld") == public_meld

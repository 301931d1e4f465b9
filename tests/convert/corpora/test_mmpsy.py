from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import mmpsy_entries, put, write_mmpsy


@pytest.fixture
def mmpsy(tmp_path: Path) -> Path:
    return write_mmpsy(tmp_path)


def test_both_tasks_have_one_split_and_their_own_score(mmpsy: Path):
    made = converted("mmpsy", mmpsy)
    assert sizes(made, "mmpsy_depression") == sizes(made, "mmpsy_anxiety") == [14, 3, 3]
    for split in SPLITS:
        its = [row.clip_id for row in made.rows[split] if row.dataset.id == "mmpsy_depression"]
        assert its == [row.clip_id for row in made.rows[split] if row.dataset.id == "mmpsy_anxiety"]
    total = {name: sum(labels(made, split).get(name, 0) for split in SPLITS) for name in ("depression", "anxiety")}
    assert total == {"depression": 11, "anxiety": 7}  # scores 10 to 20, and 14 // 2 + 3 to 20 // 2 + 3
    rows = by_sample(made)
    assert (rows["mmpsy_depression-user_9"].label, rows["mmpsy_depression-user_10"].label) == ("no depression", "depression")
    assert (rows["mmpsy_anxiety-user_13"].label, rows["mmpsy_anxiety-user_14"].label) == ("no anxiety", "anxiety")


def test_the_published_number_of_students_meets_table_7(tmp_path: Path):
    put(tmp_path / "wav_select.json", json.dumps([{**mmpsy_entries(1)[0], "user_id": f"user_{number}"} for number in range(1275)]))
    made = converted("mmpsy", tmp_path)
    assert tuple(sizes(made, "mmpsy_anxiety")) == DATASETS["mmpsy_anxiety"].counts


def test_answers_follow_their_numbers_a_line_each(mmpsy: Path):
    row = by_sample(converted("mmpsy", mmpsy))["mmpsy_depression-user_7"]
    assert row.problem.splitlines()[:-1] == ["my secret 7 number 1", "my secret 7 number 2", "my secret 7 number 10"]


def test_one_task_alone_has_the_split_of_both(mmpsy: Path):
    both, one = converted("mmpsy", mmpsy), converted("mmpsy", mmpsy, datasets=["mmpsy_anxiety"])
    assert one.rows["test"] == [row for row in both.rows["test"] if row.dataset.id == "mmpsy_anxiety"]
    assert DATASETS["mmpsy_anxiety"].sensitive
    assert DATASETS["mmpsy_depression"].sensitive


@pytest.mark.parametrize(
    "change",
    [
        {"phq-label": {"score": "my secret"}},
        {"phq-label": {"score": 28}},
        {"gad-label": "my secret"},
        {"gad-label": {}},
        {"audios": {"wav_1.wav": ["my secret"]}},
        {"audios": {"wav_1.wav": "my secret <audio>"}},
        {"audios": {"wav_1.wav": "my secret \ud800"}},
        {"audios": {"my secret": "x"}},
        {"audios": {}},
        {"user_id": "user_2"},
        {"user_id": "my secret/.."},
    ],
)
def test_no_error_says_what_was_said(tmp_path: Path, change: dict[str, Any]):
    entries = mmpsy_entries(6)
    entries[3] |= change
    put(tmp_path / "wav_select.json", json.dumps(entries))
    with pytest.raises(DataError, match=r"wav_select\.json, entry 4: ") as caught:
        converted("mmpsy", tmp_path)
    made = converted("mmpsy", tmp_path, on_bad_row="drop")
    assert (sum(sizes(made, "mmpsy_anxiety")), sum(drops(made).values())) == (5, 1)
    for told in (str(caught.value), repr(caught.value), repr(made.drops)):
        assert "secret" not in told


@pytest.mark.parametrize("text", ['{"users": "my secret"}', "[]", '[{"user_id": "my secret', '["my secret"]'])
def test_a_file_of_another_form_is_refused_without_its_content(tmp_path: Path, text: str):
    put(tmp_path / "wav_select.json", text)
    with pytest.raises(DataError, match=r"wav_select\.json") as caught:
        converted("mmpsy", tmp_path)
    assert "secret" not in str(caught.value)

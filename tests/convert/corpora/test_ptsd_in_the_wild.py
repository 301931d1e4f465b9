from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import put, tiny_film, write_ptsd


@pytest.fixture
def ptsd(tmp_path: Path) -> Path:
    return write_ptsd(tmp_path)


def test_folders_tell_split_and_label(ptsd: Path):
    made = converted("ptsd_in_the_wild", ptsd)
    assert sizes(made) == [3, 2, 3]
    assert labels(made, "train") == {"ptsd": 2, "no ptsd": 1}
    assert labels(made, "validation") == {"ptsd": 1, "no ptsd": 1}
    assert labels(made, "test") == {"ptsd": 1, "no ptsd": 2}


def test_titles_that_are_alike_have_rows_of_their_own(ptsd: Path):
    rows = by_sample(converted("ptsd_in_the_wild", ptsd))
    assert len(rows) == 8
    assert all(name.isascii() and " " not in name for name in rows)
    row = rows["ptsd_in_the_wild-train-0001"]
    assert row.media["video"] == row.media["audio"]
    assert row.problem.startswith("<video>\n<audio>\nGiven above: a video and a sound recording.")


def test_one_name_and_one_content_in_two_splits_are_told(ptsd: Path):
    assert converted("ptsd_in_the_wild", ptsd).findings == [
        "Names of videos that are in more than one split: 1.",
        "Contents of videos that are in more than one split: 1.",
    ]


def test_without_folders_of_splits_parts_of_a_series_stay_together(tmp_path: Path):
    for number in range(1, 13):
        put(tmp_path / "PTSD" / "war" / f"My story - part {number}.mp4", tiny_film())
        put(tmp_path / "normal" / f"Talk {'abcdefghijkl'[number - 1]}.mp4", tiny_film() + bytes([number]))
    made = converted("ptsd_in_the_wild", tmp_path)
    assert sum(sizes(made)) == 24
    assert len([split for split in made.rows if "ptsd" in labels(made, split)]) == 1
    assert "ours is by title" in made.rules[0]
    assert sizes(converted("ptsd_in_the_wild", tmp_path, split_by="clip")) == [19, 3, 2]


def test_a_video_in_no_folder_of_a_label_is_a_bad_row(ptsd: Path):
    put(ptsd / "PTSD_Project_train_validation_test_split" / "train" / "others" / "a.mp4", tiny_film())
    with pytest.raises(DataError, match=r"a\.mp4: lies in no folder PTSD or No PTSD"):
        converted("ptsd_in_the_wild", ptsd)
    made = converted("ptsd_in_the_wild", ptsd, on_bad_row="drop")
    assert (sizes(made), drops(made)) == ([3, 2, 3], {("train", "unknown label"): 1})


def test_a_folder_without_videos_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no video"):
        converted("ptsd_in_the_wild", tmp_path)

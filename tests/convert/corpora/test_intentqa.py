from __future__ import annotations

import json
from pathlib import Path

import pytest

from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, sizes
from tests.helpers.corpora import INTENTQA_HEADER, intentqa_row, put, put_table, write_intentqa


@pytest.fixture
def intentqa(tmp_path: Path) -> Path:
    return write_intentqa(tmp_path)


def test_the_answer_is_the_text_of_the_right_choice(intentqa: Path):
    made = converted("intentqa", intentqa)
    assert sizes(made) == [3, 1, 1]
    rows = by_sample(made)
    assert {name: row.answer for name, row in rows.items()} == {
        "intentqa-train-2909445186-0": "to choose 1",
        "intentqa-train-3837320324-0": "to choose 2",
        "intentqa-train-3837320324-1": "to choose 0",
        "intentqa-validation-10000000001-0": "to choose 4",
        "intentqa-test-0042-7": "to choose 3",
    }
    assert rows["intentqa-train-3837320324-1"].clip_id == "intentqa-3837320324"
    assert made.findings == []


def test_videos_lie_flat_or_nested_and_may_be_silent(intentqa: Path):
    rows = by_sample(converted("intentqa", intentqa))
    assert rows["intentqa-train-2909445186-0"].media["audio"] == ((intentqa / "Videos" / "0101" / "2909445186.mp4").absolute(),)
    assert (
        rows["intentqa-test-0042-7"].problem
        == "<video>\nGiven above: a video. It is about what people do, and what for. why did the boy 7 wave at the start"
    )
    assert set(rows["intentqa-test-0042-7"].media) == {"video"}


def test_a_video_in_two_splits_is_told(intentqa: Path):
    put_table(intentqa / "val.csv", INTENTQA_HEADER, [intentqa_row("0042", 1, 0)])
    assert converted("intentqa", intentqa).findings == [
        "1 of 3 videos lie in more than one of the official splits, the first: intentqa-0042."
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (intentqa_row("0042", 8, 5), "unknown label"),
        (intentqa_row("0042", 7, 3), "duplicate row"),
        (intentqa_row("missing", 1, 3), "missing file"),
        (intentqa_row("../0042", 1, 3), "bad path"),
        (intentqa_row("0042", 9, 3)[:7], "missing value"),
    ],
)
def test_a_bad_row_is_named_or_left_out(intentqa: Path, row: list[object], reason: str):
    put_table(intentqa / "test.csv", INTENTQA_HEADER, [intentqa_row("0042", 7, 3), row], end="\r\n")
    with pytest.raises(DataError, match=r"test\.csv, line 3") as caught:
        converted("intentqa", intentqa)
    assert caught.value.reason == reason
    made = converted("intentqa", intentqa, on_bad_row="drop")
    assert (sizes(made), drops(made)) == ([3, 1, 1], {("test", reason): 1})


def test_rows_of_nextqa_have_another_name_for_the_video(intentqa: Path):
    for name in ("train", "val", "test"):
        path = intentqa / f"{name}.csv"
        path.write_bytes(path.read_bytes().replace(b"video_id", b" video "))
    assert sizes(converted("intentqa", intentqa)) == [3, 1, 1]


@pytest.mark.parametrize("place", ["../2909445186", "a" * 300, 3])
def test_a_map_that_leads_elsewhere_is_refused(intentqa: Path, place: object):
    put(intentqa / "map_vid_vidorID.json", json.dumps({"2909445186": place}))
    with pytest.raises(DataError, match=r"map_vid_vidorID\.json: is no map from videos to places"):
        converted("intentqa", intentqa)

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import put, write_chsims


@pytest.fixture
def chsims(tmp_path: Path) -> Path:
    return write_chsims(tmp_path)


def test_scores_become_five_classes_in_the_official_split(chsims: Path):
    made = converted("chsimsv2", chsims)
    assert sizes(made) == [10, 1, 1]
    names = ("highly negative", "weakly negative", "neutral", "weakly positive", "highly positive")
    assert labels(made, "train") == dict.fromkeys(names, 2)
    assert labels(made, "validation") == {"weakly negative": 1}  # the vote says positive
    assert labels(made, "test") == {"weakly positive": 1}
    assert any("not known" in rule for rule in made.rules)


def test_names_of_clips_keep_their_zeros_and_get_more_where_the_file_has_more(chsims: Path):
    rows = by_sample(converted("chsimsv2", chsims))
    assert [path.name for path in rows["chsimsv2-video_0001-0013"].media["video"] if isinstance(path, Path)] == ["0013.mp4"]
    assert [path.name for path in rows["chsimsv2-video_0001-0003"].media["audio"] if isinstance(path, Path)] == ["00003.mp4"]
    assert rows["chsimsv2-aqgy3_0001-00000"].problem.startswith("<video>\n<audio>\n好！\nGiven above:")


def test_a_video_in_two_official_splits_is_told(chsims: Path):
    assert converted("chsimsv2", chsims).findings == ["1 of 2 videos lie in more than one of the official splits, the first: video_0001."]


def test_the_unsupervised_part_is_refused(chsims: Path):
    path = chsims / "meta.csv"
    header, *lines = path.read_text("utf-8").splitlines()
    blank = [",".join("" if place == 3 else cell for place, cell in enumerate(line.split(","))) for line in lines]
    path.write_text("\n".join([header, *blank]), "utf-8")
    with pytest.raises(DataError, match=r"meta\.csv: has no labels at all\n.*unsupervised"):
        converted("chsimsv2", chsims)


def test_gbk_of_a_spreadsheet_is_refused_with_the_way_out(chsims: Path):
    path = chsims / "meta.csv"
    path.write_bytes(path.read_text("utf-8-sig").encode("gbk"))
    with pytest.raises(DataError, match=r"line 2: .* reads as Chinese in GB18030.*\n.*iconv -f GB18030 -t UTF-8 meta\.csv"):
        converted("chsimsv2", chsims)


def test_one_row_without_a_label_is_a_bad_row(chsims: Path):
    path = chsims / "meta.csv"
    path.write_text(path.read_text("utf-8").replace(",-0.2,", ",,"), "utf-8")
    with pytest.raises(DataError, match=r"meta\.csv, line 12: 'label' is empty"):
        converted("chsimsv2", chsims)
    made = converted("chsimsv2", chsims, on_bad_row="drop")
    assert (sizes(made), drops(made)) == ([10, 0, 1], {("", "empty text"): 1})


def test_a_score_of_float32_is_the_decimal_that_was_meant(tmp_path: Path):
    scores = np.array([-0.7, -0.1, 0.1, 0.7], np.float32)
    rows = {"id": [f"v$_${place}" for place in range(4)], "raw_text": list("一二三四"), "regression_labels": scores}
    held = {"train": rows, "valid": {**{name: value[:1] for name, value in rows.items()}, "id": ["w$_$0"]}}
    put(tmp_path / "ch-simsv2s.pkl", pickle.dumps(held))
    made = converted("chsimsv2", tmp_path)
    assert [row.label for row in made.rows["train"]] == ["highly negative", "weakly negative", "neutral", "weakly positive"]

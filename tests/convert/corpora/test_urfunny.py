from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from hba_ray.convert.corpora.urfunny import NOT_KEPT
from hba_ray.errors import DataError
from tests.convert.test_unpickling import Touch
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import put, write_urfunny


@pytest.fixture
def urfunny(tmp_path: Path) -> Path:
    return write_urfunny(tmp_path)


def change(folder: Path, file: str, edit: Any) -> None:
    held = pickle.loads((folder / file).read_bytes())
    edit(held)
    put(folder / file, pickle.dumps(held))


def test_the_folds_decide_which_rows_there_are(urfunny: Path):
    made = converted("urfunny", urfunny)
    assert sizes(made) == [3, 1, 1]
    assert labels(made, "train") == {"humour": 2, "not humour": 1}
    assert "not known" in made.rules[0]


def test_the_punchline_follows_its_context(urfunny: Path):
    rows = by_sample(converted("urfunny", urfunny))
    assert rows["urfunny-11"].problem.startswith("<video>\n<audio>\nI counted sheep.\nUp to 11.\nAnd that was sheep number 11.\nGiven")
    assert rows["urfunny-12"].problem.startswith("<video>\n<audio>\nI counted sheep.\nUp to 12.\nSheep 12 jumped.\nGiven")
    assert rows["urfunny-13"].problem.startswith("<video>\n<audio>\nAnd that was sheep number 13.\nGiven")
    alone = by_sample(converted("urfunny", urfunny, corpora={"context": False}))["urfunny-11"]
    assert alone.problem.startswith("<video>\n<audio>\nAnd that was sheep number 11.\nGiven")


def test_a_list_of_ids_keeps_a_part(urfunny: Path):
    put(urfunny / "keep.txt", "11\n31\n")
    made = converted("urfunny", urfunny, corpora={"keep": "keep.txt"})
    assert sizes(made) == [1, 0, 1]
    assert drops(made) == {("train", NOT_KEPT): 2, ("validation", NOT_KEPT): 1}
    put(urfunny / "keep.txt", "11\n99001\n")
    with pytest.raises(DataError, match="names 1 ids that no fold holds, the first 99001"):
        converted("urfunny", urfunny, corpora={"keep": "keep.txt"})


def test_ids_that_are_text_in_one_file_and_numbers_in_another_are_the_same(urfunny: Path):
    folds = {"train": ["11", "12", "13"], "dev": ["21"], "test": ["31"]}
    put(urfunny / "data_folds.pkl", pickle.dumps(folds))
    assert sizes(converted("urfunny", urfunny)) == [3, 1, 1]


@pytest.mark.parametrize(
    ("file", "edit", "reason"),
    [
        ("humor_label_sdk.pkl", lambda held: held.pop(12), "missing value"),
        ("humor_label_sdk.pkl", lambda held: held.update({12: 2}), "unknown label"),
        ("language_sdk.pkl", lambda held: held.update({12: "text"}), "wrong type"),
        ("language_sdk.pkl", lambda held: held[12].update(punchline_sentence=" "), "empty text"),
        ("data_folds.pkl", lambda held: held["train"].append(12), "duplicate row"),
        ("data_folds.pkl", lambda held: held["train"].append("12/../../12"), "bad path"),
    ],
)
def test_a_bad_row_is_named_or_left_out(urfunny: Path, file: str, edit: Any, reason: str):
    change(urfunny, file, edit)
    with pytest.raises(DataError, match="id 12") as caught:
        converted("urfunny", urfunny)
    assert caught.value.reason == reason
    assert drops(converted("urfunny", urfunny, on_bad_row="drop")) == {("train", reason): 1}


def test_a_pickle_that_would_run_something_is_refused(urfunny: Path):
    put(urfunny / "data_folds.pkl", pickle.dumps({"train": [Touch(urfunny / "made")]}))
    with pytest.raises(DataError, match=r"data_folds\.pkl: holds posix\.mkdir, which is not read"):
        converted("urfunny", urfunny)
    assert not (urfunny / "made").exists()


@pytest.mark.parametrize("held", [["train"], {"train": 3}, {"rest": [1]}])
def test_folds_of_another_form_are_refused(urfunny: Path, held: Any):
    put(urfunny / "data_folds.pkl", pickle.dumps(held))
    with pytest.raises(DataError, match=r"data_folds\.pkl"):
        converted("urfunny", urfunny)

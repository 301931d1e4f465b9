"""Agreement of graders against hand-made tables and scikit-learn."""

# pyright: reportOptionalOperand=false, reportOperatorIssue=false
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from hba_ray.errors import DataError
from hba_ray.evaluation.agreement import agree, cohen_kappa, read_labels


def labels(text: str) -> dict[str, bool | None]:
    """T, F and ? of samples 0, 1, 2, ..."""
    return {str(place): {"T": True, "F": False, "?": None}[letter] for place, letter in enumerate(text)}


def test_kappa_by_hand():
    # 20 both TRUE, 5 and 10 apart, 15 both FALSE: (0.7 - 0.5) / (1 - 0.5)
    found = agree(labels("T" * 25 + "F" * 25), labels("T" * 20 + "F" * 5 + "T" * 10 + "F" * 15), resamples=300)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.share == pytest.approx(0.7)
    assert 0.05 < found.kappa.low < 0.4 < found.kappa.high < 0.75
    assert (found.rows, found.unreadable, found.unshared) == (50, 0, 0)


@given(st.lists(st.tuples(st.sampled_from(["TRUE", "FALSE"]), st.sampled_from(["TRUE", "FALSE"])), min_size=1, max_size=30))
def test_kappa_is_that_of_scikit_learn(pairs):
    first, second = map(list, zip(*pairs, strict=True))
    expected = None if len({*first, *second}) == 1 else pytest.approx(cohen_kappa_score(first, second))
    assert cohen_kappa(first, second) == expected


def test_rows_that_one_grader_could_not_read_or_did_not_see_are_counted_apart():
    found = agree(labels("TF?TF"), labels("TFT?FTT"), resamples=10)
    assert (found.rows, found.unreadable, found.unshared) == (3, 2, 2)
    assert (found.kappa.value, found.share) == (1, 1)


def test_agreement_on_one_verdict_throughout_says_nothing():
    found = agree(labels("TTT"), labels("TTT"), resamples=10)
    assert (found.kappa.value, found.kappa.low, found.share) == (None, None, 1)
    assert agree({}, labels("T")).share is None
    assert cohen_kappa([], []) is None


def test_rows_of_a_clip_are_resampled_together():
    first, second = labels("TTTTFFFF" * 5), labels("TTTFFFFT" * 5)
    clips = {sample: str(int(sample) // 8) for sample in first}
    together = agree(first, second, clips=clips, resamples=50)
    assert together.kappa.clips == 5
    assert together.kappa.standard_error == pytest.approx(0), "all clips are alike"
    assert agree(first, second, resamples=50).kappa.standard_error > 0.05
    with pytest.raises(DataError, match="has no clip"):
        agree(first, second, clips={})


def test_a_persons_labels_are_read_from_a_csv(tmp_path: Path):
    file = tmp_path / "human.csv"
    file.write_bytes('﻿sample_id,note,label\na,"x, y",TRUE\nb,,no\nc,,1\nd,,\ne,, False \n'.encode())
    assert read_labels(file) == {"a": True, "b": False, "c": True, "d": None, "e": False}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sample_id\na\n", "has no column label"),
        ("", "has no column"),
        ("sample_id,label\na,TRUE\nb,maybe\n", "human.csv:3: label 'maybe'"),
        ("sample_id,label\na,TRUE\na,TRUE\n", "'a' appears twice"),
    ],
)
def test_a_csv_that_is_not_in_order_is_refused(text: str, says: str, tmp_path: Path):
    file = tmp_path / "human.csv"
    file.write_text(text)
    with pytest.raises(DataError) as raised:
        read_labels(file)
    assert says in str(raised.value)


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")

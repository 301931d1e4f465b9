"""Every boundary of every table; the tables are those of CMU, MMSA and the questionnaires."""

from __future__ import annotations

import pytest

from hba_ray.convert.discretise import (
    HIGHEST_SCORE,
    IEMOCAP_ALL,
    IEMOCAP_FOUR,
    MOSEI_EMOTIONS,
    PRESENT_FROM,
    SEVEN,
    chsims_sentiment,
    is_present,
    mosei_emotion,
    mosei_sentiment,
)
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError

MOSEI = [  # score, class by CMU's rule, class by rounding
    ("-3", -3, -3),
    ("-2.6666667", -3, -3),
    ("-2.5", -3, -2),
    ("-2.3333333", -3, -2),
    ("-2.0000001", -3, -2),
    ("-2", -2, -2),
    ("-1.6666666", -2, -2),
    ("-1.5", -2, -2),
    ("-1.3333333", -2, -1),
    ("-1.0000001", -2, -1),
    ("-1", -1, -1),
    ("-0.6666667", -1, -1),
    ("-0.5", -1, 0),
    ("-0.33333334", -1, 0),
    ("-0.0000001", -1, 0),
    ("-0.0", 0, 0),
    ("0", 0, 0),
    ("0.0000001", 1, 0),
    ("0.33333334", 1, 0),
    ("0.5", 1, 0),
    ("0.6666667", 1, 1),
    ("1", 1, 1),
    ("1.0000001", 2, 1),
    ("1.3333334", 2, 1),
    ("1.5", 2, 2),
    ("1.6666666", 2, 2),
    ("2", 2, 2),
    ("2.0000001", 3, 2),
    ("2.3333333", 3, 2),
    ("2.5", 3, 2),
    ("2.6666667", 3, 3),
    ("3", 3, 3),
    ("3.0", 3, 3),
]
CHSIMS = [
    ("-1", 0),
    ("-1.0", 0),
    ("-0.8", 0),
    ("-0.70000001", 0),
    ("-0.7", 0),
    ("-0.70", 0),
    ("-0.69999999", 1),
    ("-0.6", 1),
    ("-0.2", 1),
    ("-0.10000001", 1),
    ("-0.1", 1),
    ("-0.09999999", 2),
    ("-0.0", 2),
    ("0.0", 2),
    ("0.1", 2),
    ("1e-1", 2),
    ("0.10000001", 3),
    ("0.2", 3),
    ("0.6", 3),
    ("0.7", 3),
    ("0.70000001", 4),
    ("0.8", 4),
    ("1.0", 4),
    ("1", 4),
]


@pytest.mark.parametrize(("score", "by_cmu", "by_rounding"), MOSEI)
def test_sentiment_of_mosei(score: str, by_cmu: int, by_rounding: int):
    assert mosei_sentiment(score) == SEVEN[by_cmu + 3]
    assert mosei_sentiment(score, "round") == SEVEN[by_rounding + 3]


@pytest.mark.parametrize(("score", "place"), CHSIMS)
def test_sentiment_of_chsims_is_compared_as_decimal_text(score: str, place: int):
    assert chsims_sentiment(score) == DATASETS["chsimsv2"].labels[place]


def test_the_seven_names_are_the_labels_of_the_dataset():
    assert DATASETS["mosei_senti"].labels == SEVEN
    assert set(MOSEI_EMOTIONS) == set(DATASETS["mosei_emotion"].labels)


@pytest.mark.parametrize("score", ["", "x", "nan", "inf", "3.1", "-3.0001"])
def test_what_is_no_score_is_refused(score: str):
    for discretise in (mosei_sentiment, chsims_sentiment):
        with pytest.raises(DataError, match=r"^row 7: is ") as caught:
            discretise(score, where="row 7")
        assert caught.value.reason in ("wrong type", "out of range")


@pytest.mark.parametrize(
    ("intensity", "label"),
    [
        ({}, None),
        ({"happy": 0.6666667, "sad": 0.99}, None),
        ({"fear": 1.0}, "fear"),
        ({"fear": 1.0, "disgust": 1.0, "surprise": 1.0, "anger": 1.0, "sad": 1.0, "happy": 1.0}, "happy"),
        ({"fear": 1.0, "disgust": 1.0, "surprise": 1.0, "anger": 1.0, "sad": 1.0}, "sad"),
        ({"fear": 2.0, "disgust": 2.0, "surprise": 2.0, "anger": 2.0}, "anger"),
        ({"fear": 2.0, "disgust": 2.0, "surprise": 2.0}, "surprise"),
        ({"fear": 3.0, "disgust": 3.0, "happy": 2.9}, "disgust"),
    ],
)
def test_the_strongest_emotion_counts_from_an_intensity_of_1_and_the_first_of_a_tie(intensity: dict[str, float], label: str | None):
    assert mosei_emotion(intensity) == label


def test_another_least_intensity():
    assert mosei_emotion({"sad": 0.6667}, 0.5) == "sad"
    assert mosei_emotion({"sad": 1.0}, 1.5) is None


@pytest.mark.parametrize("scale", ["PHQ-8", "PHQ-9", "GAD-7"])
def test_a_disorder_is_present_from_a_score_of_10(scale: str):
    present = [score for score in range(HIGHEST_SCORE[scale] + 1) if is_present(scale, score)]
    assert present == list(range(10, HIGHEST_SCORE[scale] + 1))
    assert not is_present(scale, 9.5)
    assert PRESENT_FROM.keys() == HIGHEST_SCORE.keys()


def test_codes_of_iemocap():
    assert IEMOCAP_FOUR == {"ang": "anger", "hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral"}
    assert {code: label for code, label in IEMOCAP_ALL.items() if code not in IEMOCAP_FOUR} == {
        "dis": "disgust",
        "fea": "fear",
        "sur": "surprise",
    }
    assert set(IEMOCAP_ALL.values()) == set(DATASETS["iemocap"].labels)

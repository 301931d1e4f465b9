"""Metrics against the paper's formulas written out, against scikit-learn, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from hba_ray.data.tasks import TASKS
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import (
    METRICS,
    POLARITY,
    ClassScore,
    binary_weighted_f1,
    confusion,
    exact_match,
    judge_accuracy,
    mean_weighted_accuracy,
    per_class,
    weighted_f1,
)

PATIENT = settings(deadline=None)
EMOTIONS = TASKS["EMO"].labels
SENTIMENTS = TASKS["SEN"].labels
STRAY = st.one_of(st.none(), st.text(max_size=8))


def rows(labels: tuple[str, ...], min_size: int = 1) -> st.SearchStrategy[list[tuple[str, str | None]]]:
    """Lists of (truth, prediction); predictions may be anything."""
    return st.lists(st.tuples(st.sampled_from(labels), st.sampled_from(labels) | STRAY), min_size=min_size, max_size=30)


def by_the_formula(pairs: list[tuple[str, str | None]]) -> float:
    """Weighted F1 of appendix A.5, one count at a time."""
    total = 0.0
    for label in {truth for truth, _ in pairs}:
        hits = sum(truth == label == guess for truth, guess in pairs)
        true_rows = sum(truth == label for truth, _ in pairs)
        guessed_rows = sum(guess == label for _, guess in pairs)
        if hits:
            precision, recall = hits / guessed_rows, hits / true_rows
            total += true_rows / len(pairs) * 2 * precision * recall / (precision + recall)
    return total


@PATIENT
@given(rows(EMOTIONS))
def test_weighted_f1_is_the_formula(pairs):
    true, predicted = zip(*pairs, strict=True)
    assert weighted_f1(true, predicted) == pytest.approx(by_the_formula(pairs))


@PATIENT
@given(st.lists(st.tuples(st.sampled_from(EMOTIONS), st.sampled_from(EMOTIONS)), min_size=1, max_size=30))
def test_weighted_f1_is_that_of_scikit_learn(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    expected = f1_score(true, predicted, average="weighted", zero_division=0)  # pyright: ignore[reportArgumentType]
    assert weighted_f1(true, predicted) == pytest.approx(expected)


@PATIENT
@given(rows(SENTIMENTS))
def test_binary_weighted_f1_is_the_formula_on_negative_against_positive(pairs):
    counted = [(POLARITY[truth], POLARITY.get(guess)) for truth, guess in pairs if truth != "neutral"]
    true, predicted = zip(*pairs, strict=True)
    assert binary_weighted_f1(true, predicted) == (pytest.approx(by_the_formula(counted)) if counted else None)


@PATIENT
@given(rows(SENTIMENTS))
def test_rows_of_neutral_truth_change_nothing(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    assert binary_weighted_f1([*true, "neutral", "neutral"], [*predicted, "positive", None]) == binary_weighted_f1(true, predicted)


@PATIENT
@given(rows(EMOTIONS))
def test_mean_weighted_accuracy_is_the_mean_balanced_accuracy_of_the_classes(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    present = set(true)
    if len(present) == 1:
        expected = 0.5 * float(np.mean([truth == guess for truth, guess in pairs]))
    else:
        expected = np.mean([balanced_accuracy_score([t == label for t in true], [p == label for p in predicted]) for label in present])
    assert mean_weighted_accuracy(true, predicted) == pytest.approx(expected)


@PATIENT
@given(st.lists(st.tuples(st.sampled_from(EMOTIONS), st.sampled_from(EMOTIONS)), min_size=1, max_size=30))
def test_classes_and_confusion_are_those_of_scikit_learn(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    shares = precision_recall_fscore_support(true, predicted, labels=EMOTIONS, average=None, zero_division=0)  # pyright: ignore[reportArgumentType]
    for ours, precision, recall, f1, support in zip(per_class(true, predicted, EMOTIONS), *map(np.asarray, shares), strict=True):
        assert (ours.precision or 0, ours.recall or 0, ours.f1 or 0, ours.support) == pytest.approx((precision, recall, f1, support))
    assert (confusion(true, predicted, EMOTIONS)[:, :-1] == confusion_matrix(true, predicted, labels=EMOTIONS)).all()


@PATIENT
@given(st.lists(st.sampled_from(["TRUE", "FALSE", None]), min_size=1, max_size=30))
def test_judge_accuracy_is_the_accuracy_of_scikit_learn_against_all_true(verdicts):
    assert judge_accuracy(["a wall"] * len(verdicts), verdicts) == pytest.approx(
        accuracy_score(["TRUE"] * len(verdicts), [verdict or "unreadable" for verdict in verdicts])
    )


@PATIENT
@given(rows(SENTIMENTS), st.randoms())
def test_every_metric_is_a_share_and_ignores_the_order_of_rows(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for metric in METRICS.values():
        value, again = (metric(*zip(*some, strict=True)) for some in (pairs, shuffled))
        assert value == (None if value is None else pytest.approx(again))
        assert value is None or 0 <= value <= 1


@PATIENT
@given(rows(EMOTIONS))
def test_a_stray_prediction_is_a_miss_and_no_false_positive(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    before = {row.label: row for row in per_class(true, predicted, EMOTIONS)}
    after = {row.label: row for row in per_class([*true, "sad"], [*predicted, "no emotion at all"], EMOTIONS)}
    assert all(before[label] == after[label] for label in EMOTIONS if label != "sad")
    assert before["sad"].precision == after["sad"].precision
    assert after["sad"].support == before["sad"].support + 1


@PATIENT
@given(rows(EMOTIONS, min_size=0))
def test_confusion_holds_every_row_once(pairs):
    counts = confusion([truth for truth, _ in pairs], [guess for _, guess in pairs], EMOTIONS)
    assert counts.shape == (len(EMOTIONS), len(EMOTIONS) + 1)
    for row, truth in enumerate(EMOTIONS):
        for column, guess in enumerate(EMOTIONS):
            assert counts[row, column] == pairs.count((truth, guess))
        assert counts[row, -1] == sum(truth == t and guess not in EMOTIONS for t, guess in pairs)


def test_sentiment_by_hand():
    true = ["highly negative", "negative", "weakly negative", "neutral", "weakly positive", "highly positive"]
    predicted = ["weakly negative", "positive", "neutral", "positive", "positive", None]
    # negative: 1 of 3 found, no false alarm, F1 = 2/4; positive: 1 of 2 found, one false alarm, F1 = 2/4
    assert binary_weighted_f1(true, predicted) == pytest.approx(3 / 5 * 0.5 + 2 / 5 * 0.5)


def test_emotion_by_hand():
    true = ["anger", "anger", "sad", "happy"]
    predicted = ["anger", "sad", "sad", "calm"]
    anger, sad, happy = 0.5 * (1 / 2 + 2 / 2), 0.5 * (1 + 2 / 3), 0.5 * (0 + 3 / 3)
    assert mean_weighted_accuracy(true, predicted) == pytest.approx((anger + sad + happy) / 3)


def test_one_class_only_has_no_negatives_and_reaches_one_half():
    assert mean_weighted_accuracy(["sad", "sad"], ["sad", "sad"]) == 0.5
    assert mean_weighted_accuracy(["sad", "sad"], ["sad", "fear"]) == 0.25


def test_no_positives_is_scored_on_the_negatives_alone():
    assert binary_weighted_f1(["negative", "negative"], ["negative", "positive"]) == pytest.approx(2 / 3)
    assert weighted_f1(["no ptsd", "no ptsd"], ["no ptsd", "ptsd"]) == pytest.approx(2 / 3)


def test_a_constant_emotion_scores_one_half():
    true = ["anger", "sad", "happy", "happy"]
    assert {mean_weighted_accuracy(true, [label] * 4) for label in EMOTIONS} == {0.5}


def test_predictions_that_are_all_strays_score_zero_but_are_not_missing():
    assert weighted_f1(["ptsd", "no ptsd"], [None, "maybe"]) == 0
    assert binary_weighted_f1(["positive", "negative"], ["neutral", "joy"]) == 0
    assert mean_weighted_accuracy(["sad", "fear"], [None, ""]) == 0.5, "nothing is found, nothing is falsely found"


def test_a_single_row():
    assert weighted_f1(["ptsd"], ["ptsd"]) == binary_weighted_f1(["positive"], ["weakly positive"]) == 1
    assert weighted_f1(["ptsd"], ["no ptsd"]) == binary_weighted_f1(["positive"], ["negative"]) == 0


@pytest.mark.parametrize("name", METRICS)
def test_no_rows_is_missing_and_not_zero(name):
    assert METRICS[name]([], []) is None


def test_all_neutral_is_missing_and_not_zero():
    assert binary_weighted_f1(["neutral", "neutral"], ["neutral", "positive"]) is None


@pytest.mark.parametrize("name", METRICS)
def test_unequal_lengths_are_refused(name):
    with pytest.raises(DataError, match="2 true labels but 1 predictions"):
        METRICS[name](["positive", "negative"], ["positive"])


def test_a_truth_on_no_sentiment_scale_is_refused_and_not_dropped():
    with pytest.raises(DataError, match="'joy' is none of the classes"):
        binary_weighted_f1(["positive", "joy"], ["positive", "positive"])


def test_a_truth_beyond_the_classes_is_refused():
    with pytest.raises(DataError, match="'calm' is none of the classes"):
        per_class(["calm"], ["sad"], ["sad", "fear"])


def test_labels_that_differ_in_a_trailing_nul_stay_apart():
    assert weighted_f1(["sad"], ["sad\0"]) == 0


def test_exact_match_sets_case_and_the_kind_of_white_space_aside():
    said = [" he WAVES.\n", "STRASSE", "a\u00a0 wall", "awall", None]
    assert exact_match(["He waves.", "Straße", "A wall", "a wall", "yes"], said) == 0.6


def test_shares_that_do_not_exist_are_missing_and_not_zero():
    assert per_class(["sad", "fear"], ["sad", "calm"], ["sad", "fear", "calm", "anger"]) == [
        ClassScore("sad", 1.0, 1.0, 1.0, 1),
        ClassScore("fear", None, 0.0, 0.0, 1),
        ClassScore("calm", 0.0, None, None, 0),
        ClassScore("anger", None, None, None, 0),
    ]
    assert per_class([], [], ["sad"]) == [ClassScore("sad", None, None, None, 0)]

"""Intervals and tests against scikit-learn, scipy, hand-made cases, and data whose truth is known."""

# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from hba_ray.data.tasks import TASKS
from hba_ray.errors import DataError
from hba_ray.evaluation import statistics
from hba_ray.evaluation.metrics import METRICS, CountMetric, Pair
from hba_ray.evaluation.published import published_score
from hba_ray.evaluation.statistics import (
    bootstrap_draws,
    bootstrap_interval,
    compare_arms,
    expected_calibration_error,
    holm,
    minimum_detectable_difference,
    spearman,
    welch_interval,
)

LABELS = {
    "binary_weighted_f1": TASKS["SEN"].labels,
    "mean_weighted_accuracy": TASKS["EMO"].labels,
    "weighted_f1": TASKS["HUM"].labels,
    "exact_match": ("a wall", "A wall ", "a door"),
}
TABLE_14 = {  # the paper's sample counts
    "mosei_senti": 31453,
    "intentqa": 16297,
    "meld_emotion": 13706,
    "meld_senti": 13706,
    "mosei_emotion": 8598,
    "cremad": 7442,
    "siq2": 6437,
    "chsimsv2": 4403,
    "tess": 2800,
    "urfunny": 2125,
    "mmpsy_anxiety": 1275,
    "mmpsy_depression": 1275,
    "mimeqa": 806,
    "mmsd": 690,
    "ptsd_in_the_wild": 634,
    "daicwoz": 189,
}


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[str], list[str | None], list[str]]:
    """A metric and rows of (truth, prediction, clip), also with strays, single classes and all neutral."""
    metric = draw(st.sampled_from(sorted(LABELS)))
    pool = st.sampled_from(LABELS[metric])
    rows = draw(st.lists(st.tuples(pool, pool | st.none() | st.just("stray"), st.sampled_from("abcde")), min_size=1, max_size=25))
    true, predicted, clips = (list(column) for column in zip(*rows, strict=True))
    return metric, true, predicted, clips


@settings(deadline=None, max_examples=60)
@given(cases())
def test_a_draw_is_the_metric_on_the_rows_of_the_drawn_clips(case):
    metric, true, predicted, clips = case
    (weights_RC,) = statistics._resampled(len(set(clips)), 5, seed=3)
    times = [dict(zip(dict.fromkeys(clips), weights_C, strict=True)) for weights_C in weights_RC]
    drawn = [[place for place, clip in enumerate(clips) for _ in range(int(of_clip[clip]))] for of_clip in times]
    scores = [METRICS[metric]([true[place] for place in places], [predicted[place] for place in places]) for places in drawn]
    found = bootstrap_draws(metric, true, predicted, clips, resamples=5, seed=3)
    np.testing.assert_allclose(found, np.array(scores, dtype=float), rtol=0, atol=1e-12)


def test_every_metric_of_the_benchmark_has_an_interval():
    for metric in METRICS:
        label = LABELS.get(metric, ("a", "b"))[0]
        found = bootstrap_interval(metric, [label] * 4, [label] * 4, list("abcd"), resamples=20)
        assert found.value is not None and found.low is not None and found.low <= found.value <= found.high


class Accuracy(CountMetric):
    """A metric that the package does not have."""

    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        return counts_RP @ np.array([float(label == guess) for label, guess in pairs]) / counts_RP.sum(1)


def test_one_definition_gives_a_new_metric_its_value_interval_and_comparison():
    accuracy, true, clips = Accuracy(), ["sad", "fear"] * 20, [str(place) for place in range(40)]
    found = bootstrap_interval(accuracy, true, ["sad"] * 40, clips)
    assert accuracy(true, ["sad"] * 40) == found.value == 0.5 and found.low < 0.5 < found.high
    against = compare_arms(accuracy, true, ["sad"] * 40, true, clips, resamples=200)
    assert against.difference.value == 0.5 and against.p_value < 0.01


def test_the_interval_of_a_share_is_the_textbook_one():
    rng = np.random.default_rng(0)
    predicted = np.where(rng.random(1000) < 0.7, "x", "y").tolist()
    found = bootstrap_interval("exact_match", ["x"] * 1000, predicted, [str(row) for row in range(1000)], resamples=4000)
    error = math.sqrt(found.value * (1 - found.value) / 1000)
    assert found.standard_error == pytest.approx(error, rel=0.05)
    assert (found.low, found.high) == (
        pytest.approx(found.value - 1.96 * error, abs=0.004),
        pytest.approx(found.value + 1.96 * error, abs=0.004),
    )
    assert found.clips == 1000


def test_rows_of_one_clip_widen_the_interval():
    hits = ["x" if clip % 3 else "y" for clip in range(60)]
    alone = bootstrap_interval("exact_match", ["x"] * 60, hits, [str(clip) for clip in range(60)])
    tenfold = bootstrap_interval("exact_match", ["x"] * 600, hits * 10, [str(clip) for clip in range(60)] * 10)
    as_if_apart = bootstrap_interval("exact_match", ["x"] * 600, hits * 10, [str(row) for row in range(600)])
    assert tenfold == alone, "ten copies of a row are no more evidence than one"
    assert as_if_apart.standard_error == pytest.approx(alone.standard_error / math.sqrt(10), rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        clip_hit = rng.random(80) < 0.6
        predicted = ["x" if hit else "y" for hit in clip_hit for _ in range(3)]
        clips = [str(clip) for clip in range(80) for _ in range(3)]
        found = bootstrap_interval("exact_match", ["x"] * 240, predicted, clips, resamples=400, seed=trial)
        covered += found.low <= 0.6 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_without_rows_or_without_rows_that_count_everything_is_missing():
    empty = bootstrap_interval("weighted_f1", [], [], [])
    neutral = bootstrap_interval("binary_weighted_f1", ["neutral"] * 3, ["positive"] * 3, list("abc"))
    for found in (empty, neutral):
        assert (found.value, found.low, found.high, found.standard_error) == (None, None, None, None)
    assert compare_arms("weighted_f1", [], [], [], []).p_value is None


def test_arms_that_agree_do_not_differ():
    rows = ["ptsd", "no ptsd"] * 10
    same = compare_arms("weighted_f1", rows, rows, rows, [str(place) for place in range(20)], resamples=200)
    assert (same.difference.value, same.difference.low, same.difference.high, same.p_value) == (0, 0, 0, 1)


def test_the_permutation_test_is_the_sign_test_where_the_metric_is_a_share():
    # of 14 clips on which the arms differ the second arm wins 12: two-sided sign test
    first, second = ["y"] * 12 + ["x"] * 2 + ["x"] * 30, ["x"] * 12 + ["y"] * 2 + ["x"] * 30
    found = compare_arms("exact_match", ["x"] * 44, first, second, [str(row) for row in range(44)], resamples=20_000)
    assert found.difference.value == pytest.approx(10 / 44)
    assert found.p_value == pytest.approx(stats.binomtest(12, 14).pvalue, abs=0.003)
    assert found.difference.low > 0
    assert found.detectable == pytest.approx(2.8016 * found.difference.standard_error, rel=1e-3)


def test_p_values_are_no_smaller_than_they_may_be_where_the_arms_are_alike():
    rng = np.random.default_rng(2)
    small = 0
    clips = [str(row // 2) for row in range(200)]
    for trial in range(200):
        truth = rng.choice(["ptsd", "no ptsd"], 200).tolist()
        arms = [np.where(rng.random(200) < 0.7, truth, "ptsd").tolist() for _ in range(2)]
        small += compare_arms("weighted_f1", truth, *arms, clips, resamples=200, seed=trial).p_value <= 0.1
    assert 0.02 <= small / 200 <= 0.16  # ties make the test careful


def test_swapping_the_arms_swaps_the_sign_alone():
    rng = np.random.default_rng(3)
    truth, one, two = (rng.choice(["sad", "fear", "calm"], 60).tolist() for _ in range(3))
    clips = [str(row // 3) for row in range(60)]
    there, back = (compare_arms("mean_weighted_accuracy", truth, *arms, clips, resamples=500) for arms in ((one, two), (two, one)))
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.p_value == pytest.approx(back.p_value, abs=0.05)
    assert there.difference.low == pytest.approx(-back.difference.high)


def test_equal_seeds_give_equal_draws_and_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch):
    rows, guesses, clips = ["sad", "fear", "sad"] * 5, ["sad", "fear"] * 7 + ["sad"], [str(place) for place in range(15)]
    draws = bootstrap_draws("weighted_f1", rows, guesses, clips, resamples=300, seed=5)
    assert draws.shape == (300,)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    np.testing.assert_array_equal(draws, bootstrap_draws("weighted_f1", rows, guesses, clips, resamples=300, seed=5))
    assert not np.array_equal(draws, bootstrap_draws("weighted_f1", rows, guesses, clips, resamples=300, seed=6))


def test_lists_of_different_lengths_and_strange_labels_are_errors():
    for true, predicted, clips in ((["sad"], ["sad"], []), (["sad"], [], ["a"])):
        with pytest.raises(DataError):
            bootstrap_interval("weighted_f1", true, predicted, clips)
    with pytest.raises(DataError):
        bootstrap_interval("binary_weighted_f1", ["sad"], ["sad"], ["a"])


@given(*[st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=2, max_size=8)] * 2)
def test_welchs_interval_is_that_of_scipy_and_is_missing_where_nothing_varies(before: list[float], after: list[float]):
    found = welch_interval(before, after)
    if max(np.ptp(before), np.ptp(after)) == 0:
        assert found is None
        return
    assume(min(np.ptp(before), np.ptp(after)) > 0)  # of values that are alike scipy warns
    expected = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_interval_of_a_difference_needs_two_values_on_each_side_and_takes_one_side_that_does_not_vary():
    assert welch_interval([0.1], [0.2, 0.3]) is None
    low, high = welch_interval([0.1, 0.3], [1.0, 1.0]) or (0.0, 0.0)
    assert low + high == pytest.approx(1.6) and low < 0


def test_holm_by_hand():
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.04, 0.001, 0.02, 0.9]) == pytest.approx([0.08, 0.004, 0.06, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_the_detectable_difference_is_found_as_often_as_it_says():
    error = 0.02
    seen = np.random.default_rng(4).normal(minimum_detectable_difference(error), error, 20_000)
    assert np.mean(np.abs(seen) > 1.96 * error) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("probability", "correct", "error"),
    [
        ([], [], None),
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0], [False], 1.0),
        ([0.0], [False], 0.0),
        ([0.95, 0.95, 0.55, 0.55], [True, False, True, False], 0.25),  # (0.45 + 0.05) / 2
        ([0.2, 0.20001], [True, False], 0.500005),  # two bins that meet at 0.2
    ],
)
def test_calibration_by_hand(probability, correct, error):
    assert expected_calibration_error(probability, correct, bins=5) == (None if error is None else pytest.approx(error))


def test_a_probability_is_between_nought_and_one():
    for wrong in (1.2, -0.1, math.nan):
        with pytest.raises(DataError):
            expected_calibration_error([wrong], [True])


@pytest.mark.parametrize(
    ("model", "published"),
    [("OmniSapiens-7B SFT", -0.134554126), ("OmniSapiens-7B RL", -0.47971471), ("OmniSapiens-7B BAM", -0.342235494)],
)
def test_spearman_is_that_of_table_15(model, published):
    sizes, scores = list(TABLE_14.values()), [published_score(model, dataset) for dataset in TABLE_14]
    assert spearman(sizes, scores, ties="best") == pytest.approx(published, abs=1e-8)
    assert spearman(sizes, scores) == pytest.approx(stats.spearmanr(sizes, scores)[0])


def test_spearman_is_missing_where_there_is_nothing_to_rank():
    assert spearman([1, 2], [3, 4]) is None
    assert spearman([1, 2, 3], [4, 4, 4]) is None
    assert spearman([1, 2, 3], [9, 5, 1]) == -1

"""Sentiment scales by hand and against scikit-learn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from hba_ray.data.tasks import DATASETS, TASKS
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import FIVE, binary_weighted_f1, scales, sentiment_scales

SEVEN = TASKS["SEN"].labels


@pytest.mark.parametrize(("dataset", "scales"), [("mosei_senti", [7, 5, 3, 2]), ("chsimsv2", [5, 3, 2]), ("meld_senti", [3, 2])])
def test_a_dataset_is_scored_on_the_scales_that_it_has_the_classes_for(dataset: str, scales: list[int]):
    labels = DATASETS[dataset].labels
    scores = sentiment_scales(labels, labels, labels)
    assert [score.classes for score in scores] == scales
    assert all((score.accuracy, score.weighted_f1) == (1, 1) for score in scores)
    assert [score.rows for score in scores] == [len(labels)] * (len(scales) - 1) + [len(labels) - 1]


def test_each_scale_has_as_many_classes_as_it_says():
    assert {classes: len(set(merged.values())) for classes, merged in scales().items()} == {7: 7, 5: 5, 3: 3}
    assert set(FIVE["with_highly"].values()) == set(DATASETS["chsimsv2"].labels)


def test_a_miss_can_be_a_hit_on_a_coarser_scale():
    true = ["negative", "weakly positive", "neutral"]
    scores = sentiment_scales(true, ["highly negative", "positive", "weakly negative"], SEVEN)
    assert [score.accuracy for score in scores] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SEVEN), st.sampled_from(SEVEN)), min_size=1, max_size=30))
def test_scores_are_those_of_scikit_learn(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    *finer, two = sentiment_scales(true, predicted, SEVEN)
    for score in finer:
        ours, theirs = [scales()[score.classes][x] for x in true], [scales()[score.classes][x] for x in predicted]
        assert score.accuracy == pytest.approx(accuracy_score(ours, theirs))
        assert score.weighted_f1 == pytest.approx(f1_score(ours, theirs, average="weighted", zero_division=0))  # pyright: ignore[reportArgumentType]
    assert two.weighted_f1 == binary_weighted_f1(true, predicted)


def test_edge_cases_are_missing_or_misses():
    assert [score.accuracy for score in sentiment_scales(["neutral"] * 2, [None, "joy"], SEVEN)] == [0, 0, 0, None]
    assert all(score.weighted_f1 is None for score in sentiment_scales([], [], SEVEN))
    with pytest.raises(DataError):
        sentiment_scales(["joy"], ["joy"], SEVEN)


def test_the_five_classes_join_as_the_spec_says():
    true, predicted = ["negative", "negative", "highly negative"], ["weakly negative", "highly negative", "highly negative"]

    def five(**rule: str) -> float | None:
        return next(score.accuracy for score in sentiment_scales(true, predicted, SEVEN, **rule) if score.classes == 5)

    assert five() == five(merging="with_highly") == pytest.approx(2 / 3)
    assert five(merging="with_weakly") == pytest.approx(2 / 3)
    assert FIVE["with_highly"]["negative"] == "highly negative" and FIVE["with_weakly"]["positive"] == "weakly positive"
    predicted = ["weakly negative"] * 3
    assert (five(), five(merging="with_weakly")) == (0, pytest.approx(2 / 3))

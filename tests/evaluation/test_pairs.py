"""Arms side by side: on shared rows, by the dataset's own metric, corrected for the number of tests."""

from __future__ import annotations

import dataclasses

import pytest

from hba_ray.errors import DataError
from hba_ray.evaluation.pairs import ArmRows, PairScore, compare_tables, pairs_from_json, pairs_to_json, with_holm
from hba_ray.evaluation.statistics import compare_arms
from tests.evaluation.test_scores import predictions

TRUE = ["sarcasm", "not sarcasm"] * 20
BETTER = predictions(mmsd=[(label, label) for label in TRUE], tess=[("sad", "sad")])
WORSE = predictions(mmsd=[(label, "sarcasm") for label in TRUE], cremad=[("sad", "sad")])
OPEN = predictions(mimeqa=[("a wall", "a door")] * 4)
LEFT = {("mimeqa", f"mimeqa-{place}"): False for place in range(4)}
RIGHT: dict[tuple[str, str], bool | None] = {key: key[1] != "mimeqa-0" for key in LEFT}


def test_arms_are_compared_on_the_datasets_and_rows_of_both():
    (pair,) = compare_tables(ArmRows("sft", WORSE), ArmRows("sft+bam", BETTER.slice(1)))
    assert (pair.first, pair.second, pair.dataset, pair.metric, pair.rows, pair.clips) == ("sft", "sft+bam", "mmsd", "weighted_f1", 39, 39)
    assert pair.difference is not None and pair.interval is not None and pair.p_value is not None
    assert pair.interval[0] < pair.difference < pair.interval[1] and pair.p_value < 0.01


def test_the_difference_is_that_of_the_library():
    (pair,) = compare_tables(ArmRows("a", WORSE), ArmRows("b", BETTER))
    found = compare_arms("weighted_f1", TRUE, ["sarcasm"] * 40, TRUE, [str(row) for row in range(40)])
    assert pair.difference == pytest.approx(found.difference.value)
    assert pair.detectable == pytest.approx(found.detectable, rel=0.1)


def test_open_answers_are_compared_by_verdict_only_where_both_arms_were_judged():
    (judged,) = compare_tables(ArmRows("a", OPEN, LEFT), ArmRows("b", OPEN, RIGHT))
    assert (judged.metric, judged.difference) == ("judge_accuracy", 0.75)
    (by_text,) = compare_tables(ArmRows("a", OPEN, LEFT), ArmRows("b", OPEN))
    assert (by_text.metric, by_text.difference, by_text.p_value) == ("exact_match", 0, 1)


def test_arms_of_two_atlases_are_refused():
    with pytest.raises(DataError, match="another truth"):
        compare_tables(ArmRows("a", OPEN), ArmRows("b", predictions(mimeqa=[("a rope", "a door")] * 4)))


def test_arms_that_put_a_row_into_different_clips_are_refused():
    moved = BETTER.set_column(BETTER.schema.get_field_index("clip_id"), "clip_id", [["elsewhere"] * len(BETTER)])
    with pytest.raises(DataError, match="another truth or clip"):
        compare_tables(ArmRows("a", BETTER), ArmRows("b", moved))


def test_p_values_are_adjusted_for_all_pairs_and_the_missing_stay_missing():
    pairs = [
        PairScore("a", "b", dataset, "weighted_f1", 9, 9, 0.1, (0.0, 0.2), p, 0.1)
        for dataset, p in (("mmsd", 0.01), ("tess", None), ("cremad", 0.04))
    ]
    assert [pair.p_adjusted for pair in with_holm(pairs)] == [0.02, None, 0.04]
    assert with_holm([]) == ()


def test_comparisons_survive_json_and_nothing_else_does():
    pairs = compare_tables(ArmRows("a", WORSE), ArmRows("b", BETTER))
    assert pairs_from_json(pairs_to_json(pairs), where="x") == pairs
    with pytest.raises(DataError, match="no comparison"):
        pairs_from_json('[{"first": 3}]', where="comparison.json")


def test_a_pair_without_rows_has_no_difference():
    empty = WORSE.slice(0, 0)
    assert compare_tables(ArmRows("a", empty), ArmRows("b", BETTER)) == ()
    neutral = predictions(meld_senti=[("neutral", "positive")])
    (pair,) = compare_tables(ArmRows("a", neutral), ArmRows("b", neutral))
    assert (pair.difference, pair.interval, pair.p_value) == (None, None, None)
    assert dataclasses.replace(pair, rows=1) == pair

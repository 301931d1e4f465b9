"""Measured columns: what a row means, over which datasets and seeds, with which interval, and against another column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hba_ray.errors import DataError
from hba_ray.evaluation.columns import Column, Measurement, compare
from hba_ray.evaluation.metrics import weighted_f1
from hba_ray.evaluation.scores import dataset_seed
from hba_ray.evaluation.statistics import Interval, bootstrap_interval, compare_arms
from tests.helpers.hand_made import result, rows_of


def column(*parts: tuple[str, int, int], resamples: int = 400, **more: Any) -> Column:
    return Column([result([row for part in parts for row in rows_of(*part)], **more)], resamples=resamples)


def test_a_dataset_has_its_metric_and_an_interval_around_it():
    estimate = column(("mmsd", 80, 20)).estimate("mmsd")
    assert estimate.value == pytest.approx(0.8, abs=0.01)
    assert estimate.interval.low is not None and estimate.interval.high is not None
    assert 0.68 < estimate.interval.low < 0.78 < 0.82 < estimate.interval.high < 0.9
    assert (estimate.interval.clips, estimate.datasets, estimate.is_comparable) == (100, ("mmsd",), True)


def test_a_task_is_the_mean_over_its_datasets_and_says_which_are_absent():
    both = column(("daicwoz", 30, 10), ("mmpsy_depression", 20, 20)).estimate("DEP")
    one = column(("daicwoz", 30, 10)).estimate("DEP")
    alone = column(("mmpsy_depression", 20, 20)).estimate("DEP")
    assert one.value is not None and alone.value is not None
    assert both.value == pytest.approx((one.value + alone.value) / 2)
    assert both.is_comparable and both.datasets == ("daicwoz", "mmpsy_depression")
    assert not one.is_comparable and one.absent == ("mmpsy_depression",)


def test_what_nothing_was_predicted_of_is_missing_and_not_zero():
    estimate = column(("mmsd", 1, 1)).estimate("HUM")
    assert estimate.value is None and not estimate.is_comparable and estimate.absent == ("urfunny",)


def test_at_toy_scale_a_task_means_the_toy_dataset():
    toy = Column([result(rows_of("toy_words", 3, 1) + rows_of("mmsd", 1, 3))], toy=True, resamples=50)
    assert toy.estimate("SAR").datasets == ("toy_words",)


def test_another_measure_is_taken_over_the_datasets_own_classes():
    rows = rows_of("mosei_senti", 30, 12)
    estimate = Column([result(rows)], resamples=50).estimate("mosei_senti/weighted_f1")
    assert estimate.value == weighted_f1([str(row["true"]) for row in rows], [row["predicted"] for row in rows])
    with pytest.raises(DataError, match="no measure 'f1'"):
        column(("mmsd", 1, 1)).estimate("mmsd/f1")


def test_open_answers_need_verdicts_to_be_comparable():
    rows = rows_of("siq2", 6, 4)
    by_text = Column([result(rows)], resamples=50).estimate("SOC")
    assert by_text.value == 0.6 and not by_text.judged and not by_text.is_comparable
    verdicts = {("siq2", str(row["sample_id"])): place < 7 for place, row in enumerate(rows)} | {("siq2", "siq2-9"): None}
    judged = Column([result(rows, verdicts=verdicts)], resamples=50).estimate("SOC")
    assert judged.value == 0.7 and judged.is_comparable


def test_what_answers_say_is_looked_at_also_where_a_judge_has_graded_them():
    rows = rows_of("siq2", 6, 4)
    verdicts = {("siq2", str(row["sample_id"])): False for row in rows}
    estimate = Column([result(rows, verdicts=verdicts)], resamples=50).estimate("siq2/exact_match")
    assert estimate.value == 0.6 and estimate.is_comparable


@pytest.mark.parametrize("judged_first", [True, False])
def test_verdicts_are_not_held_against_texts(judged_first: bool):
    rows = rows_of("siq2", 10, 10)
    verdicts = {("siq2", str(row["sample_id"])): True for row in rows}
    columns = [Column([result(rows, verdicts=said)], resamples=200) for said in (verdicts, None)]
    of, over = columns if judged_first else columns[::-1]
    comparison, _ = compare(of, over, "SOC")
    assert (comparison.difference.value, comparison.p_value) == (0, 1)


def test_several_seeds_are_averaged_and_widen_the_interval():
    parts = [result(rows_of("mmsd", right, 200 - right), seed=seed) for seed, right in enumerate((120, 140, 160))]
    one, three = (Column(some, resamples=1000).estimate("mmsd") for some in (parts[1:2], parts))
    assert three.value == pytest.approx(0.7, abs=0.01) and (one.seeds, three.seeds) == (1, 3)
    assert three.spread == pytest.approx(0.1, abs=0.01) and one.spread is None
    assert one.interval.standard_error is not None and three.interval.standard_error is not None
    assert three.interval.standard_error > 1.2 * one.interval.standard_error


def test_with_one_seed_and_one_dataset_the_interval_is_the_cluster_bootstraps():
    rows = rows_of("mmsd", 33, 17)
    for row in rows:
        row["clip_id"] = str(row["clip_id"])[:-1]
    ours = Column([result(rows)], resamples=300).estimate("mmsd").interval
    true, predicted, clips = ([row[name] for row in rows] for name in ("true", "predicted", "clip_id"))
    plain = bootstrap_interval("weighted_f1", true, predicted, clips, resamples=300, seed=dataset_seed("mmsd"))  # type: ignore[arg-type]
    assert (ours.low, ours.high) == (plain.low, plain.high)


def test_places_and_the_correlation_of_size_and_score_look_at_the_whole_column():
    sizes = {"mmsd": 690, "urfunny": 2125, "tess": 2800}
    measured = column(("mmsd", 45, 5), ("urfunny", 30, 20), ("tess", 10, 40), sizes=sizes)
    assert [measured.estimate(f"{name}/rank").value for name in sizes] == [1, 2, 3]
    assert [measured.estimate(f"{name}/rows_rank").value for name in sizes] == [3, 2, 1]
    assert measured.estimate("tess/rows").value == 2800
    spearman = measured.estimate("all/spearman").interval
    assert spearman.value == pytest.approx(-1) and spearman.low is not None and spearman.low >= -1 - 1e-9


def test_rows_of_corpora_outside_the_thirteen_do_not_count_in_ranks_and_in_the_correlation_of_size_and_score():
    """Table 15: IEMOCAP has more rows and a better score than all others here, and changes no number but its own size."""
    sizes = {"mmsd": 690, "urfunny": 2125, "tess": 2800}
    parts = (("mmsd", 45, 5), ("urfunny", 30, 20), ("tess", 10, 40))
    within, beside = column(*parts, sizes=sizes), column(*parts, ("iemocap", 50, 0), sizes=sizes | {"iemocap": 10_039})
    for row in ("all/spearman", *(f"{name}/{measure}" for name in sizes for measure in ("rank", "rows", "rows_rank"))):
        assert beside.estimate(row) == within.estimate(row), row
    assert "iemocap" not in beside.estimate("all/spearman").datasets and beside.estimate("iemocap/rows").value == 10_039
    assert beside.estimate("iemocap/rank").value is None and beside.estimate("iemocap/rows_rank").value is None


def test_a_dataset_without_a_score_or_a_size_has_no_place_and_leaves_those_of_others_alone():
    neutral = [row | {"true": "neutral"} for row in rows_of("mosei_senti", 4, 0)]
    rows = [row for name, right in (("mmsd", 45), ("urfunny", 30), ("tess", 10), ("cremad", 2)) for row in rows_of(name, right, 50 - right)]
    sizes = {"mmsd": 690, "urfunny": 2125, "tess": 2800, "mosei_senti": 9}
    measured = Column([result([*rows, *neutral], sizes=sizes)], resamples=50)
    assert measured.estimate("mosei_senti/rank").value is None and measured.estimate("mmsd/rank").value == 1
    correlated = measured.estimate("all/spearman")
    assert correlated.value == pytest.approx(-1) and correlated.datasets == ("mmsd", "tess", "urfunny")


def measurement(value: float, draws: list[float] | None = None, clips: tuple[str, ...] = ("a", "b"), caveat: str = "") -> Measurement:
    drawn = None if draws is None else np.array(draws)
    return Measurement(Interval(value, None, None, None, 0.95, len(clips)), drawn, clips, caveat)


def test_measurements_that_are_no_scores_are_cells_too():
    results = [result([*rows_of("mmsd", 1, 0)], seed=seed, measurements={"cost/peak_mb": measurement(20.0 + seed)}) for seed in (0, 2)]
    estimate = Column(results).estimate("cost/peak_mb")
    assert (estimate.value, estimate.seeds) == (21.0, 2)
    assert Column(results).estimate("cost/mean_seconds").value is None


def measured(*given: Measurement) -> Column:
    return Column([result([*rows_of("mmsd", 1, 0)], seed=seed, measurements={"answers/fluency": one}) for seed, one in enumerate(given)])


def test_a_difference_of_measurements_is_paired_only_on_the_same_clips():
    wide, shifted = [1.0, 2.0, 3.0, 4.0, 5.0], [1.5, 2.5, 3.5, 4.5, 5.5]
    difference = compare(measured(measurement(3.5, shifted)), measured(measurement(3.0, wide)), "answers/fluency")[0].difference
    assert (difference.value, difference.low, difference.high) == (0.5, 0.5, 0.5)
    other = compare(measured(measurement(3.5, shifted, ("a", "c"))), measured(measurement(3.0, wide)), "answers/fluency")[0]
    assert other.difference.value == 0.5 and other.difference.low is None and other.p_value is None


def test_seeds_of_a_measurement_widen_its_interval_and_a_caveat_makes_it_not_comparable():
    estimate = measured(measurement(3.0, [3.0] * 50), measurement(4.0, [4.0] * 50)).estimate("answers/fluency")
    assert (estimate.value, estimate.interval.low, estimate.interval.high, estimate.seeds) == (3.5, 3.0, 4.0, 2)
    assert estimate.is_comparable
    assert not measured(measurement(3.0, caveat="other hardware")).estimate("answers/fluency").is_comparable


def test_a_measurement_of_an_unknown_name_is_refused():
    with pytest.raises(DataError, match="no measure 'fluidity'") as refused:
        measured().estimate("answers/fluidity")
    assert "fluency, coherence, relevance, perplexity" in refused.value.way_out


def test_two_trials_for_one_cell_are_refused():
    with pytest.raises(DataError, match="both first and second predict mmsd with seed 0"):
        Column([result(rows_of("mmsd", 1, 0), trial=name) for name in ("first", "second")])


def test_a_difference_of_columns_is_that_of_the_paired_rows():
    better, worse = (column(("mmsd", right, 100 - right)) for right in (85, 60))
    comparison, datasets = compare(better, worse, "mmsd")
    assert datasets == ("mmsd",)
    assert comparison.difference.value == pytest.approx(0.25, abs=0.01)
    assert comparison.p_value is not None and comparison.p_value < 0.01
    assert comparison.detectable is not None and 0.05 < comparison.detectable < 0.2
    lists = [one.lists(0, "mmsd") for one in (worse, better)]
    plain = compare_arms(
        "weighted_f1", lists[0].true, lists[0].predicted, lists[1].predicted, lists[0].clips, resamples=400, seed=dataset_seed("mmsd")
    )
    assert (comparison.p_value, comparison.difference.low) == (plain.p_value, plain.difference.low)


def test_equal_columns_show_nothing():
    one, other = (column(("mmsd", 60, 40)) for _ in range(2))
    comparison, _ = compare(one, other, "SAR")
    assert (comparison.difference.value, comparison.p_value) == (0, 1)


def test_a_task_needs_the_same_datasets_of_both_columns_and_uses_those():
    _, datasets = compare(column(("daicwoz", 5, 5), ("mmpsy_depression", 6, 4)), column(("daicwoz", 4, 6)), "DEP")
    assert datasets == ("daicwoz",)
    nothing, datasets = compare(column(("daicwoz", 5, 5)), column(("mmpsy_depression", 6, 4)), "DEP")
    assert datasets == () and nothing.difference.value is None and nothing.p_value is None


def test_seeds_are_matched_and_a_single_one_is_held_against_all():
    ones, others = (Column([result(rows_of("mmsd", 30, 20), seed=seed) for seed in seeds], resamples=50) for seeds in ((1, 2), (3, 4)))
    assert compare(ones, others, "SAR")[0].p_value is None
    single = Column([result(rows_of("mmsd", 30, 20), seed=0)], resamples=50)
    assert compare(ones, single, "SAR")[0].difference.value == 0


def test_arms_on_another_atlas_are_refused():
    rows = rows_of("mmsd", 2, 2)
    rows[0]["true"] = "sarcasm" if rows[0]["true"] == "not sarcasm" else "not sarcasm"
    with pytest.raises(DataError, match="another truth"):
        compare(Column([result(rows)], resamples=10), column(("mmsd", 2, 2), resamples=10), "SAR")

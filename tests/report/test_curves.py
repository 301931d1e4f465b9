"""Learning curves: the right metrics on the right chart, the first of repeated steps, long logs averaged."""

import pytest

from hba_ray.report.curves import MOST_POINTS, curves


def test_training_and_validation_share_a_chart_and_the_rest_of_the_log_has_none():
    log = [
        {"step": 1, "loss": 2.0, "lr": 0.1, "rows_per_second": 9.0, "epoch": 0},
        {"step": 2, "loss": 1.0, "lr": 0.2},
        {"step": 2, "validation_loss": 1.5, "epochs_done": 1, "improved": True},
    ]
    found = curves("sft", log)
    assert [chart.title for chart in found.charts] == ["loss per row", "learning rate"]
    loss = {line.name: line.points for line in found.charts[0].lines}
    assert loss == {"loss": ((1.0, 2.0), (2.0, 1.0)), "validation loss": ((2.0, 1.5),)}


def test_each_dataset_of_a_step_has_charts_of_its_own_and_a_reward_its_parts():
    found = curves(
        "x", [{"step": 1, "toy_tone/loss": 1.0, "toy_nod/loss": 2.0, "reward/score": 0.5, "reward/acc": 0.25, "reward/task/EMO/acc": 1.0}]
    )
    assert [(chart.title, [line.name for line in chart.lines]) for chart in found.charts] == [
        ("toy_tone: loss per row", ["loss"]),
        ("toy_nod: loss per row", ["loss"]),
        ("reward and its parts", ["score", "acc"]),
    ]


def test_a_step_that_is_logged_twice_counts_once_and_what_is_no_number_not_at_all():
    (chart,) = curves("sft", [{"step": 1, "loss": 3.0}, {"step": 1, "loss": 9.0}, {"step": 2, "loss": float("nan")}]).charts
    assert chart.lines[0].points == ((1.0, 3.0),)


def test_a_long_log_is_averaged_and_says_so():
    (chart,) = curves("sft", [{"step": step, "loss": float(step)} for step in range(10 * MOST_POINTS)]).charts
    (line,) = chart.lines
    assert (len(line.points), line.averaged) == (MOST_POINTS, 10)
    assert line.points[0] == pytest.approx((4.5, 4.5)) and line.points[-1][1] == pytest.approx(10 * MOST_POINTS - 5.5)

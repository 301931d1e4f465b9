"""Forest plots: numbers are where they belong, scales hold what is drawn on them."""

import re

import pytest

from hba_ray.report.charts import SHARES, Mark, around_zero, axis, legend, strip


def place(drawn: str, name: str) -> list[float]:
    return [float(number) for number in re.findall(rf'c?x1?="([\d.]+)%"[^>]*class="{name}"', drawn)]


def test_a_value_lies_between_the_ends_of_its_interval_and_beside_its_baseline():
    drawn = strip(Mark(0.5, 0.25, 1.0, baseline=0.0, published=0.75), SHARES)
    assert place(drawn, "dot") == [50.0] and place(drawn, "base") == [3.0]
    assert sorted(place(drawn, "range")) == [26.5, 26.5, 97.0]
    assert 'x="73.50%"' in drawn and "diamond" in drawn and 'aria-hidden="true"' in drawn


def test_what_is_missing_is_not_drawn():
    drawn = strip(Mark(None), SHARES)
    assert not any(name in drawn for name in ("dot", "range", "base", "diamond"))


@pytest.mark.parametrize(("largest", "end"), [(0.07, 0.1), (0.1, 0.1), (0.11, 0.2), (0.3, 0.4), (0.5, 1.0), (0.0, 1.0)])
def test_differences_have_a_scale_with_zero_in_the_middle(largest, end):
    scale = around_zero([Mark(largest), Mark(-largest / 2)])
    assert (scale.low, scale.high, scale.zero) == (-end, end, 0.0) and scale.place(0) == "50.00%"
    assert "+" in axis(scale) and "+" not in axis(SHARES)


def test_the_legend_names_only_what_is_drawn():
    assert "published" not in legend([Mark(0.5)]) and "majority" not in legend([Mark(0.5)])
    assert "published" in legend([Mark(0.5, published=0.4)])

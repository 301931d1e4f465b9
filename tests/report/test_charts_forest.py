"""Forest plots: numbers are where they belong, scales hold what is drawn on them."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from hba_ray.report.charts import SHARES, Forest, ForestGroup, ForestRow, Mark, around_zero, axis, forest_file, legend, strip


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
    def drawn(*marks: Mark, **more: str) -> Forest:
        rows = tuple(ForestRow("a", mark, ("0.500",)) for mark in marks)
        return Forest("Scores", "Arm", SHARES, ("Score",), (ForestGroup("mmsd", rows),), **more)

    assert [words for _, words in legend(drawn(Mark(0.5), value="measured"))] == ["measured"]
    everything = legend(drawn(Mark(0.5, 0.4, 0.6, baseline=0.1), Mark(0.5, published=0.4)))
    assert [words for _, words in everything] == ["score", "95% interval", "majority baseline", "published"]
    assert all(sign.startswith("<svg") for sign, _ in everything)


def test_a_forest_in_a_file_of_its_own_is_whole_svg_in_which_text_stays_text():
    hostile = "</text><script>alert(1)</script>\x00"
    rows = (ForestRow(hostile, Mark(0.5, 0.25, 1.0, baseline=0.1), ("0.500", "0.250 to 1.000")), ForestRow("b" * 80, None, ("–", "–")))
    forest = Forest("Scores", "Arm", SHARES, ("Score", "95% interval"), (ForestGroup("mmsd", rows, "weighted f1, 9 rows"),))
    drawn = forest_file(forest, f"a run {hostile}")
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and not list(root.iter("{http://www.w3.org/2000/svg}script"))
    said = [text.strip() for text in root.itertext()]
    assert {"mmsd · weighted f1, 9 rows", "0.500", "–", hostile.replace("\x00", "\u2400"), "b" * 49 + "…"} <= set(said)
    assert place(drawn, "dot") == [50.0] and drawn.count('class="strip"') == 1
    assert root.get("aria-label") == "a run " + hostile.replace("\x00", "\u2400")

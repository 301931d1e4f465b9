"""Charts of learning curves: points inside the frame, in order, and said in words too."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.report.charts import HEIGHT, WIDTH, chart_svg, ticks
from hba_ray.report.curves import Chart, Line

VALUES = st.floats(-1e6, 1e6, allow_nan=False) | st.floats(0, 1e-4)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=30), st.integers(0, 10**6))
def test_every_point_is_inside_the_frame_and_the_svg_is_well_formed(values, start):
    line = Line("loss", tuple((float(start + place), value) for place, value in enumerate(values)))
    root = ElementTree.fromstring(chart_svg(Chart("loss & more", (line,)), "optimiser step"))
    (path,) = [one for one in root if one.get("class", "").startswith("line")]
    points = [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d", ""))]
    assert len(points) == len(values)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    higher = [(one, other) for one, other in pairwise(range(len(values))) if values[one] < values[other]]
    assert all(points[one][1] >= points[other][1] for one, other in higher), "larger is higher"


def test_a_chart_says_in_words_where_its_lines_begin_and_end():
    drawn = chart_svg(Chart("loss", (Line("loss", ((1, 2.0), (2, 0.5))), Line("validation loss", ((2, 0.75),)))), "epoch")
    assert 'role="img"' in drawn and 'aria-label="loss by epoch. loss: 2 → 0.5; validation loss: 0.75"' in drawn
    assert "s0" in drawn and "s1" in drawn


@pytest.mark.parametrize("span", [(0.0, 0.0), (0.0, 1.0), (3.0, 3.0), (-2.0, 7.3), (1e-9, 3e-9)])
def test_ticks_span_the_values_with_round_numbers(span):
    found = ticks(*span, 4)
    assert found[0] <= span[0] + 1e-12 and found[-1] >= span[1] - 1e-12 and 2 <= len(found) <= 7

"""Learning curves as SVG: a pure function from points to markup.

Forest plots: a value, its interval and what stands beside it, as one cell of a table that also has the numbers.

A cell is an SVG whose places are per cent of its width, so it stretches with the table and its strokes do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hba_ray.report.curves import Chart, Curves, Line
from hba_ray.report.markup import Html, element, join

WIDTH, HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 34.0
_LEAST = 1e-10
"""Values closer than this are drawn as one."""
STYLES = 8
"""Colours and dashes that differ; more lines than these are told apart by their legend's order alone."""


def curve_figures(curves: Curves) -> Html:
    """All charts of a step, side by side as far as the page is wide."""
    return element("div", [_figure(chart, curves.unit) for chart in curves.charts], class_="charts")


def _figure(chart: Chart, unit: str) -> Html:
    averaged = max(line.averaged for line in chart.lines)
    said = f"each point is the mean of {averaged}" if averaged > 1 else None
    entries = [element("li", _swatch(place), " ", describe(line)) for place, line in enumerate(chart.lines)]
    caption = element("figcaption", element("strong", chart.title), element("ul", entries), said and element("small", said))
    return element("figure", caption, chart_svg(chart, unit), class_="chart")


def describe(line: Line) -> str:
    """Where a line begins and ends, in words.

    >>> describe(Line("loss", ((1, 2.0), (2, 0.5))))
    'loss: 2 → 0.5'
    """
    first, last = line.points[0][1], line.points[-1][1]
    return f"{line.name}: {short(first)}" + (f" → {short(last)}" if len(line.points) > 1 else "")


def chart_svg(chart: Chart, unit: str) -> Html:
    """One chart; its label says what the lines say."""
    steps = [step for line in chart.lines for step, _ in line.points]
    values = [value for line in chart.lines for _, value in line.points]
    along, up = ticks(min(steps), max(steps), 5, whole=True), ticks(min(values), max(values), 4)
    low, high = min(up[0], min(values)), max(up[-1], max(values))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    drawn = [element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid") for value in up]
    drawn += [element("text", short(value), x=_LEFT - 6, y=y(value) + 4, class_="up") for value in up]
    drawn += [element("text", short(step), x=x(step), y=HEIGHT - _BOTTOM + 16, class_="along") for step in along if step <= last]
    drawn.append(element("text", unit, x=(WIDTH + _LEFT - _RIGHT) / 2, y=HEIGHT - 4, class_="along"))
    for place, line in enumerate(chart.lines):
        points = [(x(step), y(value)) for step, value in line.points]
        drawn.append(_path(points, place))
    label = f"{chart.title} by {unit}. " + "; ".join(map(describe, chart.lines))
    return element("svg", drawn, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=label)


def _path(points: Sequence[tuple[float, float]], place: int) -> Html:
    """A line; few points are also dots, so that a single one is seen."""
    drawn = element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=f"line s{place % STYLES}")
    dots = [element("circle", cx=x, cy=y, r=2.5, class_=f"point s{place % STYLES}") for x, y in points] if len(points) <= 12 else []
    return join(drawn, dots)


def _swatch(place: int) -> Html:
    return element("svg", element("path", d="M0 5H24", class_=f"line s{place % STYLES}"), width=24, height=10, aria_hidden="true")


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round values that span a range, at most `most + 2` of them.

    >>> ticks(0.03, 0.97, 4), ticks(1, 3, 5, whole=True)
    ([0.0, 0.5, 1.0], [1.0, 2.0, 3.0])
    """
    span = high - low
    if span <= max(_LEAST, 1e-9 * abs(high)):  # one value, as far as a screen tells
        span = abs(high) if abs(high) > _LEAST else 1.0
    raw = span / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(number * step, 12) for number in range(first, last + 1) if not whole or number * step >= low]


def short(value: float) -> str:
    """
    >>> short(0.00031), short(1234.5), short(0.25), short(-0.0), short(20000.0)
    ('3.1e-4', '1234', '0.25', '0', '20000')
    """
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value + 0.0:.0f}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"


_MARGIN = 3.0
"""Per cent of the width on both sides."""
_HEIGHT = 22.0


@dataclass(frozen=True)
class Mark:
    """
    Attributes:
        low, high: the interval.
        baseline: drawn as an upright stroke.
        published: drawn as a hollow diamond.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    published: float | None = None

    def numbers(self) -> list[float]:
        return [one for one in (self.value, self.low, self.high, self.baseline, self.published) if one is not None]


@dataclass(frozen=True)
class Scale:
    """
    Attributes:
        ticks: values that have a line and a number.
        zero: value whose line is heavier.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    zero: float | None = None

    def place(self, value: float) -> str:
        """Per cent of the width; what is off the scale stands at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{_MARGIN + (100 - 2 * _MARGIN) * share:.2f}%"


SHARES = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def around_zero(marks: Iterable[Mark]) -> Scale:
    """A scale for differences, as far to the left as to the right.

    >>> around_zero([Mark(0.03, -0.01, 0.07)]).ticks
    (-0.1, -0.05, 0.0, 0.05, 0.1)
    """
    largest = max((abs(number) for mark in marks for number in mark.numbers()), default=0.0) or 1.0
    step = 10.0 ** math.floor(math.log10(largest))
    end = next(one for one in (step, 2 * step, 4 * step, 10 * step) if one >= largest * (1 - 1e-9))
    return Scale(-end, end, tuple(round(end * part, 12) for part in (-1, -0.5, 0, 0.5, 1)), zero=0.0)


def strip(mark: Mark, scale: Scale) -> Html:
    """The plot of one row. It says nothing that the row's numbers do not, so it is hidden from screen readers."""
    middle = _HEIGHT / 2
    drawn = [_upright(scale, tick, "zero" if tick == scale.zero else "grid", 0, _HEIGHT) for tick in scale.ticks]
    if mark.baseline is not None:
        drawn.append(_upright(scale, mark.baseline, "base", 3, _HEIGHT - 3))
    if mark.low is not None and mark.high is not None:
        drawn.append(element("line", x1=scale.place(mark.low), x2=scale.place(mark.high), y1=middle, y2=middle, class_="range"))
        drawn += [_upright(scale, end, "range", middle - 3, middle + 3) for end in (mark.low, mark.high)]
    if mark.published is not None:
        diamond = element("path", d="M0-6L6 0 0 6-6 0z", class_="diamond")
        drawn.append(element("svg", diamond, x=scale.place(mark.published), y=middle, overflow="visible"))
    if mark.value is not None:
        drawn.append(element("circle", cx=scale.place(mark.value), cy=middle, r=4, class_="dot"))
    return element("svg", drawn, class_="strip", height=_HEIGHT, aria_hidden="true")


def axis(scale: Scale) -> Html:
    """The numbers above a column of strips."""
    digits = max((len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in scale.ticks), default=0)
    sign = "+" if scale.zero is not None else ""
    words = (f"{tick:{sign if tick else ''}.{digits if tick else 0}f}" for tick in scale.ticks)
    marks = [element("text", word, x=scale.place(tick), y=12) for tick, word in zip(scale.ticks, words, strict=True)]
    return element("svg", marks, class_="axis", height=16, aria_hidden="true")


def legend(marks: Sequence[Mark]) -> Html:
    """What the signs mean, as far as they are drawn."""
    shown = [("dot", "score"), ("range", "95% interval")]
    shown += [("base", "majority baseline")] if any(mark.baseline is not None for mark in marks) else []
    shown += [("diamond", "published")] if any(mark.published is not None for mark in marks) else []
    return element("p", [element("span", _sign(name), " ", words, class_="key") for name, words in shown], class_="legend")


def _sign(name: str) -> Html:
    shapes = {
        "dot": element("circle", cx=9, cy=7, r=4, class_="dot"),
        "range": element("path", d="M2 7H16M2 4V10M16 4V10", class_="range"),
        "base": element("line", x1=9, x2=9, y1=1, y2=13, class_="base"),
        "diamond": element("path", d="M9 1L15 7 9 13 3 7z", class_="diamond"),
    }
    return element("svg", shapes[name], width=18, height=14, aria_hidden="true", class_="sign")


def _upright(scale: Scale, value: float, name: str, top: float, bottom: float) -> Html:
    return element("line", x1=scale.place(value), x2=scale.place(value), y1=top, y2=bottom, class_=name)

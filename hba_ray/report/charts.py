"""Charts as SVG: learning curves, and forest plots, in which a row shows a value, its interval and what stands beside it.

Every function goes from numbers to markup in which all text is escaped. The plot of a forest's row has its places in per cent
of its width, so that it stretches with the cell of a table and its strokes do not. Colours come from the page's stylesheet,
and for a forest in a file of its own from `FILE_STYLE`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from hba_ray.report.curves import Chart, Line

WIDTH, HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 34.0
"""Size of a chart of learning curves, and margins around its lines."""
_LEAST = 1e-10
"""Values closer than this are drawn as one."""
STYLES = 8
"""Colours and dashes that differ; more lines than these are told apart by their legend's order alone."""
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""Control characters -> the signs that Unicode has for them."""
_MARGIN = 3.0
"""Free space on both sides of the plot of a forest's row, in per cent of its width."""
_ROW = 22.0
"""Height of a forest's row."""


def chart_svg(chart: Chart, unit: str) -> Markup:
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

    drawn = [_svg("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid") for value in up]
    drawn += [_svg("text", short(value), x=_LEFT - 6, y=y(value) + 4, class_="up") for value in up]
    drawn += [_svg("text", short(step), x=x(step), y=HEIGHT - _BOTTOM + 16, class_="along") for step in along if step <= last]
    drawn.append(_svg("text", unit, x=(WIDTH + _LEFT - _RIGHT) / 2, y=HEIGHT - 4, class_="along"))
    for place, line in enumerate(chart.lines):
        points = [(x(step), y(value)) for step, value in line.points]
        drawn.append(_path(points, place))
    label = f"{chart.title} by {unit}. " + "; ".join(map(describe, chart.lines))
    return _svg("svg", *drawn, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=label)


def _path(points: Sequence[tuple[float, float]], place: int) -> Markup:
    """A line; few points are also dots, so that a single one is seen."""
    drawn = _svg("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=f"line s{place % STYLES}")
    dots = [_svg("circle", cx=x, cy=y, r=2.5, class_=f"point s{place % STYLES}") for x, y in points] if len(points) <= 12 else []
    return drawn + Markup().join(dots)


def describe(line: Line) -> str:
    """Where a line begins and ends, in words.

    >>> describe(Line("loss", ((1, 2.0), (2, 0.5))))
    'loss: 2 → 0.5'
    """
    first, last = line.points[0][1], line.points[-1][1]
    return f"{line.name}: {short(first)}" + (f" → {short(last)}" if len(line.points) > 1 else "")


def swatch(place: int) -> Markup:
    """A piece of a chart's line, for its legend.

    Args:
        place: of the line among those of the chart.
    """
    return _svg("svg", _svg("path", d="M0 5H24", class_=f"line s{place % STYLES}"), width=24, height=10, aria_hidden="true")


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
    """A number in few characters, for the ticks and the legend of a chart.

    >>> short(0.00031), short(1234.5), short(0.25), short(-0.0), short(20000.0)
    ('3.1e-4', '1234', '0.25', '0', '20000')
    """
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value + 0.0:.0f}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"


@dataclass(frozen=True)
class Mark:
    """What is drawn in a forest's row; what is None is not drawn.

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
    """What lies between the left and the right end of a plot.

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


@dataclass(frozen=True)
class ForestRow:
    """One row of a forest.

    Attributes:
        mark: None where the row has numbers only.
        numbers: beside the plot, in the order of the forest's columns.
        verdict: the last column, where the forest has verdicts.
    """

    name: str
    mark: Mark | None
    numbers: tuple[str, ...]
    verdict: str | None = None


@dataclass(frozen=True)
class ForestGroup:
    """Rows under a heading.

    Attributes:
        detail: beside the heading, in smaller letters.
    """

    name: str
    rows: tuple[ForestRow, ...]
    detail: str = ""


@dataclass(frozen=True)
class Forest:
    """A table whose rows have a plot on one common scale beside their numbers.

    Attributes:
        first: heading of the column of names.
        columns: headings of the numbers.
        kind: a class for the stylesheet.
        has_legend: whether signs are explained.
        value: what a dot is.
    """

    title: str
    first: str
    scale: Scale
    columns: tuple[str, ...]
    groups: tuple[ForestGroup, ...]
    kind: str = ""
    has_legend: bool = False
    value: str = "score"

    def marks(self) -> list[Mark]:
        return [row.mark for group in self.groups for row in group.rows if row.mark is not None]


def strip(mark: Mark, scale: Scale) -> Markup:
    """The plot of one row. It says nothing that the row's numbers do not, so it is hidden from screen readers."""
    middle = _ROW / 2
    drawn = [_upright(scale, tick, "zero" if tick == scale.zero else "grid", 0, _ROW) for tick in scale.ticks]
    if mark.baseline is not None:
        drawn.append(_upright(scale, mark.baseline, "base", 3, _ROW - 3))
    if mark.low is not None and mark.high is not None:
        drawn.append(_svg("line", x1=scale.place(mark.low), x2=scale.place(mark.high), y1=middle, y2=middle, class_="range"))
        drawn += [_upright(scale, end, "range", middle - 3, middle + 3) for end in (mark.low, mark.high)]
    if mark.published is not None:
        diamond = _svg("path", d="M0-6L6 0 0 6-6 0z", class_="diamond")
        drawn.append(_svg("svg", diamond, x=scale.place(mark.published), y=middle, overflow="visible"))
    if mark.value is not None:
        drawn.append(_svg("circle", cx=scale.place(mark.value), cy=middle, r=4, class_="dot"))
    return _svg("svg", *drawn, class_="strip", height=_ROW, aria_hidden="true")


def axis(scale: Scale) -> Markup:
    """The numbers above a column of strips."""
    digits = max((len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in scale.ticks), default=0)
    sign = "+" if scale.zero is not None else ""
    words = (f"{tick:{sign if tick else ''}.{digits if tick else 0}f}" for tick in scale.ticks)
    marks = [_svg("text", word, x=scale.place(tick), y=12) for tick, word in zip(scale.ticks, words, strict=True)]
    return _svg("svg", *marks, class_="axis", height=16, aria_hidden="true")


def legend(forest: Forest) -> list[tuple[Markup, str]]:
    """(sign, what it means) of all that is drawn."""
    marks = forest.marks()
    shown = [("dot", forest.value)]
    shown += [("range", "95% interval")] if any(mark.low is not None for mark in marks) else []
    shown += [("base", "majority baseline")] if any(mark.baseline is not None for mark in marks) else []
    shown += [("diamond", "published")] if any(mark.published is not None for mark in marks) else []
    return [(_sign(name), words) for name, words in shown]


FILE_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1b1f24; }
.axis text { fill: #5b6470; font-size: 11px; text-anchor: middle; }
.name { text-anchor: end; } .number { font-variant-numeric: tabular-nums; } .group { font-weight: 650; } .title { font-size: 15px; }
.grid { stroke: #e8eaed; } .zero, .base { stroke: #5b6470; } .range { stroke: #1f5fbf; stroke-width: 2; fill: none; }
.base { stroke-width: 2; } .dot { fill: #1f5fbf; } .diamond { fill: #ffffff; stroke: #c2410c; stroke-width: 2; }
"""
_FILE_WIDTH, _NAME_WIDTH, _PLOT_WIDTH = 1000.0, 380.0, 480.0
"""Widths in a forest's own file, in pixels: the whole, the column of names before the plot, and the plot; numbers follow."""
_LONGEST_NAME = 50
"""Letters of a row's name that fit into its column; a longer one is cut, and whole in the tooltip."""


def forest_file(forest: Forest, title: str) -> Markup:
    """A forest as an SVG file that stands alone: groups one below the other, each with its axis, and the first number of each row."""
    drawn = [_svg("text", title, x=12, y=24, class_="title")]
    place = 40.0
    for sign, words in legend(forest):
        drawn += [_svg("svg", sign, x=place - 28, y=36, width=18, height=14), _svg("text", words, x=place - 6, y=47)]
        place += 50 + 7.0 * len(words)
    top = 66.0
    for group in forest.groups:
        drawn.append(_svg("text", " · ".join(filter(None, (group.name, group.detail))), x=12, y=top + 14, class_="group"))
        drawn.append(_svg("svg", axis(forest.scale), x=_NAME_WIDTH, y=top + 4, width=_PLOT_WIDTH, height=16))
        top += _ROW
        for row in group.rows:
            name = row.name if len(row.name) <= _LONGEST_NAME else row.name[: _LONGEST_NAME - 1] + "…"
            drawn.append(_svg("text", _svg("title", row.name), name, x=_NAME_WIDTH - 8, y=top + 15, class_="name"))
            if row.mark is not None:
                drawn.append(_svg("svg", strip(row.mark, forest.scale), x=_NAME_WIDTH, y=top, width=_PLOT_WIDTH, height=_ROW))
            drawn.append(_svg("text", row.numbers[0], x=_NAME_WIDTH + _PLOT_WIDTH + 12, y=top + 15, class_="number"))
            top += _ROW
        top += 12
    size = {"width": _FILE_WIDTH, "height": top, "viewBox": f"0 0 {_FILE_WIDTH:g} {top:g}"}
    content = (_svg("style", Markup(FILE_STYLE)), _svg("rect", width="100%", height="100%", fill="#ffffff"), *drawn)
    return _svg("svg", *content, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=title, **size) + "\n"


def _sign(name: str) -> Markup:
    shapes = {
        "dot": _svg("circle", cx=9, cy=7, r=4, class_="dot"),
        "range": _svg("path", d="M2 7H16M2 4V10M16 4V10", class_="range"),
        "base": _svg("line", x1=9, x2=9, y1=1, y2=13, class_="base"),
        "diamond": _svg("path", d="M9 1L15 7 9 13 3 7z", class_="diamond"),
    }
    return _svg("svg", shapes[name], width=18, height=14, aria_hidden="true", class_="sign")


def _upright(scale: Scale, value: float, name: str, top: float, bottom: float) -> Markup:
    return _svg("line", x1=scale.place(value), x2=scale.place(value), y1=top, y2=bottom, class_=name)


def _svg(name: str, /, *children: str | Markup, **attributes: str | float) -> Markup:
    """An element; `_` in the name of an attribute stands for `-`, and a last one is left out (`class_`).

    >>> _svg("text", "a < b", x=0.1 + 0.2, class_="up")
    Markup('<text x="0.3" class="up">a &lt; b</text>')
    """
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(visible(_written(value)))}"' for key, value in attributes.items())
    content = "".join(escape(child if isinstance(child, Markup) else visible(child)) for child in children)
    return Markup(f"<{name}{given}>{content}</{name}>" if children else f"<{name}{given}/>")


def visible(text: str) -> str:
    """The text with signs in place of control characters, which neither HTML nor SVG may hold.

    >>> visible("a\\x00b\\n")
    'a␀b\\n'
    """
    return text.translate(_SIGNS)


def _written(value: str | float) -> str:
    """
    >>> _written(0.1 + 0.2), _written(5.0)
    ('0.3', '5')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

"""Forest plots: a value, its interval and what stands beside it, as one cell of a table that also has the numbers.

A cell is an SVG whose places are per cent of its width, so it stretches with the table and its strokes do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hba_ray.report.html.markup import Html, element

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

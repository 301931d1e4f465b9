"""The numbers of a page's charts: learning curves of steps, and confusions of arms.

A step's curves come from the lines of its log; `_CHARTS` says which metrics belong on one chart. A confusion counts rows by
truth and prediction, for each dataset with classes and each arm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hba_ray.data.tasks import DATASETS, SPLIT_SURPRISE
from hba_ray.evaluation.metrics import confusion
from hba_ray.evaluation.pairs import ArmRows

MOST_POINTS = 200
"""Points of a line; more are averaged in groups of equal size."""

_CHARTS = (
    ("loss per row", r"(?P<name>(?:validation_)?loss)"),
    ("class accuracy", r"(?P<name>(?:validation_)?class_accuracy)"),
    ("answer loss per token", r"(?P<name>(?:validation_)?answer_loss_per_token)"),
    ("reward and its parts", r"reward/(?P<name>[^/]+)"),
    ("response length, tokens", r"response_length/(?P<name>mean)"),
    ("entropy", r"actor/(?P<name>entropy)"),
    ("policy loss", r"actor/(?P<name>pg_loss)"),
    ("gradient norm", r"(?:actor/)?(?P<name>grad(?:ient)?_norm)"),
    ("learning rate", r"(?:actor/)?(?P<name>lr)"),
)
"""Chart -> the metrics on it, in the order in which charts are shown; the log has many more."""
_PLACES = {name: place for place, (name, _) in enumerate(_CHARTS)}


@dataclass(frozen=True)
class Line:
    """The curve of one metric.

    Attributes:
        points: (step, value), by step.
        averaged: values behind each point.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    averaged: int = 1


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Curves:
    """The charts of one step.

    Attributes:
        step: its name, for people.
        unit: what is counted along the charts.
    """

    step: str
    unit: str
    charts: tuple[Chart, ...]


def curves(step: str, log: Iterable[Mapping[str, Any]], *, unit: str = "optimiser step") -> Curves:
    """The charts of a step's log.

    Args:
        log: objects with `step` and metrics; a metric may be led by a dataset (`toy_tone/loss`).
    """
    values: dict[tuple[str, str], dict[float, float]] = {}
    for record in log:
        for key, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and (place := _place(key)):
                values.setdefault(place, {}).setdefault(float(record["step"]), float(value))
    charts: dict[str, list[Line]] = {}
    for (title, name), points in values.items():
        charts.setdefault(title, []).append(_line(name, sorted(points.items())))
    ordered = sorted(charts.items(), key=lambda chart: _PLACES[chart[0].rpartition(": ")[2]])
    return Curves(step, unit, tuple(Chart(title, tuple(lines)) for title, lines in ordered))


def _place(key: str) -> tuple[str, str] | None:
    """The chart that a metric belongs on and the name of its line there; None where it is on no chart.

    >>> _place("validation_loss"), _place("toy_tone/loss"), _place("actor/loss")
    (('loss per row', 'validation loss'), ('toy_tone: loss per row', 'loss'), None)
    """
    for title, pattern in _CHARTS:
        part = key.partition("/")[0] if key.partition("/")[0] in DATASETS else ""
        if found := re.fullmatch(pattern, key.removeprefix(f"{part}/") if part else key):
            return (f"{part}: {title}" if part else title), found["name"].replace("_", " ")
    return None


def _line(name: str, points: list[tuple[float, float]]) -> Line:
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = tuple((sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups)
    return Line(name, means, size)


@dataclass(frozen=True)
class Confusion:
    """Rows of one dataset by truth and prediction, of one arm.

    Attributes:
        labels: the classes of the dataset.
        counts: truth by prediction; the last column holds predictions that are none of the labels.
    """

    dataset: str
    arm: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusions(arms: Sequence[ArmRows]) -> tuple[Confusion, ...]:
    """The confusions of all arms, in the benchmark's order of datasets and in that of the arms.

    Raises:
        DataError: a true label is none of its dataset's.
    """
    found = [one for arm in arms for one in _confusions(arm)]
    place = {dataset: number for number, dataset in enumerate(DATASETS)}
    return tuple(sorted(found, key=lambda one: place[one.dataset]))


def _confusions(arm: ArmRows) -> Iterator[Confusion]:
    pairs: dict[str, tuple[list[str], list[str | None]]] = {}
    columns = (arm.predictions.column(name).to_pylist() for name in ("dataset", "true", "predicted"))
    for dataset, true, predicted in zip(*columns, strict=True):
        if not DATASETS[dataset].task.is_open:
            truths, guesses = pairs.setdefault(dataset, ([], []))
            truths.append(true)
            guesses.append(predicted)
    for dataset, (truths, guesses) in pairs.items():
        labels = (*DATASETS[dataset].labels, *(label for label in SPLIT_SURPRISE if label in truths))
        counts = confusion(truths, guesses, labels).tolist()
        yield Confusion(dataset, arm.name, labels, tuple(tuple(row) for row in counts))

"""What is taken for what: truth against prediction, for each dataset with classes and each arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hba_ray.data.tasks import DATASETS, SPLIT_SURPRISE
from hba_ray.evaluation.comparisons import ArmRows
from hba_ray.evaluation.metrics import confusion


@dataclass(frozen=True)
class Confusion:
    """Rows by truth and prediction.

    Attributes:
        labels: the classes.
        counts: truth by prediction; the last column holds predictions that are none of the labels.
    """

    dataset: str
    arm: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusions(arms: Sequence[ArmRows]) -> tuple[Confusion, ...]:
    """In the benchmark's order of datasets, and in that of the arms.

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

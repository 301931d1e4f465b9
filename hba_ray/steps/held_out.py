"""Which datasets of an atlas the stages of a spec do not train on."""

from __future__ import annotations

from collections.abc import Iterable

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.specs import ExperimentSpec

TRAINED_ON = ("train", "validation")
"""The splits that training looks at."""


def held_out(spec: ExperimentSpec) -> list[str]:
    """The ids of the held-out datasets."""
    return [find_dataset(name, where="atlas.held_out").id for name in spec.atlas.held_out]


def untrained(spec: ExperimentSpec, datasets: Iterable[str]) -> list[str]:
    """Those of an atlas's datasets on which no stage but `transfer` trains.

    They are the held-out ones, and those outside the benchmark that `atlas.train_also` does not name.
    """
    out, also = held_out(spec), {find_dataset(name, where="atlas.train_also").id for name in spec.atlas.train_also}
    return [name for name in datasets if name in out or (DATASETS[name].is_outside and name not in also)]

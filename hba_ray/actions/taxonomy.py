"""`hba atlas list`: the four dimensions of behaviour, the ten tasks and a user's own, and the datasets (paper section 3.1, Table 2)."""

from __future__ import annotations

from collections.abc import Iterable

from hba_ray.convert.origins import RELEASED, corpora_of, origin_of
from hba_ray.data.tasks import DATASETS, DIMENSIONS, SPLITS, TASKS, Dataset
from hba_ray.report.sheets import MISSING, Sheet


def taxonomy() -> tuple[Sheet, ...]:
    """Dimensions, tasks and datasets, each with those of the others that it stands with, and the licences of corpora."""
    known = [dataset for dataset in DATASETS.values() if not dataset.is_toy]
    dimensions = [
        (
            dimension,
            name,
            _names(dataset.task.id for dataset in known if dimension in dataset.dimensions),
            _names(dataset.id for dataset in known if dimension in dataset.dimensions),
        )
        for dimension, name in DIMENSIONS.items()
    ]
    tasks = [
        (
            task.id,
            task.name,
            task.metric,
            ", ".join(task.labels) or "open answers",
            _names(dataset.id for dataset in known if dataset.task is task),
        )
        for task in TASKS.values()
    ]
    return (
        Sheet("Dimensions", ("id", "name", "tasks", "datasets"), tuple(dimensions), 4),
        Sheet("Tasks", ("id", "name", "metric", "labels", "datasets"), tuple(tasks), 5),
        Sheet("Datasets", ("id", "name", "task", "dimensions", "modalities", *SPLITS), tuple(map(_dataset, DATASETS.values())), 5),
        Sheet("Corpora", ("atlas.source", "datasets", "licence", "how to get it"), tuple(_corpora(known)), 4, (RELEASED,)),
    )


def _corpora(known: Iterable[Dataset]) -> Iterable[tuple[str, ...]]:
    """What `atlas.source` takes for each corpus, and what its publishers say of it."""
    for datasets in corpora_of(dataset.id for dataset in known).values():
        if origin := origin_of(datasets[0]):
            yield datasets[0].source, _names(dataset.id for dataset in datasets), origin.licence, origin.obtain


def _dataset(dataset: Dataset) -> tuple[str, ...]:
    counts = map(str, dataset.counts) if dataset.counts else [MISSING] * len(SPLITS)
    return dataset.id, dataset.title, dataset.task.id, " ".join(dataset.dimensions) or MISSING, " ".join(dataset.modalities), *counts


def _names(several: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(several)) or MISSING

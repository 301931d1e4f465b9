"""Surveys that nobody has counted: an atlas with exactly the rows that the paper says, and some with other ones."""

from __future__ import annotations

from dataclasses import replace

from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.evaluation.survey import LETTERS, DatasetSurvey, Lengths, Survey


def published_survey(*, is_toy: bool = False, **more: DatasetSurvey) -> Survey:
    """The benchmark as Tables 2 and 7 describe it: every row has all modalities of its dataset.

    Args:
        more: datasets beside it, or in place of its own.
    """
    held = {name: as_published(name) for name, dataset in DATASETS.items() if dataset.is_benchmark}
    clips = {"mosei": Lengths(2, 0, (4.0, 30.0)), "tess": Lengths(0, 1, (2.0,), {"corrupt audio": 1})}
    return Survey("full", "abc", is_toy, held | more, clips)


def as_published(name: str) -> DatasetSurvey:
    dataset = DATASETS[name]
    counts = dataset.counts or (7, 0, 0)
    signature = "_".join(LETTERS[letter] for letter in dataset.modalities)
    labels = {"train": {label: 1 for label in dataset.labels}}
    rows = dict(zip(SPLITS, counts, strict=True))
    return DatasetSurvey(rows, labels if dataset.labels else {}, {signature: sum(counts)}, has_descriptors=name == "cremad")


def with_rows(survey: Survey, dataset: str, **rows: int) -> Survey:
    """The survey with other rows of a dataset in some splits."""
    one = survey.datasets[dataset]
    return replace(survey, datasets={**survey.datasets, dataset: replace(one, rows={**one.rows, **rows})})

"""Linear probes: what a classifier without a hidden layer reads from descriptors alone.

For each dataset with classes, logistic regression on the standardised vectors of one stream. It says
whether a stream carries the labels at all, before an adapter is blamed or praised for them.

Shapes: B rows, D values of a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.predictions import SCHEMA
from hba_ray.data.tasks import DATASETS
from hba_ray.descriptors.pooling import normalise
from hba_ray.descriptors.vectors import Descriptors
from hba_ray.specs.sections.descriptors import Normalisation, Stream

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

PENALTY = 1e-2
"""Weight of half the squared length of the classifier's weights, beside the mean loss of a row."""
STEPS = 2000
"""Largest number of the solver's iterations."""


def probe(
    descriptors: Descriptors,
    stream: Stream,
    index: AtlasIndex,
    split: str,
    *,
    normalisation: Normalisation = "none",
    progress: Callable[[str], None] = lambda dataset: None,
) -> tuple[pa.Table, list[str]]:
    """Predictions (`data.predictions.SCHEMA`) for the rows of a split, from classifiers fitted on the training split.

    A row without a vector is given the most frequent label of its dataset's training rows. Datasets with
    open answers are left out, and those whose described training rows are all of one class.

    Args:
        normalisation: of the vectors, before they are standardised.
        progress: told each dataset when it is done.

    Returns:
        the predictions, and the datasets that were probed.
    """
    records: list[dict[str, Any]] = []
    probed = []
    for dataset in index.counts():
        lines, train = lines_of(index, dataset, split), lines_of(index, dataset, "train")
        labels = index.table.column("label").take(train).to_numpy(zero_copy_only=False)
        matrix_BD, present_B = _vectors(descriptors, stream, train, normalisation)
        if DATASETS[dataset].task.is_open or len(set(labels[present_B])) < 2:
            continue
        model = _fit(matrix_BD[present_B], labels[present_B])
        usual = Counter(sorted(labels)).most_common(1)[0][0]
        records += _predict(model, usual, descriptors, stream, index, lines, normalisation)
        probed.append(dataset)
        progress(dataset)
    return table_of(records), probed


def _fit(matrix_BD: np.ndarray, labels: np.ndarray) -> Pipeline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn's C weighs the sum of the losses against the penalty
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / (PENALTY * len(labels)), max_iter=STEPS)).fit(matrix_BD, labels)


def _predict(
    model: Pipeline,
    usual: str,
    descriptors: Descriptors,
    stream: Stream,
    index: AtlasIndex,
    lines: np.ndarray,
    normalisation: Normalisation,
) -> list[dict[str, Any]]:
    matrix_BD, present_B = _vectors(descriptors, stream, lines, normalisation)
    guesses = np.full(len(lines), usual, object)
    certainty = np.full(len(lines), np.nan)
    if present_B.any():
        chances_BK = model.predict_proba(matrix_BD[present_B])
        guesses[present_B], certainty[present_B] = model.classes_[chances_BK.argmax(axis=1)], chances_BK.max(axis=1)
    rows = index.table.select(["dataset", "label"]).take(lines).to_pylist()
    return [
        record(*descriptors.names[int(line)], row["dataset"], row["label"], guess, None if np.isnan(sure) else float(sure))
        for line, row, guess, sure in zip(lines, rows, guesses, certainty, strict=True)
        if int(line) in descriptors.names  # the others could not be read, and were counted when they were described
    ]


def table_of(records: list[dict[str, Any]]) -> pa.Table:
    """A probe's predictions (`data.predictions.SCHEMA`), by dataset and id."""
    return pa.Table.from_pylist(sorted(records, key=lambda one: (one["dataset"], one["sample_id"])), schema=SCHEMA)


def record(sample_id: str, clip_id: str, dataset: str, true: str | None, guess: str, sure: float | None) -> dict[str, Any]:
    """A classifier's prediction for a row, in the columns of `data.predictions.SCHEMA`."""
    asked = {"sample_id": sample_id, "clip_id": clip_id, "dataset": dataset, "task": DATASETS[dataset].task.id}
    return {**asked, "true": true, "predicted": guess, "probability": sure}


def _vectors(descriptors: Descriptors, stream: Stream, lines: np.ndarray, normalisation: Normalisation) -> tuple[np.ndarray, np.ndarray]:
    """Normalised vectors and which rows have one, (float32 [B, D], bool [B]); z-scores are left to the classifier's scaler."""
    matrix_BD, present_B = descriptors.vectors(stream, lines)
    return normalise(matrix_BD, present_B, "l2" if normalisation == "l2" else "none"), present_B


def lines_of(index: AtlasIndex, dataset: str, split: str) -> np.ndarray:
    """Numbers of a dataset's lines in a split."""
    rows = index.rows_of(split)
    return rows[index.table.column("dataset").take(rows).to_numpy(zero_copy_only=False) == dataset]

"""A bag of words: what a classifier without a hidden layer reads from the words of a prompt alone.

For each dataset with classes, logistic regression on the TF-IDF weights of words and pairs of words. It is the honest floor
of a language model on text: a model that does not beat it has not read more than words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.prompts import question_of
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError
from hba_ray.evaluation.probe import STEPS, lines_of, record, table_of


def probe_words(index: AtlasIndex, split: str, *, progress: Callable[[str], None] = lambda dataset: None) -> tuple[pa.Table, list[str]]:
    """Predictions (`data.predictions.SCHEMA`) for the rows of a split, from classifiers fitted on the training split.

    Rows that cannot be read are left out. So are datasets with open answers, and those whose training rows are all of one class.

    Args:
        progress: told each dataset when it is done.

    Returns:
        the predictions, and the datasets that were probed.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    records: list[dict[str, Any]] = []
    probed = []
    for dataset in index.counts():
        train = [] if DATASETS[dataset].task.is_open else _rows(index, lines_of(index, dataset, "train"))
        if len({row.label for row in train}) < 2:
            continue
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=STEPS))
        model.fit([question_of(row) for row in train], [row.label for row in train])
        rows = _rows(index, lines_of(index, dataset, split))
        if rows:
            chances_BK = model.predict_proba([question_of(row) for row in rows])
            best = zip(rows, model.classes_[chances_BK.argmax(axis=1)], chances_BK.max(axis=1), strict=True)
            records += [record(row.sample_id, row.clip_id, dataset, row.label, guess, float(sure)) for row, guess, sure in best]
        probed.append(dataset)
        progress(dataset)
    return table_of(records), probed


def _rows(index: AtlasIndex, lines: np.ndarray) -> list[Row]:
    return [row for row in read_rows(index, lines.tolist()) if not isinstance(row, DataError)]

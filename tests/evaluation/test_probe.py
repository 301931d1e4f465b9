"""A linear probe reads the labels that its stream carries, and says the usual label where the stream is missing."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from hba_ray.data.atlas import INDEX_SCHEMA, AtlasIndex
from hba_ray.data.predictions import SCHEMA
from hba_ray.evaluation.probe import probe
from hba_ray.evaluation.scores import score_predictions

LABELS = ("anger", "happy", "sad")
ROWS = 90


@pytest.fixture(scope="module")
def index() -> AtlasIndex:
    """Toy tone and toy words in turn, then open answers; two thirds of the rows for training."""
    rows = [
        {"split": "train" if number % 3 else "test", "dataset": dataset, "label": label, "modality_signature": "text_audio"}
        for number in range(ROWS)
        for dataset, label in (
            ("toy_tone", LABELS[number % 7 % 3]),
            ("toy_words", ("sarcasm", "not sarcasm")[number % 5 > 1]),
            ("toy_answers", None),
        )
    ]
    return AtlasIndex("atlas", (), pa.Table.from_pylist(rows, INDEX_SCHEMA))


def descriptors(index: AtlasIndex, present=lambda line: True, constant: bool = False) -> Any:
    """Vectors in which a value stands for each class, on another scale than the noise around it."""
    rng = np.random.default_rng(0)
    labels = index.table.column("label").to_pylist()
    matrix = rng.standard_normal((len(labels), 20)).astype(np.float32) * 1000
    if not constant:
        matrix[:, :6] = 0.01 * np.eye(6)[[(*LABELS, "sarcasm", "not sarcasm", None).index(label) for label in labels]]
    held = np.array([present(line) for line in range(len(labels))])

    def vectors(stream, lines):
        return np.where(held[lines][:, None], matrix[lines], 0).astype(np.float32), held[lines]

    names = {line: (f"sample {line}", f"clip {line}") for line in range(len(labels))}
    return cast(Any, SimpleNamespace(vectors=vectors, names=names))


def scores(index: AtlasIndex, given: Any) -> dict[str, float | None]:
    table, probed = probe(given, "acoustic", index, "test")
    assert table.schema == SCHEMA
    return {score.dataset: score.value for score in score_predictions(table, index.label_counts("train"), datasets=probed).datasets}


def test_a_class_that_is_in_the_vectors_is_read_and_open_answers_are_left_out(index):
    told: list[str] = []
    table, probed = probe(descriptors(index), "acoustic", index, "test", progress=told.append)
    assert told == probed == ["toy_tone", "toy_words"]
    assert len(table) == 2 * ROWS / 3 and set(table.column("task").to_pylist()) == {"EMO", "SAR"}
    found = scores(index, descriptors(index))
    assert found["toy_tone"] == 1.0 and found["toy_words"] == 1.0


def test_vectors_that_say_nothing_score_like_chance(index):
    found = scores(index, descriptors(index, constant=True))
    assert found["toy_tone"] is not None and found["toy_tone"] < 0.65


def test_rows_without_a_vector_get_the_usual_label_and_no_probability(index):
    table, _ = probe(descriptors(index, present=lambda line: line % 4 == 0), "acoustic", index, "test")
    missing = [row for row in table.to_pylist() if row["probability"] is None]
    usual = {dataset: max(counts, key=lambda label: counts[label]) for dataset, counts in index.label_counts("train").items()}
    assert 0 < len(missing) < len(table) and all(row["predicted"] == usual[row["dataset"]] for row in missing)


def test_a_dataset_without_a_described_training_row_is_left_out(index):
    tone = index.table.column("dataset").to_pylist()
    _, probed = probe(descriptors(index, present=lambda line: tone[line] == "toy_tone"), "acoustic", index, "test")
    assert probed == ["toy_tone"]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.tasks import CONSOLIDATED, DATASETS, SPLIT_SURPRISE, Dataset, consolidate
from hba_ray.errors import DataError

CLASS_DATASETS = [dataset for dataset in DATASETS.values() if dataset.labels]


@pytest.mark.parametrize("dataset", CLASS_DATASETS, ids=lambda dataset: dataset.id)
def test_a_label_stays_itself_in_any_case_and_spacing(dataset: Dataset):
    for label in dataset.labels:
        for spelling in (label, label.upper(), f"  {label.replace(' ', '   ')}\n"):
            assert consolidate(spelling, dataset, where="test") == label


@pytest.mark.parametrize(
    ("dataset", "stated", "label"),
    [
        ("meld_emotion", "joy", "happy"),
        ("meld_emotion", "sadness", "sad"),
        ("mosei_emotion", "Happiness", "happy"),
        ("tess", "angry", "anger"),
        ("tess", "pleasant_surprise", "surprise"),
        ("cremad", "fearful", "fear"),
        ("mosei_senti", "strongly positive", "highly positive"),
        ("urfunny", "humor", "humour"),
        ("mmsd", "not sarcastic", "not sarcasm"),
        ("daicwoz", "Depressed", "depression"),
        ("ptsd_in_the_wild", "without PTSD", "no ptsd"),
    ],
)
def test_a_source_spelling_becomes_the_benchmarks(dataset: str, stated: str, label: str):
    assert consolidate(stated, DATASETS[dataset], where="test") == label


def test_every_consolidated_spelling_ends_in_a_label_that_stays():
    labels = {label for dataset in CLASS_DATASETS for label in dataset.labels}
    assert set(CONSOLIDATED.values()) <= labels | set(SPLIT_SURPRISE)
    assert not set(CONSOLIDATED) & labels


@pytest.mark.parametrize("side", SPLIT_SURPRISE)
def test_a_side_of_surprise_is_kept_only_where_asked_for(side: str):
    assert consolidate(side, DATASETS["meld_emotion"], where="test") == "surprise"
    assert consolidate(side, DATASETS["meld_emotion"], where="test", split_surprise=True) == side


def test_a_dataset_without_surprise_has_no_sides_of_it():
    with pytest.raises(DataError):
        consolidate("positive surprise", DATASETS["cremad"], where="test", split_surprise=True)


@pytest.mark.parametrize(
    ("dataset", "stated", "near"), [("meld_senti", "positve", "positive"), ("cremad", "disgus", "disgust"), ("mmsd", "sarcasms", "sarcasm")]
)
def test_a_misspelt_label_gets_the_nearest_one(dataset: str, stated: str, near: str):
    with pytest.raises(DataError, match=f"'{stated}' is not a label of {dataset}.*\n  did you mean '{near}'") as caught:
        consolidate(stated, DATASETS[dataset], where="row 3")
    assert (caught.value.where, caught.value.reason) == ("row 3", "unknown label")


def test_a_label_of_another_dataset_of_the_task_is_refused():
    with pytest.raises(DataError, match="'weakly positive' is not a label of meld_senti"):
        consolidate("weakly positive", DATASETS["meld_senti"], where="test")


@given(st.text(), st.sampled_from(CLASS_DATASETS), st.booleans())
def test_any_text_becomes_a_label_or_a_data_error(text: str, dataset: Dataset, split_surprise: bool):
    try:
        assert consolidate(text, dataset, where="test", split_surprise=split_surprise) in (*dataset.labels, *SPLIT_SURPRISE)
    except DataError as error:
        assert error.reason == "unknown label"


def test_pleasant_surprise_is_the_positive_side_where_sides_are_asked_for():
    assert consolidate("pleasant surprise", DATASETS["tess"], where="test", split_surprise=True) == "positive surprise"

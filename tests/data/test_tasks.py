from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.tasks import BENCHMARK_HEADS, BENCHMARK_TASKS, CLASS_TASKS, CLASSES, DATASETS, TASKS, TOTAL_ROWS, Dataset, find_dataset
from hba_ray.errors import DataError

RELEASED = [dataset for dataset in DATASETS.values() if dataset.is_benchmark]

HEADS = {
    "SEN": ["highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive", "highly positive"],
    "EMO": ["anger", "disgust", "fear", "happy", "neutral", "calm", "sad", "surprise"],
    "PTSD": ["no ptsd", "ptsd"],
    "DEP": ["no depression", "depression"],
    "ANX": ["no anxiety", "anxiety"],
    "SAR": ["not sarcasm", "sarcasm"],
    "HUM": ["not humour", "humour"],
}
"""The released layout of the 25 classes, written out a second time."""

TABLE_2 = {
    "CMU-MOSEI": (("mosei_senti", "mosei_emotion"), "Aff Cog", "TAV", 31454),
    "MELD": (("meld_senti", "meld_emotion"), "Aff Soc Cog", "TAV", 27412),
    "TESS": (("tess",), "Aff Cog", "TA", 2800),
    "CREMA-D": (("cremad",), "Aff", "TA", 7442),
    "CH-SIMSv2": (("chsimsv2",), "Aff", "TAV", 4403),
    "Social-IQ 2.0": (("siq2",), "Soc Cog", "TAV", 6437),
    "IntentQA": (("intentqa",), "Soc Cog", "TAV", 16297),
    "MimeQA": (("mimeqa",), "Soc", "TAV", 806),
    "UR-FUNNYv2": (("urfunny",), "Soc", "TAV", 2125),
    "MUStARD": (("mmsd",), "Soc", "TAV", 690),
    "DAIC-WOZ": (("daicwoz",), "Path", "TA", 189),
    "MMPsy": (("mmpsy_depression", "mmpsy_anxiety"), "Path", "T", 1275),
    "PTSD-in-the-Wild": (("ptsd_in_the_wild",), "Path", "TAV", 634),
}
"""Corpus -> datasets, dimensions, modalities, samples."""


def published(dataset: Dataset) -> tuple[int, int, int]:
    assert dataset.counts is not None
    return dataset.counts


def test_table_7_adds_up_with_mmpsy_counted_once():
    counted = [published(dataset) for dataset in RELEASED if dataset.id != "mmpsy_anxiety"]
    assert tuple(map(sum, zip(*counted, strict=True))) == TOTAL_ROWS == (74451, 9499, 18014)
    assert sum(TOTAL_ROWS) == 101_964
    assert published(DATASETS["mmpsy_anxiety"]) == published(DATASETS["mmpsy_depression"])


@pytest.mark.parametrize("corpus", TABLE_2)
def test_a_corpus_has_the_dimensions_modalities_and_samples_of_table_2(corpus: str):
    ids, dimensions, modalities, samples = TABLE_2[corpus]
    datasets = [DATASETS[name] for name in ids]
    assert {dataset.dimensions for dataset in datasets} == {tuple(dimensions.split())}
    assert {dataset.modalities for dataset in datasets} == {modalities}
    assert len({dataset.source for dataset in datasets}) == 1
    once = datasets[:1] if corpus == "MMPsy" else datasets
    assert sum(sum(published(dataset)) for dataset in once) == samples


def test_table_2_covers_every_released_dataset():
    assert {name for ids, *_ in TABLE_2.values() for name in ids} == {dataset.id for dataset in RELEASED}


def test_the_25_classes_have_their_released_places():
    layout = [(task, label) for task, labels in HEADS.items() for label in labels]
    assert len(layout) == 25
    assert list(CLASSES) == layout
    for index, pair in enumerate(layout):
        assert BENCHMARK_HEADS.index(*pair) == index
    assert (BENCHMARK_HEADS.index("EMO", "calm"), BENCHMARK_HEADS.index("PTSD", "no ptsd"), BENCHMARK_HEADS.index("HUM", "humour")) == (
        12,
        15,
        24,
    )


def test_there_are_ten_tasks_of_which_three_are_open():
    assert len(BENCHMARK_TASKS) == 10
    assert [task.id for task in CLASS_TASKS] == list(HEADS)
    assert {task.id for task in BENCHMARK_TASKS if task.is_open} == {"SOC", "INT", "NVC"}


def test_open_tasks_are_judged_and_only_they():
    assert {task.id for task in BENCHMARK_TASKS if task.metric == "judge_accuracy"} == {"SOC", "INT", "NVC"}
    assert TASKS["SEN"].metric == "binary_weighted_f1"
    assert TASKS["EMO"].metric == "mean_weighted_accuracy"
    assert {TASKS[name].metric for name in ("PTSD", "DEP", "ANX", "SAR", "HUM")} == {"weighted_f1"}


def test_the_labels_of_a_dataset_are_some_of_its_tasks_in_the_same_order():
    for dataset in DATASETS.values():
        assert [label for label in dataset.task.labels if label in dataset.labels] == list(dataset.labels), dataset.id
        assert bool(dataset.labels) != dataset.task.is_open


def test_calm_has_a_class_but_no_dataset():
    assert not [dataset.id for dataset in DATASETS.values() if "calm" in dataset.labels]


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.id)
def test_a_dataset_is_found_by_every_name_in_any_case_and_by_no_other(dataset: Dataset):
    for name in (dataset.id, dataset.title, *dataset.aliases):
        for spelling in (name, name.upper(), f" {name.replace('_', '-')} "):
            assert find_dataset(spelling) is dataset


@pytest.mark.parametrize(
    ("name", "near"), [("meld_sentii", "meld_senti"), ("cremd", "cremad"), ("mustrad", "mmsd"), ("intent-q", "intentqa")]
)
def test_a_misspelt_dataset_gets_the_nearest_id(name: str, near: str):
    with pytest.raises(DataError, match=f"unknown dataset '{name}'\n  did you mean '{near}'") as caught:
        find_dataset(name, where="spec.yaml")
    assert (caught.value.where, caught.value.reason) == ("spec.yaml", "unknown dataset")


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(DataError, match="known: mosei_senti, mosei_emotion"):
        find_dataset("zzzzzzzz")


@given(st.text())
def test_any_name_is_found_or_refused_with_a_way_out(name: str):
    try:
        assert find_dataset(name).id in DATASETS
    except DataError as error:
        assert error.way_out


@pytest.mark.parametrize("name", ["CREMA\u2013D", "CH\u2013SIMSv2", "UR\u2013FUNNYv2", "DAIC\u2013WOZ", "PTSD\u2013in-the-Wild"])
def test_names_as_table_2_prints_them_are_understood(name: str):
    assert find_dataset(name).id in DATASETS


@pytest.mark.parametrize(("name", "near"), [("MELD (E)", "meld_emotion"), ("MOSEI (E)", "mosei_emotion")])
def test_the_short_names_of_the_result_tables_lead_to_their_dataset(name: str, near: str):
    try:
        found = find_dataset(name).id
    except DataError as error:
        found = error.way_out
    assert near in found

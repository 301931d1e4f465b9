"""The published table against a copy taken from the paper's own table, and against what the paper says of it."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import pytest

from hba_ray.data.tasks import BENCHMARK_TASKS, DATASETS
from hba_ray.evaluation.published import COLUMNS, PUBLISHED, published_score
from tests.helpers.headings import DATASETS as HEADINGS

TASKS = {task.id for task in BENCHMARK_TASKS}
FIXTURE = Path(__file__).parent / "fixtures" / "table4.csv"
MODELS = {
    "Gemma-3-4B": "Gemma-3-4B",
    "HumanOmniV2-7B": "HumanOmniV2-7B",
    "Qwen 2.5-Omni-7B": "Qwen2.5-Omni-7B",
    "Qwen-2.5-VL-7B": "Qwen2.5-VL-7B",
    "OMNISAPIENS-7B RL": "OmniSapiens-7B RL",
    "OMNISAPIENS-7B SFT": "OmniSapiens-7B SFT",
    "OMNISAPIENS-7B BAM": "OmniSapiens-7B BAM",
}


def test_every_cell_is_the_papers():
    with FIXTURE.open(newline="") as file:
        cells = {
            (MODELS[row["Model"]], HEADINGS[heading]): float(value)
            for row in csv.DictReader(file)
            for heading, value in row.items()
            if heading != "Model"
        }
    assert len(cells) == 7 * 16
    assert cells == PUBLISHED


def test_the_columns_are_the_benchmarks_sixteen_datasets():
    assert set(COLUMNS) == {dataset.id for dataset in DATASETS.values() if dataset.is_benchmark}


def task_mean(model: str, task: str) -> float:
    return fmean(value for (name, dataset), value in PUBLISHED.items() if name == model and DATASETS[dataset].task.id == task)


@pytest.mark.parametrize(
    ("model", "over_general_models", "over_humanomni"),
    [("OmniSapiens-7B SFT", 8, 7), ("OmniSapiens-7B BAM", 8, 8), ("OmniSapiens-7B RL", 7, 8)],
)
def test_task_means_win_on_as_many_tasks_as_the_paper_says(model, over_general_models, over_humanomni):
    """Section 4.1 counts, of ten tasks, those on which each model leads; the counts follow from the table and Figure 2's rule."""
    assert len(TASKS) == 10
    general = ("Gemma-3-4B", "Qwen2.5-Omni-7B", "Qwen2.5-VL-7B")
    assert sum(task_mean(model, task) > max(task_mean(other, task) for other in general) for task in TASKS) == over_general_models
    assert sum(task_mean(model, task) > task_mean("HumanOmniV2-7B", task) for task in TASKS) == over_humanomni


def test_a_dataset_without_a_published_score_has_none():
    assert published_score("OmniSapiens-7B SFT", "toy_tone") is None
    assert published_score("OmniSapiens-7B SFT", "ptsd_in_the_wild") == 1.0

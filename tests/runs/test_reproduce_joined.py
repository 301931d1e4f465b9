"""All fourteen corpora, as their publishers give them, are joined, trained on and evaluated: the tables of the paper fill every cell."""

import json
from pathlib import Path
from typing import Any

import pytest

from hba_ray.data.tasks import DATASETS
from hba_ray.report.tables import read_json
from hba_ray.runs.reproduce import Reproduced, read_table, reproduce
from hba_ray.specs.paper import TOY, experiments_folder, find_table
from tests.helpers.fourteen import write_fourteen
from tests.helpers.leaked import files_with

HELD_OUT = {"T4": [], "T5": ["mosei_senti", "meld_emotion", "daicwoz", "mmsd"], "T9": ["iemocap"]}
SMALL = ["sft.epochs=1", "bam.epochs=1", "model.tiny.hidden=64", "compute.cpus=4"]
BENCHMARK = {dataset.id for dataset in DATASETS.values() if dataset.is_benchmark}


def reproduced(table: str, sources: list[dict[str, Any]], storage: Path, *more: str) -> Reproduced:
    """A table at toy scale, with the joined corpora in place of the toy atlas."""
    words = [
        f"atlas.sources={json.dumps(sources)}",
        "atlas.source=released",
        "atlas.root=null",
        f"atlas.held_out={json.dumps(HELD_OUT[table])}",
    ]
    words += [*SMALL, f"compute.storage={storage}", *more]
    folder = experiments_folder()
    return reproduce(read_table(find_table(table, folder), words, toy=folder / TOY), lambda line: None, words)


def empty(made: Reproduced) -> set[str]:
    """Columns in which a cell has no number."""
    return {cell.column for cell in made.verdict.cells if cell.estimate.value is None}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("h5py")
    return write_fourteen(tmp_path_factory.mktemp("public"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_corpora_are_trained_on_and_fill_every_dataset_of_table_4_but_iemocap_is_in_no_mean(sources, tmp_path: Path):
    pytest.importorskip("opensmile")
    made = reproduced("T4", sources, tmp_path, "stages=[sft, bam]", "bam.streams=[acoustic]")
    assert empty(made) == {"OmniSapiens-7B RL"}, "which is not trained here"
    assert {cell.row for cell in made.verdict.cells} == BENCHMARK
    report = read_json((made.page.parent / "report.json").read_bytes(), where="report.json")
    (emotion,) = [score for score in report.scores["sft"].tasks if score.task == "EMO"]
    assert "iemocap" in {score.dataset for score in report.scores["sft"].datasets} and "iemocap" not in emotion.datasets
    assert any(note.endswith("atlas.train_also does not name them: iemocap.") for note in report.notes)
    assert files_with("my secret", tmp_path) == [], "what patients say in these corpora is in no log of Ray, no page and no record"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("table", ["T5", "T9"])
def test_held_out_datasets_are_transferred_to_and_fill_tables_5_and_9(sources, tmp_path: Path, table: str):
    made, rows = reproduced(table, sources, tmp_path, "compute.workers=0"), set(HELD_OUT[table])
    assert not empty(made) and {cell.row for cell in made.verdict.cells} == rows
    compared = {one.row: one.comparison.difference.value for one in made.verdict.contrasts}
    assert compared.keys() == rows and None not in compared.values()

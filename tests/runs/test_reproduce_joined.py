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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_joined_atlas_of_all_corpora_fills_every_dataset_of_tables_4_5_and_9(tmp_path: Path):
    for package in ("h5py", "opensmile"):
        pytest.importorskip(package)
    sources, storage = write_fourteen(tmp_path / "public"), tmp_path / "runs"
    multitask = reproduced("T4", sources, storage, "stages=[sft, bam]", "bam.streams=[acoustic]", "compute.workers=0")
    assert empty(multitask) == {"OmniSapiens-7B RL"}, "which is not trained here"
    assert {cell.row for cell in multitask.verdict.cells} == BENCHMARK
    report = read_json((multitask.page.parent / "report.json").read_bytes(), where="report.json")
    (emotion,) = [score for score in report.scores["sft"].tasks if score.task == "EMO"]
    assert "iemocap" in {score.dataset for score in report.scores["sft"].datasets} and "iemocap" not in emotion.datasets
    assert any(note.endswith("atlas.train_also does not name them: iemocap.") for note in report.notes)
    for table, rows in (("T5", set(HELD_OUT["T5"])), ("T9", {"iemocap"})):
        made = reproduced(table, sources, storage, "compute.workers=0")
        assert not empty(made) and {cell.row for cell in made.verdict.cells} == rows
        assert {one.row for one in made.verdict.contrasts} == rows and all(
            one.comparison.difference.value is not None for one in made.verdict.contrasts
        )

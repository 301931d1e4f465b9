"""Tables of the paper: their specs are found and planned, finished trials are read, and the table is written with its verdicts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hba_ray import cli
from hba_ray.errors import SpecError
from hba_ray.report.verdicts import judge_table
from hba_ray.runtime.storage import finish
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.plan import STAGES
from hba_ray.sweeps.reproduce import (
    TOY,
    check_columns,
    experiments_folder,
    find_table,
    measured_columns,
    planned_arms,
    read_table,
    write_table,
)
from hba_ray.sweeps.steps.evaluate import PREDICTIONS
from tests.evaluation.hand_made import rows_of

SHIPPED = experiments_folder()
TABLES = sorted(SHIPPED.glob("paper/*.yaml"))


def experiment(storage: Path, atlas: dict[str, Any], backbone: str = "some/model", **paper: Any) -> ExperimentSpec:
    table = {
        "table": "T6",
        "title": "one arm",
        "published": {"plain": {"mmsd": 0.75, "SAR": 0.75}},
        "arms": {"plain": {"arm": "sft"}},
        "gates": [{"says": "near", "of": "plain", "within": 0.1}],
    }
    raw = {"name": "x", "atlas": atlas, "model": {"backbone": backbone}, "compute": {"storage": str(storage)}, "paper": table | paper}
    return ExperimentSpec.model_validate(raw)


@pytest.fixture
def finished(tmp_path, toy):
    """A finished trial: predictions made by hand in the folders of its steps."""
    spec = experiment(tmp_path, {"source": "released", "root": str(toy.jsonl)})
    for trial in planned_arms(spec):
        for step in trial.steps:
            step.folder.mkdir(parents=True, exist_ok=True)
            if step.kind == "evaluate":
                pq.write_table(pa.Table.from_pylist(rows_of("mmsd", 75, 25)), step.folder / PREDICTIONS)
            finish(step.folder, {"counts": {"mmsd": {"train": 400, "test": 100}}} if step.kind == "atlas" else {})
    return spec


def test_finished_trials_become_a_table_in_four_forms(finished, tmp_path):
    assert finished.paper is not None
    found = judge_table(finished.paper, measured_columns(finished.paper, planned_arms(finished)))
    assert [cell.verdict for cell in found.cells] == ["agrees", "agrees"] and found.is_met
    files = list(write_table(found, ["sft.lr=1 (command line)"], tmp_path))
    assert [file.name for file in files] == ["T6.md", "T6.csv", "T6.tex", "T6.json"]
    assert "Differs: sft.lr=1 (command line)" in files[0].read_text()
    with files[1].open(newline="") as file:
        assert [row["Verdict"] for row in csv.DictReader(file)] == ["agrees", "agrees"]
    assert json.loads(files[3].read_text())["is_met"] is True


def test_what_is_not_finished_is_not_measured(tmp_path, toy):
    spec = experiment(tmp_path, {"source": "released", "root": str(toy.jsonl)})
    assert spec.paper is not None
    assert measured_columns(spec.paper, planned_arms(spec)) == {}


@pytest.mark.parametrize(
    ("measured", "says"), [({"arm": "sft+bam"}, r"arm 'sft\+bam'"), ({"arm": "sft", "where": {"sft.epochs": 7}}, r"sft\.epochs=7")]
)
def test_a_column_that_no_trial_measures_is_refused_with_the_arms_that_there_are(tmp_path, toy, measured, says):
    spec = experiment(tmp_path, {"source": "released", "root": str(toy.jsonl)}, arms={"plain": measured})
    with pytest.raises(SpecError, match=says) as refused:
        check_columns(spec, planned_arms(spec))
    assert "arms here: sft" in refused.value.way_out


@pytest.mark.parametrize("word", ["T11", "t11", "11", "Table 11"])
def test_a_table_is_found_by_its_number(word):
    assert find_table(word, SHIPPED).name == "T11_bam_width.yaml"


def test_an_unknown_table_names_those_that_are_there():
    with pytest.raises(SpecError, match="no spec for a table 'T7'") as refused:
        find_table("T7", SHIPPED)
    assert "T4, T5, T6, T8" in refused.value.way_out and refused.value.exit_code == 2


def test_a_folder_without_the_papers_specs_is_refused(tmp_path):
    with pytest.raises(SpecError, match="--experiments FOLDER"):
        experiments_folder(tmp_path)


def test_a_spec_without_a_table_is_refused():
    with pytest.raises(SpecError, match="no `paper` section"):
        read_table(SHIPPED / "quickstart.yaml", [])


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_table_plans_at_both_scales_and_a_trial_measures_each_column(file, tmp_path, toy, monkeypatch):
    monkeypatch.setenv("HBA_ROOT", str(toy.jsonl))
    spec = read_table(file, [f"compute.storage={tmp_path}"])
    if missing := set(spec.stages) - set(STAGES):
        pytest.skip(f"no steps for {missing} yet")
    assert spec.paper is not None and spec.paper.table == file.name.partition("_")[0]
    check_columns(spec, planned_arms(spec))
    small = read_table(file, [f"compute.storage={tmp_path}"], toy=SHIPPED / TOY)
    assert small.name == f"{spec.name}-toy" and small.model.backbone == "tiny" and small.compute.gpus_per_worker == 0
    assert len(planned_arms(small)) == len(planned_arms(spec))
    assert all(name.startswith("toy_") for name in small.atlas.held_out) and bool(small.atlas.held_out) == bool(spec.atlas.held_out)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["T5"], ["T11"]], ids=" ".join)
def test_a_table_at_toy_scale_is_printed_without_a_verdict(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["atlas.limit=6", "atlas.toy.rows=60", "sft.epochs=1", "bam.epochs=1", "model.tiny.hidden=64", "model.tiny.vocabulary=512"]
    monkeypatch.setattr("sys.argv", ["hba", "reproduce", *words, "--scale", "toy", *small])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert not ended.value.code and "no verdict about the paper is possible" in said and "outcome  no verdict: toy scale" in said
    facts = json.loads(next(tmp_path.glob(f"runs/*/{words[0]}.json")).read_text())
    assert {cell["verdict"] for cell in facts["cells"]} <= {"no verdict", "missing", "not judged", "not measured here"}
    assert any(cell["estimate"]["interval"]["value"] is not None for cell in facts["cells"])

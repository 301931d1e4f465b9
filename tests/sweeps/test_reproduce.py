"""Tables of the paper: their specs are found and planned, finished trials are read, and the table is written with its verdicts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hba_ray.errors import SpecError
from hba_ray.evaluation.scores import score_predictions
from hba_ray.report.verdicts import judge_table
from hba_ray.runtime.storage import finish
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.shipped import TOY, experiments_folder, find_table
from hba_ray.sweeps.plan import STAGES
from hba_ray.sweeps.reproduce import (
    check_columns,
    measured_columns,
    planned_arms,
    read_table,
    reproduce,
    write_table,
)
from hba_ray.sweeps.steps.evaluate import PREDICTIONS, SCORES
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
def test_a_sweep_whose_models_are_trained_is_read_reported_and_judged(tmp_path):
    """Everything but training and prediction is real: the sweep, its report, the columns, the files."""
    small = [f"compute.storage={tmp_path}", "atlas.limit=2", "atlas.toy.rows=40", "model.tiny.hidden=64", "model.tiny.vocabulary=512"]
    spec = read_table(find_table("T5", SHIPPED), small, toy=SHIPPED / TOY)
    right = {"sft": 10, "sft+transfer": 18, "transfer": 12}
    for trial in planned_arms(spec):
        for step in trial.steps:
            if step.kind in ("sft", "transfer") and not step.is_done:
                step.folder.mkdir(parents=True)
                finish(step.folder, {"optimizer_steps": 1, "epochs": 1, "best_epoch": 0, "best_validation_loss": None, "drops": {}})
            elif step.kind == "evaluate" and not step.is_done:
                rows = [
                    {**row, "clip_id": row["sample_id"]} for row in rows_of("toy_words", right[step.arm or ""], 20 - right[step.arm or ""])
                ]
                predictions = pa.Table.from_pylist(rows)
                step.folder.mkdir(parents=True)
                pq.write_table(predictions, step.folder / PREDICTIONS)
                (step.folder / SCORES).write_text(score_predictions(predictions, {}).to_json())
                finish(step.folder, {"rows": 20, "drops": {}})
    made = reproduce(spec, lambda line: None, ["sft.epochs=1"])
    cells = {(cell.row, cell.column): cell.estimate.value for cell in made.verdict.cells}
    assert cells["toy_words", "OmniSapiens-7B SFT"] == pytest.approx(0.9, abs=0.01)
    assert cells["toy_words", "Qwen2.5-Omni-7B SFT"] == pytest.approx(0.6, abs=0.01)
    assert made.verdict.is_toy and made.verdict.is_met and made.differs == ("sft.epochs=1 (command line)",)
    assert all(file.is_file() for file in made.files) and (made.files[0].parent / "table.md").is_file()
    assert made.page.name == "report.html" and "Table 5, at toy scale" in made.page.read_text()

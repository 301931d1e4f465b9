"""Tables of the paper: their specs are found and planned, finished trials are read, and the table is written with its verdicts."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from hba_ray.cli import main as cli
from hba_ray.errors import DataError, SpecError
from hba_ray.evaluation.costs import Cost, Latency
from hba_ray.evaluation.scores import score_predictions
from hba_ray.judge.grade import Verdict, verdict_table
from hba_ray.report.verdicts import CellVerdict, give_verdicts
from hba_ray.runs.cost import NUMBERS, known_cost
from hba_ray.runs.measured import check_columns, measured_columns
from hba_ray.runs.plan import STAGES, Experiment, plan, run_fingerprint
from hba_ray.runs.reproduce import plan_table, read_table, reproduce, write_table
from hba_ray.specs import ExperimentSpec, PaperSpec
from hba_ray.specs.paper import TOY, experiments_folder, find_table
from hba_ray.steps.results.evaluate import PREDICTIONS, SCORES
from hba_ray.steps.results.judge import VERDICTS
from hba_ray.steps.results.retention import WRITTEN
from hba_ray.store.folders import Storage, finish
from tests.helpers.hand_made import rows_of

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


TRAINED = {"optimizer_steps": 1, "epochs": 1, "best_epoch": 0, "best_validation_loss": None, "drops": {}, "part": "all"}
JUDGED = {"arm": "sft", "judge": "j", "prompts": "standard", "true": 1, "false": 1, "unreadable": {}, "from_cache": 0}
BY_HAND = {
    "sft": TRAINED,
    "transfer": TRAINED,
    "grpo": {"optimizer_steps": 1, "reward_first_quarter": 0.1, "reward_last_quarter": 0.2},
    "bam": {"datasets": {}},
    "states": {"rows": {}},
    "describe": {"streams": {}},
    "pack": {"rows": 0, "mib": 0.0},
    "judge": JUDGED | {"input_tokens": 1, "output_tokens": 1},
    "compare": {"against": "sft", "datasets": 1},
    "retention": {"arm": "sft", "rows": 0, "clips": 0, "unreadable": 0},
}
"""What steps that nobody did say of themselves."""


def planned_arms(spec: ExperimentSpec) -> Sequence[Experiment]:
    """The trials of a table's spec, or the one experiment that it is."""
    planned = plan_table(spec)
    return (planned,) if isinstance(planned, Experiment) else planned.trials


def finish_by_hand(spec: ExperimentSpec, rows: Callable[[str], list[dict[str, Any]]], counts: dict[str, Any] | None = None) -> None:
    """Finishes all steps of all trials: predictions are made by hand, nothing is trained.

    Args:
        rows: arm -> what it predicts.
        counts: of the atlas; by default that step, and all but training and prediction, are left to the run.
    """
    for step in (step for trial in planned_arms(spec) for step in trial.steps):
        if step.is_done or (counts is None and step.kind.name not in ("sft", "transfer", "evaluate")):
            continue
        step.folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {"counts": counts, "drops": {}} if step.kind.name == "atlas" else dict(BY_HAND.get(step.kind.name, {}))
        if step.kind.name == "evaluate":
            predictions = pa.Table.from_pylist(rows(str(step.arm)))
            pq.write_table(predictions, step.folder / PREDICTIONS)
            (step.folder / SCORES).write_text(score_predictions(predictions, {}).to_json())
            facts = {"rows": len(predictions), "drops": {}}
        elif step.kind.name == "judge":
            asked = rows(str(step.arm))
            said = [Verdict(row["sample_id"], row["dataset"], True, "", "", "judge", 1, 1, was_cached=False) for row in asked]
            pq.write_table(verdict_table(said), step.folder / VERDICTS)
        finish(step.folder, facts)


@pytest.fixture
def finished(tmp_path, toy):
    """A finished trial."""
    spec = experiment(tmp_path, {"source": "released", "root": str(toy.jsonl)})
    finish_by_hand(spec, lambda arm: rows_of("mmsd", 75, 25), {"mmsd": {"train": 400, "test": 100}})
    return spec


def test_finished_trials_become_a_table_in_four_forms(finished, tmp_path):
    assert finished.paper is not None
    found = give_verdicts(finished.paper, measured_columns(finished.paper, planned_arms(finished)))
    assert [cell.verdict for cell in found.cells] == ["agrees", "agrees"] and found.is_met
    files = list(write_table(found, ["sft.lr=1 (command line)"], tmp_path))
    assert [file.name for file in files] == ["T6.md", "T6.csv", "T6-claims.csv", "T6.tex", "T6.json"]
    assert "Differs: sft.lr=1 (command line)" in files[0].read_text()
    with files[1].open(newline="") as file:
        assert [row["Verdict"] for row in csv.DictReader(file)] == ["agrees", "agrees"]
    assert json.loads(files[4].read_text())["is_met"] is True


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


@pytest.mark.parametrize("scale", ["full", "toy"])
def test_tables_have_in_common_what_they_can(scale, tmp_path, toy, monkeypatch):
    monkeypatch.setenv("HBA_ROOT", str(toy.jsonl))

    def steps(table: str, *kinds: str) -> set[str]:
        spec = read_table(find_table(table, SHIPPED), [f"compute.storage={tmp_path}"], toy=SHIPPED / TOY if scale == "toy" else None)
        return {step.fingerprint for trial in planned_arms(spec) for step in trial.steps if not kinds or step.kind.name in kinds}

    trained = ("atlas", "describe", "backbone", "sft", "states", "bam", "evaluate")
    for other in ("T4", "T10", "T11", "T12", "T13"):
        assert steps("T6", *trained) <= steps(other), other
    for other in ("T17", "T20", "T14", "T15", "T19"):
        assert steps("T4", "atlas", "backbone", "grpo") <= steps(other), other


@pytest.mark.slow
def test_a_sweep_whose_models_are_trained_is_read_reported_and_judged(tmp_path):
    """Everything but training and prediction is real: the sweep, its report, the columns, the files."""
    small = [f"compute.storage={tmp_path}", "atlas.limit=2", "atlas.toy.rows=40", "model.tiny.hidden=64", "model.tiny.vocabulary=512"]
    spec = read_table(find_table("T5", SHIPPED), small, toy=SHIPPED / TOY)
    right = {"sft": 10, "sft+transfer": 18, "transfer": 12}
    finish_by_hand(spec, lambda arm: [{**row, "clip_id": row["sample_id"]} for row in rows_of("toy_words", right[arm], 20 - right[arm])])
    made = reproduce(spec, lambda line: None, ["sft.epochs=1"])
    cells = {(cell.row, cell.column): cell.estimate.value for cell in made.verdict.cells}
    assert cells["toy_words", "OmniSapiens-7B SFT"] == pytest.approx(0.9, abs=0.01)
    assert cells["toy_words", "Qwen2.5-Omni-7B SFT"] == pytest.approx(0.6, abs=0.01)
    assert made.verdict.is_toy and made.verdict.is_met and made.differs == ("sft.epochs=1 (command line)",)
    assert all(file.is_file() for file in made.files) and (made.files[0].parent / "table.md").is_file()
    assert made.page.name == "report.html" and "Table 5, at toy scale" in made.page.read_text()
    assert_verdict_on_record(tmp_path, made.files, "Table 5, at toy scale")


def assert_verdict_on_record(storage: Path, files: Sequence[Path], title: str) -> None:
    """MLflow's record, the one of a run or a sweep, is closed and has the table and the page that shows it."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (record,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {file.path for file in client.list_artifacts(record.info.run_id)} >= {file.name for file in files}
    assert title in Path(client.download_artifacts(record.info.run_id, "report.html")).read_text()


@pytest.mark.parametrize(("claimed", "code", "word"), [(0.1, 0, "met"), (0.01, 3, "missed")])
def test_a_missed_claim_ends_with_exit_code_3(tmp_path, toy, monkeypatch, capsys, claimed, code, word):
    gates = [{"says": "near", "of": "plain", "within": claimed, "rows": ["mmsd"]}]
    atlas = {"source": "released", "root": str(toy.jsonl)}
    spec = experiment(tmp_path / "runs", atlas, gates=gates, published={"plain": {"mmsd": 0.70}})
    finish_by_hand(spec, lambda arm: rows_of("mmsd", 75, 25), {"mmsd": {"train": 400, "test": 100}})
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "T6_made_up.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setattr("sys.argv", ["hba", "reproduce", "T6", "--experiments", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = " ".join(capsys.readouterr().out.split())
    assert (ended.value.code or 0) == code
    assert f"near {word}" in said and f"{int(code == 0)} of 1 claims met" in said
    files = list((tmp_path / "runs").glob("x-*/T6.*"))
    assert len(files) == 4
    assert_verdict_on_record(tmp_path / "runs", files, "Table 6")


def finished_table(table: str, storage: Path, toy: Any, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> ExperimentSpec:
    """A table's own spec whose arms have answered ten questions of two clips each, all in the same words."""
    monkeypatch.setenv("HBA_ROOT", str(toy.jsonl))
    spec = read_table(find_table(table, SHIPPED), [f"compute.storage={storage}", *overrides])
    rows = [{**row, "clip_id": f"clip {place // 2}"} for place, row in enumerate(rows_of("siq2", 5, 5))]
    finish_by_hand(spec, lambda arm: rows, {"siq2": {"test": 10}})
    return spec


def cells_of(spec: ExperimentSpec, latency: Latency | None = None) -> dict[tuple[str, str], CellVerdict]:
    assert spec.paper is not None
    found = give_verdicts(spec.paper, measured_columns(spec.paper, planned_arms(spec), latency))
    return {(cell.column, cell.row): cell for cell in found.cells}


def test_table_13_gets_a_verdict_on_the_papers_hardware_alone(tmp_path, toy, monkeypatch):
    spec = finished_table("T13", tmp_path, toy, monkeypatch)
    there = Latency(Cost(0.284, 0.02, 24265.3), Cost(0.35, 0.04, 24291.0), "NVIDIA H200", "bf16", 500, 1)
    cells = cells_of(spec, there)
    assert cells["without BAM", "cost/mean_seconds"].verdict == cells["without BAM", "cost/peak_mb"].verdict == "agrees"
    assert cells["with BAM", "cost/mean_seconds"].verdict == "higher" and cells["without BAM", "cost/std_seconds"].verdict == "lower"
    here = cells_of(spec, replace(there, device="CPU, one thread"))
    assert {cell.verdict for cell in here.values()} == {"other hardware"}
    assert here["with BAM", "cost/mean_seconds"].estimate.value == 0.35 and here["with BAM", "cost/mean_seconds"].difference is None


def test_what_was_measured_of_adapters_is_read_again(tmp_path, toy, monkeypatch):
    spec = finished_table("T13", tmp_path, toy, monkeypatch)
    found = Latency(Cost(0.2, 0.01, 1000.0), Cost(0.21, 0.02, 1018.4), "CPU, one thread", "fp32", 36, 1)
    folder = Storage(spec.compute.storage).run(spec.name, run_fingerprint(planned_arms(spec)[0].steps))
    folder.mkdir()
    assert known_cost(plan(spec)) is None
    (folder / NUMBERS).write_text(json.dumps(found.to_json()))
    assert known_cost(plan(spec)) == found
    (folder / NUMBERS).write_text("{}")
    with pytest.raises(DataError, match="is no measurement"):
        known_cost(plan(spec))


def test_table_17_has_the_writing_of_both_models_with_intervals_over_clips(tmp_path, toy, monkeypatch):
    spec = finished_table("T17", tmp_path, toy, monkeypatch)
    for trial in planned_arms(spec):
        for step in (step for step in trial.steps if step.kind.name == "retention"):
            better = str(step.arm) == "grpo"
            rows = [
                {"sample_id": f"siq2-{place}", "dataset": "siq2", "log_loss": 12.0 + place % 2, "tokens": 2, "relevance": None}
                | {"fluency": 3 + (place // 2) % 2 + better, "coherence": 4}
                for place in range(10)
            ]
            pq.write_table(pa.Table.from_pylist(rows), step.folder / WRITTEN)
    cells = cells_of(spec)
    before, after = ("Qwen2.5-Omni-7B", "OmniSapiens-7B RL")
    fluency = cells[before, "answers/fluency"].estimate.interval
    assert fluency.value == pytest.approx(3.4) and 3 <= (fluency.low or 0) < 3.4 < (fluency.high or 0) <= 4
    assert cells[after, "answers/coherence"].verdict == "higher" and cells[after, "answers/relevance"].verdict == "missing"
    assert cells[after, "answers/perplexity"].estimate.value == pytest.approx(math.exp(6.25))
    assert spec.paper is not None
    found = give_verdicts(spec.paper, measured_columns(spec.paper, planned_arms(spec)))
    rows = {one.row: one for one in found.contrasts}
    assert rows["answers/fluency"].verdict == "as published" and rows["answers/fluency"].comparison.difference.low == pytest.approx(1)
    assert rows["answers/perplexity"].verdict == "none, as published"


def test_a_column_whose_answers_two_judges_have_graded_asks_which_is_meant(tmp_path, toy):
    arms = {"plain": {"arm": "sft"}}
    plain = experiment(tmp_path, {"source": "released", "root": str(toy.jsonl)}, published={"plain": {"SOC": 0.5}}, arms=arms, gates=[])
    sweep = {"axes": {"evaluate.judge.prompts": ["standard", "paraphrased"]}}
    spec = ExperimentSpec.model_validate(
        plain.identity() | {"evaluate": {"judge": {}}, "sweep": sweep, "compute": {"storage": str(tmp_path)}}
    )
    finish_by_hand(spec, lambda arm: rows_of("siq2", 3, 1), {"siq2": {"train": 4, "test": 4}})
    with pytest.raises(DataError, match="other verdicts on the same answers"):
        measured_columns(cast(PaperSpec, spec.paper), planned_arms(spec))


@pytest.mark.slow
def test_table_18_sets_judges_of_the_same_answers_against_each_other_and_a_person(tmp_path, toy, monkeypatch):
    graded = {"gpt-5-nano-2025-08-07 standard": 4, "gpt-5-nano-2025-08-07 paraphrased": 6, "Qwen/Qwen3-30B-A3B standard": 5}
    spec = finished_table("T18", tmp_path, toy, monkeypatch)
    for trial in planned_arms(spec):
        judge = trial.spec.evaluate.judge
        assert judge is not None
        right = graded[f"{judge.model} {judge.prompts}"]
        verdicts = [Verdict(f"siq2-{place}", "siq2", place < right, "", "", judge.model, 1, 1, was_cached=False) for place in range(10)]
        for step in (step for step in trial.steps if step.kind.name == "judge"):
            pq.write_table(verdict_table(verdicts), step.folder / VERDICTS)
    cells = {column: cell for (column, _), cell in cells_of(spec).items()}
    assert cells["GPT-5-nano against Qwen3-30B"].estimate.value == pytest.approx(0.8)
    assert cells["GPT-5-nano against a person"].verdict == "not measured here"
    labels = tmp_path / "labels.csv"
    labels.write_text("dataset,sample_id,label\n" + "".join(f"siq2,siq2-{place},{str(place < 6).lower()}\n" for place in range(10)))
    labelled = spec.model_copy(update={"paper": cast(PaperSpec, spec.paper).model_copy(update={"labels": str(labels)})})
    cells = {column: cell.estimate.value for (column, _), cell in cells_of(labelled).items()}
    assert cells["GPT-5-nano against a person (paraphrased)"] == pytest.approx(1.0)
    assert cells["GPT-5-nano against a person"] == pytest.approx(1 - 0.2 / 0.52)
    assert cells["Qwen3-30B against a person"] == pytest.approx(0.8)

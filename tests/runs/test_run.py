"""A whole experiment in this process: done once, taken up where it broke off, recorded once."""

import json
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest

from hba_ray.errors import DataError, EnvironmentMissing, HbaError
from hba_ray.report.tables import read_json
from hba_ray.runs.opened import rebuild_page
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import KINDS
from hba_ray.steps.base import Context
from hba_ray.steps.inputs.atlas import AtlasResult
from hba_ray.steps.run import do_step
from hba_ray.store.folders import Storage
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.kinds import replace_make

NAMES = ["atlas", "backbone", "sft", "evaluate sft"]


def run(spec: ExperimentSpec, tracker: ReadableJournal | None = None) -> Finished:
    return run_experiment(plan(spec), lambda line: None, tracker or ReadableJournal())


def ledger(folder: Path) -> list[tuple[str, str | None]]:
    """(event, step) of every line."""
    return [(fact["event"], fact.get("step")) for fact in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of the finished steps, with the time it was written and its number on the disk."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def rows_scored(made: Finished) -> int:
    return sum(score.rows for score in made.report.scores["sft"].datasets)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Finished, ReadableJournal]:
    """A storage folder with a finished run in it."""
    storage, tracker = tmp_path_factory.mktemp("runs"), ReadableJournal()
    return storage, run(small_experiment(storage), tracker), tracker


def test_a_run_leaves_its_table_its_spec_and_its_ledger(finished):
    _, made, tracker = finished
    assert {file.name for file in made.folder.iterdir()} >= {
        "resolved.yaml",
        "env.json",
        "ledger.jsonl",
        "table.md",
        "report.json",
        "report.html",
    }
    assert ledger(made.folder)[:8] == [(event, kind) for kind in NAMES for event in ("started", "done")]
    assert ledger(made.folder)[8] == ("finished", None)
    report = read_json((made.folder / "report.json").read_text(), where="report.json")
    assert {score.dataset for score in report.scores["sft"].datasets} == {"toy_tone", "toy_nod", "toy_words", "toy_answers"}
    assert tracker.status == "FINISHED"
    (log,) = made.folder.parent.glob("steps/sft-*/metrics.jsonl")
    assert sorted(tracker.metrics["sft/loss"]) == sorted({line["step"] for line in map(json.loads, log.read_text().splitlines())})
    assert len(tracker.metrics["sft/validation_loss"]) == 2


def test_its_page_shows_its_curves_its_rows_and_their_clips_and_is_made_again_alike(finished):
    _, made, _ = finished
    page = made.page.read_text()
    assert page.count("<title>") == 1 and "a tiny random model" in page.partition("</title>")[0]
    assert "loss per row" in page and 'class="confusion"' in page
    assert page.count('class="row"') == rows_scored(made) > 4 and '"video/mp4"' in page and '"audio/wav"' in page
    made.page.unlink()
    assert rebuild_page(made.folder) == made.page.absolute() and made.page.read_text() == page


def test_a_page_whose_atlas_is_gone_says_so(finished):
    storage, made, _ = finished
    (shard,) = storage.glob("steps/atlas-*/rows/test-*.parquet")
    shard.rename(shard.with_suffix(".away"))
    try:
        page = rebuild_page(made.folder).read_text()
        assert "No clips: the atlas cannot be read any more" in page and page.count('class="row"') == rows_scored(made)
    finally:
        shard.with_suffix(".away").rename(shard)


def test_started_again_it_does_nothing_twice(finished):
    storage, made, _ = finished
    before = files(storage / "steps")
    again = run(small_experiment(storage))
    assert ledger(again.folder)[-5:] == [*(("reused", kind) for kind in NAMES), ("finished", None)]
    assert files(storage / "steps") == before
    assert again.report.scores == made.report.scores


def test_another_learning_rate_redoes_training_and_evaluation_only(finished):
    storage, _, _ = finished
    other = run(small_experiment(storage, sft__lr=2e-3, sft__epochs=1))
    events = ledger(other.folder)
    assert events[:2] == [("reused", "atlas"), ("reused", "backbone")]
    assert [event for event in events if event[0] == "done"] == [("done", "sft"), ("done", "evaluate sft")]


def test_two_runs_of_one_spec_and_seed_give_identical_metrics(finished, tmp_path: Path):
    _, made, tracker = finished
    other = ReadableJournal()
    again = run(small_experiment(tmp_path), other)
    assert again.report.scores == made.report.scores
    for name in ("sft/loss", "sft/validation_loss", "sft/class_accuracy"):
        assert other.metrics[name] == tracker.metrics[name]


@pytest.mark.parametrize(("kind", "interruption"), [("sft", KeyboardInterrupt), ("evaluate", DataError)])
def test_an_interrupted_run_goes_on_with_the_step_it_was_at(tmp_path: Path, monkeypatch, kind, interruption):
    spec, tracker = small_experiment(tmp_path, sft__epochs=1), ReadableJournal()
    make = KINDS[kind].make

    def interrupt(context) -> None:
        make(context)
        raise interruption("here", "cut off")

    replace_make(monkeypatch, kind, interrupt)
    with pytest.raises(interruption):
        run(spec, tracker)
    assert tracker.status == ("KILLED" if interruption is KeyboardInterrupt else "FAILED")
    states = {step.name: step.is_done for step in plan(spec, Storage(tmp_path)).steps}
    interrupted = next(name for name in NAMES if name.startswith(kind))
    assert states == {name: NAMES.index(name) < NAMES.index(interrupted) for name in NAMES}

    replace_make(monkeypatch, kind, make)
    again = run(spec)
    events = ledger(again.folder)
    for name in NAMES[: NAMES.index(interrupted)]:
        assert events.count(("started", name)) == 1 and ("reused", name) in events
    assert events.count(("started", interrupted)) == 2 and events.count(("done", interrupted)) == 1


def test_a_damaged_mark_is_refused_by_name(finished):
    storage, _, _ = finished
    spec = small_experiment(storage)
    mark = plan(spec, Storage(storage)).steps[0].folder / "done.json"
    whole = mark.read_text()
    try:
        mark.write_text(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="is damaged") as refused:
            run(spec)
        assert refused.value.where == str(mark)
    finally:
        mark.write_text(whole)


def test_of_two_runs_with_one_step_the_second_waits_and_takes_what_the_first_made(tmp_path: Path, monkeypatch):
    spec, made, said = small_experiment(tmp_path), [], []
    step = plan(spec, Storage(tmp_path)).steps[0]

    def make(context) -> AtlasResult:
        time.sleep(1)
        made.append(context.folder)
        return AtlasResult(counts={})

    replace_make(monkeypatch, "atlas", make)
    runs = [threading.Thread(target=do_step, args=(Context(spec, step, {}), said.append)) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join(60)
    assert made == [step.folder]
    assert [line.partition(": ")[2] for line in said] == ["toy atlas", "done by another run"]


def test_mlflow_holds_one_finished_run_with_everything_once(tmp_path: Path):
    from mlflow import MlflowClient

    spec = small_experiment(tmp_path, sft__epochs=1)
    for _ in range(2):
        made = run_experiment(plan(spec), lambda line: None)
    client = MlflowClient(made.mlflow)
    experiment = client.get_experiment_by_name("hba_ray")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert (record.data.params["sft.lr"], record.data.params["model.backbone"]) == ("0.001", "tiny")
    losses = [point.step for point in client.get_metric_history(record.info.run_id, "sft/loss")]
    assert losses == sorted(set(losses)) and losses
    scores = [name for name in record.data.metrics if name.startswith("score/")]
    assert scores and all(len(client.get_metric_history(record.info.run_id, name)) == 1 for name in scores)
    assert [data.dataset.name for data in record.inputs.dataset_inputs] == ["atlas"]
    artifacts = {file.path for folder in ("", "evaluate/sft", "sft") for file in client.list_artifacts(record.info.run_id, folder)}
    assert artifacts >= {
        "table.md",
        "report.json",
        "report.html",
        "resolved.yaml",
        "env.json",
        "evaluate/sft/predictions.parquet",
        "sft/metrics.jsonl",
    }


def test_a_storage_folder_that_is_a_file_is_refused_before_anything_runs(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(HbaError, match=r"compute\.storage"):
        run(small_experiment(tmp_path / "runs"))


def test_a_machine_without_the_gpus_is_refused_before_anything_is_made(tmp_path: Path):
    """More than any machine has, so that it is refused on one with GPUs too."""
    with pytest.raises(EnvironmentMissing, match="needs 1000 GPUs, but there are "):
        run(small_experiment(tmp_path, compute__workers=1, compute__gpus_per_worker=1000))
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_does_not_answer_is_told_before_anything_is_made(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentMissing, match="'nobody/has-this' cannot be fetched from the hub: Cannot reach") as refused:
        run(small_experiment(tmp_path, model__backbone="nobody/has-this"))
    assert refused.value.where == "model.backbone" and "local folder" in refused.value.way_out
    assert list(tmp_path.iterdir()) == []

"""A finished step never lies: what is gone, cut or changed is refused by its name, and done again when it is asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hba_ray.actions.verify import verify
from hba_ray.cli.main import app
from hba_ray.errors import DataError, HbaError, SpecError
from hba_ray.report.tables import Report
from hba_ray.runs.opened import rebuild_page
from hba_ray.runs.plan import Experiment, plan
from hba_ray.runs.results import make_report
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Draft, Result, Step, StepKind
from hba_ray.steps.run import do_step, undo
from hba_ray.store.finished import FILES, MADE_FROM
from hba_ray.store.folders import Storage, done, finish, ledger, reopen
from tests.helpers.experiments import small_experiment
from tests.helpers.hostile import hostile
from tests.helpers.hostile_steps import DOING, Damaged, damaged_steps
from tests.helpers.journals import ReadableJournal


def spec_of(storage: Path, **changes: object) -> ExperimentSpec:
    return small_experiment(storage, **{"sft__epochs": 1, **changes})


def run(spec: ExperimentSpec) -> Finished:
    return run_experiment(plan(spec), lambda line: None, ReadableJournal())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(spec_of(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def storage(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the storage in which the run lies."""
    return shutil.copytree(finished.folder.parent, tmp_path / "storage")


def steps_of(storage: Path) -> dict[str, Step]:
    return {step.name: step for step in plan(spec_of(storage)).steps}


def flip(file: Path, at: int = -128) -> None:
    held = bytearray(file.read_bytes())
    held[at : at + 64] = bytes(byte ^ 0x15 for byte in held[at : at + 64])
    file.write_bytes(held)


def read_all(experiment: Experiment) -> Report:
    """What a run, a report and later steps read of finished steps, without models."""
    for step in experiment.steps:
        step.result()
        step.whole()
    index = experiment.context("sft").whole_index
    assert len(index.table)
    rebuild_page(experiment.folder)
    return make_report(experiment)


SFT_FILES = ("metrics.jsonl", "model/model.json", "model/model.safetensors", "model/settings.json")


def test_a_step_lists_its_files_and_the_steps_that_it_read(finished: Finished):
    steps = steps_of(finished.folder.parent)
    said = {name: done(step.folder) or {} for name, step in steps.items()}
    assert set(said["evaluate sft"][FILES]) == {"predictions.parquet", "scores.json"}
    assert set(said["sft"][FILES]) == set(SFT_FILES), "checkpoints are no result"
    assert {"index.json", "index.parquet"} < set(said["atlas"][FILES]) and len(said["atlas"][FILES]) > 4
    assert said["sft"][FILES]["metrics.jsonl"]["size"] == (steps["sft"].folder / "metrics.jsonl").stat().st_size
    assert set(said["evaluate sft"][MADE_FROM]) == {steps[name].folder.name for name in ("atlas", "backbone", "sft")}


@hostile("damaged steps", 75)
@given(damaged=damaged_steps(), which=st.sampled_from(["atlas", "backbone", "sft", "evaluate sft"]))
def test_whatever_happens_to_a_finished_step_is_refused_by_name(tmp_path_factory, finished: Finished, damaged: Damaged, which: str):
    storage = tmp_path_factory.mktemp("damaged") / "storage"
    shutil.copytree(finished.folder.parent, storage, ignore=lambda folder, names: [name for name in names if name == "checkpoint"])
    experiment = plan(spec_of(storage))
    step = next(step for step in experiment.steps if step.name == which)
    file = damaged.do(step.folder)
    try:
        report = read_all(experiment)
    except HbaError as error:
        assert error.where and error.way_out, error
    else:
        assert report == replace(finished.report, facts=report.facts), "other numbers, and no word"
        assert report.facts.rows_used == finished.report.facts.rows_used
        assert file is None
    finally:
        shutil.rmtree(storage)


@hostile("damaged steps", 75)
@given(damaged=damaged_steps(), which=st.sampled_from(["atlas", "backbone", "sft", "evaluate sft"]))
def test_what_a_former_version_left_is_read_or_refused_but_never_a_traceback(
    tmp_path_factory, finished: Finished, damaged: Damaged, which: str
):
    """Their files are listed nowhere, so other bytes may go unseen; their shape is looked at all the same."""
    storage = tmp_path_factory.mktemp("damaged") / "storage"
    shutil.copytree(finished.folder.parent, storage, ignore=lambda folder, names: [name for name in names if name == "checkpoint"])
    experiment = plan(spec_of(storage))
    for step in experiment.steps:
        facts = {key: value for key, value in (done(step.folder) or {}).items() if key not in (FILES, MADE_FROM)}
        (step.folder / "done.json").write_text(json.dumps(facts))
    damaged.do(next(step for step in experiment.steps if step.name == which).folder)
    try:
        read_all(experiment)
    except HbaError as error:
        assert error.where
    finally:
        shutil.rmtree(storage)


def test_weights_whose_bytes_have_flipped_are_not_evaluated(storage: Path):
    step = steps_of(storage)["sft"]
    flip(step.folder / "model" / "model.safetensors")
    with pytest.raises(DataError, match="holds other bytes than when the step was finished; the finished step 'sft' made it") as refused:
        run(spec_of(storage, evaluate__max_new_tokens=5))
    assert refused.value.where == str(step.folder / "model" / "model.safetensors")
    assert refused.value.way_out == "do the step again: give `hba run` the same spec and overrides and --redo sft"


def test_a_file_that_is_gone_is_told_by_plan_and_report(storage: Path, finished: Finished, tmp_path: Path):
    """A report is read from a file of the run, so it can be printed; its reader is told all the same."""
    file, said = tmp_path / "spec.yaml", CliRunner()
    file.write_text(json.dumps(spec_of(storage).model_dump(mode="json")))
    run_folder = storage / finished.folder.name
    whole = [said.invoke(app, words).output for words in (["plan", str(file)], ["report", str(run_folder), "--format", "csv"])]
    assert "damaged" not in whole[0] and "is gone" not in whole[1]
    (steps_of(storage)["sft"].folder / "model" / "model.safetensors").unlink()
    planned = said.invoke(app, ["plan", str(file)])
    assert planned.exit_code == 0 and "damaged: model/model.safetensors" in planned.output
    reported = said.invoke(app, ["report", str(run_folder), "--format", "csv"])
    assert reported.exit_code == 0
    unbroken = "".join(reported.output.split())  # lines are as wide as the terminal, and break inside a long path
    assert "model.safetensors:isgone;thetablesweremadebeforethat" in unbroken


@pytest.mark.parametrize("file", ["scores.json", "predictions.parquet"])
def test_a_file_that_is_gone_is_no_empty_table(storage: Path, finished: Finished, file: str):
    (steps_of(storage)["evaluate sft"].folder / file).unlink()
    with pytest.raises(DataError, match=r"is gone; .*\n.*--redo 'evaluate sft'") as refused:
        run(spec_of(storage))
    assert refused.value.where.endswith(file)
    with pytest.raises(DataError, match="is gone"):
        make_report(plan(spec_of(storage)))
    if file == "predictions.parquet":
        with pytest.raises(DataError, match="is gone"):
            rebuild_page(storage / finished.folder.name)


def test_scores_that_a_former_version_left_and_someone_deleted_are_missed_too(storage: Path):
    step = steps_of(storage)["evaluate sft"]
    facts = {key: value for key, value in (done(step.folder) or {}).items() if key not in (FILES, MADE_FROM)}
    (step.folder / "done.json").write_text(json.dumps(facts))
    assert step.is_done and step.result().rows and run(spec_of(storage)).report.scores
    (step.folder / "scores.json").unlink()
    with pytest.raises(DataError, match=r"scores\.json: is gone"):
        run(spec_of(storage))


@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("became", ["a folder", "a loop of links"])
def test_a_log_that_is_no_file_any_more_is_no_missing_curve(storage: Path, finished: Finished, former: bool, became: str):
    step = steps_of(storage)["sft"]
    if former:
        facts = {key: value for key, value in (done(step.folder) or {}).items() if key not in (FILES, MADE_FROM)}
        (step.folder / "done.json").write_text(json.dumps(facts))
    DOING[became](Damaged(became, 0, 0, b""), step.folder / "metrics.jsonl", b"")
    with pytest.raises(DataError, match=r"metrics\.jsonl: "):
        rebuild_page(storage / finished.folder.name)


@pytest.mark.parametrize("said", ["{}", '{"seconds": 1}'])
def test_a_mark_that_says_nothing_is_no_finished_training(storage: Path, said: str):
    (steps_of(storage)["sft"].folder / "done.json").write_text(said)
    with pytest.raises(DataError, match=r"done\.json: is damaged: .*(says nothing of|not those that were written)"):
        run(spec_of(storage))


@pytest.mark.parametrize("said", ["{}", '{"seconds": 1, "files": {}}'])
def test_a_mark_without_its_seal_is_damaged_where_nothing_else_would_show_it(storage: Path, said: str):
    (steps_of(storage)["backbone"].folder / "done.json").write_text(said)
    with pytest.raises(DataError, match="not those that were written"):
        run(spec_of(storage))


def test_a_step_is_done_again_and_those_behind_it_stand_where_it_comes_out_the_same(storage: Path, finished: Finished, tmp_path: Path):
    flip(steps_of(storage)["backbone"].folder / "model" / "model.safetensors")
    file, said = tmp_path / "spec.yaml", CliRunner()
    file.write_text(json.dumps(spec_of(storage).model_dump(mode="json")))
    assert said.invoke(app, ["runs", "verify", str(storage)]).exit_code == 1
    again = said.invoke(app, ["run", str(file), "--redo", "backbone"])
    assert again.exit_code == 0, again.output
    assert said.invoke(app, ["runs", "verify", str(storage)]).exit_code == 0
    events = [(line["event"], line.get("step")) for line in ledger(storage / finished.folder.name)][9:]
    assert events == [("reused", "atlas"), ("started", "backbone"), ("done", "backbone"), ("reused", "sft"), ("reused", "evaluate sft"),
                      ("finished", None)]  # fmt: skip


def test_verify_names_every_damaged_file_of_a_run_or_a_storage(storage: Path, finished: Finished):
    steps = steps_of(storage)
    sound = verify(storage)
    assert (sound.steps, sound.unlisted, sound.found) == (4, 0, ()) and sound.files > 10
    flip(steps["sft"].folder / "model" / "model.safetensors")
    (steps["evaluate sft"].folder / "scores.json").unlink()
    (steps["atlas"].folder / "done.json").write_text("[]")
    for folder in (storage, storage / finished.folder.name):
        found = {file.name: what for file, what in verify(folder).found}
        assert set(found) == {"model.safetensors", "scores.json", "done.json"} and found["scores.json"] == "is gone"
    with pytest.raises(SpecError, match="neither a storage nor a run"):
        verify(steps["sft"].folder)


def test_a_step_of_another_name_cannot_be_done_again(storage: Path):
    steps = list(steps_of(storage).values())
    with pytest.raises(SpecError, match=r"no step 'bam'\n  steps: atlas, backbone, sft, evaluate sft"):
        undo([steps], ["bam"], lambda line: None)
    assert all(step.is_done for step in steps)


@dataclass(frozen=True)
class Writing(StepKind[Result]):
    """Writes what it is told, and what the step before it has written."""

    name = "writing"

    def plan(self, draft: Draft) -> None:
        for part in ("first", "second", "third"):
            draft.add(self, {"part": part}, "write", part=part)

    def make(self, context: Context) -> Result:
        before = {"second": "writing first", "third": "writing second"}.get(context.part)
        text = "" if before is None else (context.folder_of(before) / "text").read_text()
        (context.folder / "text").write_text(text + context.spec.name)
        with (context.folder / "times").open("a") as times:
            times.write("x")
        return Result()


def write(storage: Path, word: str) -> tuple[list[Step], list[str]]:
    draft, said = Draft(small_experiment(storage, name=word), Storage(storage)), []
    Writing().plan(draft)
    earlier: dict[str, Step] = {}
    for step in draft.steps:
        do_step(Context(draft.spec, step, dict(earlier)), said.append)
        earlier[step.name] = step
    return draft.steps, said


def texts(steps: list[Step]) -> list[str]:
    return [(step.folder / "text").read_text() for step in steps]


@pytest.mark.parametrize(("word", "expected"), [("a", ["a", "aa", "aaa"]), ("b", ["b", "bb", "bbb"])])
def test_steps_are_done_again_where_what_they_read_has_changed_and_only_there(tmp_path: Path, word: str, expected: list[str]):
    steps, _ = write(tmp_path, "a")
    undo([steps], ["writing first"], lambda line: None)
    assert [step.is_done for step in steps] == [False, True, True]
    _, said = write(tmp_path, word)
    assert texts(steps) == expected and all(step.is_done for step in steps)
    assert sum("since it was made from another writing-" in line for line in said) == (0 if word == "a" else 2)


@pytest.mark.parametrize("state", ["half done", "of a former version"])
def test_steps_that_may_have_read_it_unsaid_are_removed_with_it(tmp_path: Path, state: str):
    steps, _ = write(tmp_path, "a")
    if state == "half done":
        reopen(steps[2].folder)
    else:
        finish(steps[2].folder, {"version": 1})
    undo([steps], [steps[0].fingerprint], lambda line: None)
    assert [(step.folder / "text").exists() for step in steps] == [False, True, False]

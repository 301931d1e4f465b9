"""A sweep in this process: shared steps once, failures kept apart, everything recorded once, nothing done twice."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from mlflow import MlflowClient

from hba_ray.cluster.session import Session, check_store
from hba_ray.errors import DataError, EnvironmentMissing, HbaError, SpecError, TrialsFailed
from hba_ray.evaluation.arms import Arm
from hba_ray.report.tables import read_json, sheets
from hba_ray.runs import sweep as sweep_module
from hba_ray.runs.assignments import Outcome
from hba_ray.runs.estimate import estimate
from hba_ray.runs.meter import Budget, Meter
from hba_ray.runs.opened import rebuild_page
from hba_ray.runs.results import labels
from hba_ray.runs.sweep import FinishedSweep, run_sweep
from hba_ray.runs.sweep_plan import plan_sweep
from hba_ray.specs.sections.compute import TrackingSpec
from hba_ray.steps import KINDS
from hba_ray.steps.base import Step
from hba_ray.steps.inputs.atlas import AtlasSteps
from hba_ray.steps.needs.model import expected_rows
from hba_ray.steps.results.evaluate import EvaluateSteps
from hba_ray.steps.run import WORK, setting_of
from hba_ray.store.folders import finish
from hba_ray.store.journal import Forwarder
from tests.helpers.experiments import NAMES, small_sweep
from tests.helpers.kinds import replace_make
from tests.helpers.recorded import assert_recorded, events


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinishedSweep, list[str]]:
    storage, said = tmp_path_factory.mktemp("runs"), []
    return storage, run_sweep(plan_sweep(small_sweep(storage)), said.append), said


def test_shared_steps_are_done_once_and_first(swept):
    storage, made, said = swept
    assert Counter(folder.name.split("-")[0] for folder in (storage / "steps").iterdir()) == {
        "atlas": 1,
        "backbone": 1,
        "sft": 2,
        "evaluate": 4,
    }
    assert {count for (event, _), count in events(storage).items() if event in ("started", "done")} == {1}
    assert said[0] == "shared by all trials: atlas, backbone"
    assert [line for line in said if not line.startswith(" ") and line.endswith(": started")] == [
        f"{name}: started" for name in (f"sft of {NAMES[0]}", f"sft of {NAMES[2]}", *NAMES)
    ]
    assert {outcome.status for outcome in made.outcomes.values()} == {"done"}


def test_the_report_sets_the_trials_side_by_side(swept):
    _, made, _ = swept
    report = read_json((made.folder / "report.json").read_text())
    assert list(report.scores) == NAMES
    assert report.scores[NAMES[0]] == made.reports[NAMES[0]].scores["sft"]
    assert ElementTree.parse(made.folder / "scores.svg").getroot().tag.endswith("svg")
    made.check()
    page = made.page.read_text()
    assert all(name in page for name in NAMES) and page.count("<h3>sft of sft.lr=") == 2, "a training that two trials share is shown once"
    made.page.unlink()
    rebuild_page(made.folder)
    assert made.page.read_text() == page


def test_rows_are_told_for_the_whole_sweep_only_where_all_trials_have_the_same(swept):
    _, made, _ = swept
    reports = dict(made.reports)
    assert made.report.facts.rows_used == reports[NAMES[0]].facts.rows_used != {}
    less = replace(reports[NAMES[1]].facts, rows_used={"toy_tone": {"test": 1}})
    reports[NAMES[1]] = replace(reports[NAMES[1]], facts=less)
    report = sweep_module.combined(made.plan, reports, made.outcomes)
    assert report.facts.rows_used == {} and "Trials differ in the rows that they used" in report.notes[-1]
    titles = [sheet.title for sheet in sheets(report)]
    assert "Scores per dataset" in titles and not {"Rows used", "Rows dropped", "Size and score"} & set(titles)


def planned(tmp_path: Path, **evaluated: tuple[str, ...]) -> list[Step]:
    """Steps of one trial: arm -> fingerprints of what its scores rest on."""
    kinds = ("evaluate", "judge")
    arms = {arm.replace("_", "+"): made for arm, made in evaluated.items()}
    return [
        Step(KINDS[kind], f"{kind} {arm}", one, tmp_path, "", arm=Arm.parse(arm))
        for arm, made in arms.items()
        for kind, one in zip(kinds, made, strict=False)
    ]


@pytest.mark.parametrize(
    ("trials", "named"),
    [
        ({"lr=1": {"sft": ("a",)}, "lr=2": {"sft": ("b",)}}, ["lr=1", "lr=2"]),
        (
            {f"lr={lr} width={width}": {"base": ("a",), "sft": (lr,), "sft_bam": (lr + width,)} for lr in "12" for width in "34"},
            [
                "base",
                "lr=1: sft",
                "lr=1 width=3: sft+bam",
                "lr=1 width=4: sft+bam",
                "lr=2: sft",
                "lr=2 width=3: sft+bam",
                "lr=2 width=4: sft+bam",
            ],
        ),
        (
            {"one": {"sft": ("a",), "x": ("1",)}, "two": {"sft": ("a",), "x": ("2",)}, "three": {"sft": ("b",), "x": ("3",)}},
            ["one and two: sft", "one: x", "two: x", "three: sft", "three: x"],
        ),
        (
            {f"seed=0 way={way}": {"sft": ((way in "ab" and "left") or "right",), "x": (way,)} for way in "abcd"},
            [
                "seed=0 way=a and seed=0 way=b: sft",
                *(f"seed=0 way={way}: x" for way in "ab"),
                "seed=0 way=c and seed=0 way=d: sft",
                *(f"seed=0 way={way}: x" for way in "cd"),
            ],
        ),
        (
            {"p=1": {"sft": ("a", "one judge"), "x": ("1",)}, "p=2": {"sft": ("a", "another"), "x": ("2",)}},
            ["p=1: sft", "p=1: x", "p=2: sft", "p=2: x"],
        ),
    ],
    ids=["one arm each", "shared by all, by some, by none", "named trials", "what is in common says too little", "other verdicts"],
)
def test_what_trials_share_is_one_arm_of_the_sweep(tmp_path: Path, trials: dict[str, dict[str, tuple[str, ...]]], named: list[str]):
    steps = {trial: planned(tmp_path, **arms) for trial, arms in trials.items()}
    reports = {trial: SimpleNamespace(scores=dict.fromkeys(arm.replace("_", "+") for arm in arms)) for trial, arms in trials.items()}
    found = labels(reports, steps)  # type: ignore[arg-type]
    assert list(dict.fromkeys(label for arms in found.values() for label in arms.values())) == named


def test_a_finished_sweep_does_nothing_again(swept):
    storage, made, _ = swept
    before, said = events(storage), []
    again = run_sweep(plan_sweep(small_sweep(storage)), said.append)
    assert events(storage) == before
    assert said == [f"{name}: done before" for name in NAMES]
    assert again.report is not None and made.report is not None and again.report.scores == made.report.scores


def test_mlflow_shows_a_parent_and_its_trials(swept):
    _, made, _ = swept
    assert [trial.name for trial in made.plan.trials] == NAMES
    assert_recorded(made.mlflow, made.plan)


def test_a_larger_sweep_takes_over_what_is_done(swept):
    storage, _, _ = swept
    before, said = events(storage), []
    axes = {"sft.lr": [1e-3, 2e-3], "evaluate.max_new_tokens": [4, 6]}
    made = run_sweep(plan_sweep(small_sweep(storage, sweep={"axes": axes})), said.append)
    new = events(storage) - before
    assert sorted(event for event, _ in new.elements() if event == "done") == ["done", "done"]  # two evaluations
    assert len(made.reports) == 4


def test_a_failed_trial_ends_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = EvaluateSteps().make

    def break_down(context) -> dict:
        if context.spec.evaluate.max_new_tokens == 5:
            raise DataError("row 7", "cannot be read")
        return make(context)

    spec = small_sweep(tmp_path, sweep={"axes": {"evaluate.max_new_tokens": [4, 5]}})
    replace_make(monkeypatch, "evaluate", break_down)
    made = run_sweep(plan_sweep(spec), lambda line: None)
    assert [outcome.status for outcome in made.outcomes.values()] == ["done", "failed"]
    assert made.report is not None and list(made.report.scores) == ["evaluate.max_new_tokens=4"]
    assert any("no result; failed row 7: cannot be read" in line for line in made.report.notes)
    with pytest.raises(TrialsFailed, match="1 of 2 trials failed") as failed:
        made.check()
    assert failed.value.exit_code == 4

    replace_make(monkeypatch, "evaluate", make)
    run_sweep(plan_sweep(spec), lambda line: None).check()


def test_a_step_that_all_trials_need_and_that_fails_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def break_down(context) -> dict:
        raise DataError("atlas", "is broken")

    replace_make(monkeypatch, "atlas", break_down)
    with pytest.raises(HbaError, match="atlas: is broken"):
        run_sweep(plan_sweep(small_sweep(tmp_path)), lambda line: None)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (record,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert record.info.status == "FAILED"


def test_a_plan_says_what_the_trials_are_who_shares_what_and_what_it_costs(tmp_path: Path):
    swept = plan_sweep(small_sweep(tmp_path))
    said = dict(estimate(swept))
    assert said["trials"] == "4 = sft.lr (2) x evaluate.max_new_tokens (2); done: 0"
    assert said["steps"] == "8 in place of 16, since trials share them; to do: 8"
    assert said["needs"].endswith("trials at a time: 1, as compute.workers is 0")
    assert said["cost"] == "not known: evaluate, sft, of which none is done here with this model"
    assert said["rows"].endswith("by what the toy generator makes")
    assert [(step.kind.name, swept.users_of(step)) for step in swept.shared()] == [
        ("atlas", "all"),
        ("backbone", "all"),
        ("sft", "2 with sft.lr=0.001"),
        ("sft", "2 with sft.lr=0.002"),
    ]
    done, other = swept.distinct()[2], setting_of(small_sweep(tmp_path, model__backbone="Qwen/Qwen2.5-Omni-7B"))
    for setting, says in ((other, "not known: evaluate, sft"), (setting_of(swept.spec), "about 60 min one step after the other")):
        done.folder.mkdir(parents=True, exist_ok=True)
        work = done.kind.work(done, expected_rows(swept.spec))
        assert work is not None
        finish(done.folder, {"optimizer_steps": 1, "epochs": 1, "seconds": 3600, WORK: {"setting": setting, "operations": work.operations}})
        said = dict(estimate(plan_sweep(small_sweep(tmp_path))))
        assert said["cost"].startswith(says) and "to do: 7" in said["steps"]


def test_an_axis_that_changes_nothing_is_refused(tmp_path: Path):
    axes = {"grpo.lr": [1e-6, 2e-6]}
    with pytest.raises(SpecError, match=r"come to the same steps\n  with stages \['sft'\]"):
        plan_sweep(small_sweep(tmp_path, sweep={"axes": axes}))


def test_a_sweep_that_no_ray_of_this_machine_could_hold_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(EnvironmentMissing, match="needs 64 CPUs"):
        run_sweep(
            plan_sweep(small_sweep(tmp_path, compute__workers=32, compute__cpus=4, compute__micro_batch=1, sft__batch=32)),
            lambda line: None,
        )
    assert not list(tmp_path.glob("small-*")) and not (tmp_path / "mlflow.db").exists()


def test_a_stopped_trial_gets_another_chance_under_other_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def started(asha: dict[str, object] | None) -> list[str]:
        """The trials that a driver starts; the first two are stopped by its rules."""
        axes = {"sft.lr": [1e-3, 2e-3], "evaluate.max_new_tokens": [4, 5]}
        sweep = plan_sweep(small_sweep(tmp_path, sweep={"axes": axes, "asha": asha}, compute__workers=1))
        todo: list[str] = []

        def run_assignments(assignments, note):
            todo.extend(one.name for one in assignments)
            made = [Outcome(one, "stopped" if asha and one.name in NAMES[:2] else "failed") for one in assignments]
            for outcome in made:
                note(outcome.status, outcome.assignment, outcome)
            return made

        budget = Budget(None, Meter([], sweep.spec.compute))
        driver = sweep_module._Driver(sweep, said.append, Forwarder(MagicMock(), said.append), run_assignments, budget)
        monkeypatch.setattr(driver, "_share", lambda: None)
        driver.run()
        return todo

    said: list[str] = []
    assert started({"grace": 2}) == NAMES
    assert started({"grace": 2}) == NAMES[2:]
    assert started({"grace": 3}) == NAMES == started(None)


def test_early_stopping_needs_workers(tmp_path: Path):
    with pytest.raises(SpecError, match=r"compute\.workers is 0"):
        run_sweep(plan_sweep(small_sweep(tmp_path, sweep={"seeds": [0, 1], "asha": {}})), lambda line: None)


@pytest.mark.parametrize("uri", [None, "sqlite:////tmp/x.db"])
def test_an_sqlite_store_is_refused_for_a_cluster(uri: str | None):
    check_store(TrackingSpec(mlflow=uri), Session("here:1", 8, 0, nodes=1))
    check_store(TrackingSpec(mlflow="http://here:5000"), Session("here:1", 8, 0, nodes=2))
    with pytest.raises(EnvironmentMissing, match=r"an sqlite store is for one machine.*\n  start `mlflow server`"):
        check_store(TrackingSpec(mlflow=uri), Session("here:1", 8, 0, nodes=2))


def test_a_trial_whose_result_was_deleted_is_done_again(swept):
    storage, made, _ = swept
    planned = made.plan.trials[0]
    assert planned.report() is not None
    mark = planned.steps[-1].folder / "done.json"
    text = mark.read_text()
    mark.unlink()
    assert planned.report() is None
    mark.write_text(text)
    (planned.folder / "report.json").write_text(json.dumps({"of": "another version"}))
    assert planned.report() is None
    run_sweep(plan_sweep(small_sweep(storage)), lambda line: None).check()
    assert planned.report() is not None


def test_every_trial_is_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planned: list[str] = []
    adds_atlas = AtlasSteps.plan
    monkeypatch.setattr(AtlasSteps, "plan", lambda self, draft: (planned.append(draft.spec.name), adds_atlas(self, draft))[1])
    sweep = small_sweep(tmp_path, sweep={"axes": {"sft.lr": [1e-3, 2e-3]}})
    run_sweep(plan_sweep(sweep), lambda line: None).check()
    assert len(planned) == 2

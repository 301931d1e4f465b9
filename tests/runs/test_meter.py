"""A run says what it costs while it goes on, and a sweep stops starting trials when its budget is spent."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hba_ray.errors import EnvironmentMissing, SpecError, TrialsFailed
from hba_ray.report.tables import document, read_json
from hba_ray.runs.meter import Meter, budget_of, with_budget
from hba_ray.runs.sweep import run_sweep
from hba_ray.runs.sweep_plan import plan_sweep
from hba_ray.specs import ComputeSpec
from hba_ray.store.folders import ledger, note
from hba_ray.store.spending import Rate, Spent, last_said, on_record
from tests.helpers.experiments import small_experiment, small_sweep

DEAR = {"compute__grows_to": [{"cpus": 1, "most": 1, "dollars_per_hour": 3_600_000}]}
"""A thousand dollars a second for each CPU."""
AXES = {"sft.lr": [1e-3, 2e-3, 3e-3]}


def test_a_budget_that_is_spent_starts_no_trial_and_a_larger_one_goes_on(tmp_path: Path):
    said: list[str] = []
    spec = small_sweep(tmp_path, sweep={"axes": AXES}, **DEAR)
    made = run_sweep(plan_sweep(with_budget(spec, "1usd")), said.append)
    assert [outcome.status for outcome in made.outcomes.values()] == ["done", "unstarted", "unstarted"]
    assert not any("sft.lr=0.002: started" in one for one in said)
    with pytest.raises(TrialsFailed, match=r"2 of 3 trials were not started.*sft\.lr=0\.002, sft\.lr=0\.003\n.*larger budget") as left:
        made.check()
    assert left.value.exit_code == 4
    (event,) = [line for line in ledger(made.folder) if line["event"] == "unstarted"]
    assert (event["budget"], event["left"]) == ("1usd", ["sft.lr=0.002", "sft.lr=0.003"])
    report = read_json((made.folder / "report.json").read_text())
    assert "the budget of 1usd is spent" in report.notes[-1] and report.notes[-1].endswith(": sft.lr=0.002, sft.lr=0.003.")

    whole = report.facts.spent
    assert whole is not None and whole.dollars and whole.dollars > 1 and whole.gpu_hours == 0
    steps = [line for run in tmp_path.glob("small-*") for line in ledger(run) if "seconds" in line and line["step"].split()[0] in COSTLY]
    assert whole.dollars == pytest.approx(1000 * sum(line["seconds"] for line in steps)) and len(steps) == 2
    assert ("Cost", whole.in_words()) in document(report).facts and whole.in_words() in made.page.read_text()
    assert last_said("\n".join(said)) == whole.in_words()
    client = MlflowClient(made.mlflow)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert {run.info.run_name: run.data.metrics["cost/dollars"] for run in runs} == {"small": whole.dollars, "sft.lr=0.001": whole.dollars}
    (sweep,) = [run for run in runs if run.info.run_name == "small"]
    assert (sweep.data.metrics["trials/done"], sweep.data.metrics["trials/unstarted"]) == (1, 2)

    again = run_sweep(plan_sweep(with_budget(spec, "1usd")), said.append)
    assert [outcome.status for outcome in again.outcomes.values()] == ["done", "unstarted", "unstarted"], "what was spent stays spent"
    on = run_sweep(plan_sweep(with_budget(spec, f"{whole.dollars + 1}usd")), said.append)
    assert [outcome.status for outcome in on.outcomes.values()] == ["done", "done", "unstarted"] and on.folder == made.folder
    assert on.report is not None and on.report.facts.spent is not None and (on.report.facts.spent.dollars or 0) > whole.dollars


COSTLY = ("sft", "evaluate")


def test_a_budget_that_could_not_be_kept_is_refused(tmp_path: Path):
    def refused(text: str, **changes: object) -> str:
        spec = small_sweep(tmp_path, sweep={"axes": AXES, "budget": text}, **changes)
        with pytest.raises((SpecError, EnvironmentMissing)) as error:
            budget_of(spec, Meter([], spec.compute))
        return f"{error.value.exit_code} {error.value}"

    assert refused("20gpuh").startswith("2 sweep.budget: is 20gpuh, and trials hold no GPU")
    gpus = {"compute__workers": 2, "compute__gpus_per_worker": 1, "compute__micro_batch": 2}
    assert refused("20usd", **gpus).startswith("5 sweep.budget: is 20usd, and the price of what trials hold is not known\n  state dollars")
    for text in ("20", "20h", "-1usd", "1e3usd", "usd", ""):
        with pytest.raises(SpecError, match=r"--budget: .* is no amount\n  give GPU-hours as 20gpuh"):
            with_budget(small_sweep(tmp_path), text)
    with pytest.raises(SpecError, match="stops new trials of a sweep, and the spec has none"):
        with_budget(small_experiment(tmp_path), "20gpuh")


def test_a_budget_counts_gpu_hours_of_trials_that_run(tmp_path: Path):
    spec = with_budget(small_sweep(tmp_path, compute__workers=2, compute__gpus_per_worker=1, compute__micro_batch=2), "0.0001gpuh")
    assert spec.sweep is not None and spec.sweep.budget == "0.0001gpuh" and spec.sweep.axes == small_sweep(tmp_path).sweep.axes  # type: ignore[union-attr]
    budget = budget_of(spec, Meter([tmp_path / "one", tmp_path / "two"], spec.compute))
    (tmp_path / "two").mkdir()
    assert not budget.is_spent
    budget.meter.begin(tmp_path / "two")
    with on_record(tmp_path / "two", Rate(2.0), step="sft", fingerprint="a"):
        deadline = time.monotonic() + 30
        while not budget.is_spent:
            assert time.monotonic() < deadline, "what runs does not count"
            time.sleep(0.1)


def test_costs_are_told_while_they_grow_and_once_at_the_end(tmp_path: Path):
    said: list[str] = []
    points: list[tuple[float, int]] = []
    meter = Meter([tmp_path], ComputeSpec(workers=2, gpus_per_worker=1))
    meter.begin(tmp_path)

    def log(values, step) -> None:
        points.extend((value, step) for value in values.values())

    with meter.telling(said.append, log, every_seconds=0.1):
        note(tmp_path, event="started", step="sft", fingerprint="a", gpus=7200)
        deadline = time.monotonic() + 30
        while len(said) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        note(tmp_path, event="done", step="sft", fingerprint="a", seconds=1800.0)
    hours = [float(line.removeprefix("spent so far: ").removesuffix(" GPU-hours")) for line in said]
    assert hours == sorted(hours) and len(set(hours)) > 1 and hours[-1] == 3600
    assert points[-1] == (3600.0, 3_600_000) and meter.spent() == Spent(3600.0, None)
    count = len(said)
    with meter.telling(said.append, log):
        pass
    assert len(said) == count, "nothing new is nothing to say"

"""What has to be on record of a finished sweep: in the ledgers of its trials, and in MLflow."""

from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from hba_ray.runs.sweep_plan import SweepPlan
from hba_ray.store.folders import ledger


def events(storage: Path) -> Counter[tuple[str, str]]:
    """(event, step's fingerprint) in the ledgers of all runs."""
    return Counter((line["event"], line["fingerprint"]) for run in storage.glob("small-*") for line in ledger(run) if "step" in line)


def assert_recorded(store: str, plan: SweepPlan) -> None:
    """MLflow shows a parent with its table and a child for each trial, with what was swept, each metric once, and intervals.

    Args:
        store: tracking URI; the finished sweep is the only thing in it.
    """
    client = MlflowClient(store)
    (experiment,) = [known for known in client.search_experiments() if known.name == "hba_ray"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["hba.role"] == "sweep"]
    children = {run.info.run_name: run for run in runs if run.data.tags["hba.role"] == "trial"}
    assert sorted(children) == sorted(trial.name for trial in plan.trials) and len(runs) == 1 + len(plan.trials)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for trial in plan.trials:
        run = children[trial.name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params == {key: str(value) for key, value in trial.sets.items()} and "sft.lr" in run.data.params
        assert (run.data.tags["hba.seed"], run.data.tags["hba.stage"]) == ("0", "sft")
        assert run.data.tags["hba.fingerprint"] == trial.fingerprint
        value, low, high = (run.data.metrics[f"score/sft/toy_tone{end}"] for end in ("", "_ci_lo", "_ci_hi"))
        assert low <= value <= high and "score/sft/task/EMO" in run.data.metrics
        assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["atlas"]
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            assert len(steps) == len(set(steps)), metric
        assert len(client.get_metric_history(run.info.run_id, "sft/loss")) > 1  # also where another trial did the training
    assert parent.data.params["sft.epochs"] == "1" and "sft.lr" not in parent.data.params
    assert not any(key.startswith("sweep") for key in parent.data.params)
    assert parent.data.metrics["trials/done"] == parent.data.metrics["trials/total"] == len(plan.trials)
    shown = {"table.md", "table.csv", "scores.svg", "report.html", "report.json", "resolved.yaml"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= shown
    assert "| toy_tone |" in parent.data.tags["mlflow.note.content"]
    table = Path(client.download_artifacts(parent.info.run_id, "table.csv")).read_text().splitlines()
    columns = ["trial", *plan.trials[0].sets, "arm", "dataset", "metric", "score", "low", "high"]
    assert table[0].startswith(",".join(columns)) and len(table) == 1 + 4 * len(plan.trials)  # of four datasets

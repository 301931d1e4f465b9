"""What a run has to say outlives its writer and a server that is away, and reaches MLflow once."""

import json
from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing, TrainingError
from hba_ray.specs.sections.compute import TrackingSpec
from hba_ray.store.folders import read_lines
from hba_ray.store.journal import Forwarder, JournalTracker, Record, csv_text, forwarding
from hba_ray.store.mlflow import FINGERPRINT, OWNER, PARENT, MlflowTracker

TAGS = {FINGERPRINT: "0123456789ab"}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracker:
    return MlflowTracker(TrackingSpec(), tmp_path_factory.mktemp("runs"))


def history(mlflow: MlflowTracker, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow._client.get_metric_history(run_id, metric)]


def test_a_journal_started_again_goes_on_and_repeats_no_step(tmp_path: Path):
    for values in ([1.0, 2.0], [9.0, 9.0, 3.0]):
        tracker = JournalTracker(tmp_path / "journal")
        tracker.start("run", {}, TAGS)
        for step, value in enumerate(values):
            tracker.log_metrics({"loss": value}, step)
    lines = read_lines(tmp_path / "journal")
    assert [(line["step"], line["metrics"]["loss"]) for line in lines if line["do"] == "metrics"] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert [line["do"] for line in lines].count("journal") == 1


def test_a_line_whose_writer_died_within_it_is_left_out_and_spoils_no_other(tmp_path: Path):
    file = tmp_path / "journal"
    JournalTracker(file).log_metrics({"loss": 1.0}, 0)
    with file.open("a") as torn:
        torn.write('{"do": "metrics", "metr')
    JournalTracker(file).log_metrics({"loss": 2.0}, 1)
    assert [line["step"] for line in read_lines(file) if line["do"] == "metrics"] == [0, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_no_number_is_refused_by_name(tmp_path: Path, value: float):
    journal = JournalTracker(tmp_path / "journal")
    with pytest.raises(TrainingError, match=r"metric 'train/loss': is -?(nan|inf) at step 7"):
        journal.log_metrics({"good": 1.0, "train/loss": value}, step=7)
    assert all(line["do"] != "metrics" for line in read_lines(journal.file))


def test_a_table_takes_quotes_commas_and_missing_cells():
    assert csv_text([{"a": 'x,"y"'}, {"b": None}]) == 'a,b\n"x,""y""",\n,\n'


def test_a_journal_reaches_mlflow_once_however_often_it_is_sent(mlflow: MlflowTracker, tmp_path: Path):
    (tmp_path / "spec.yaml").write_text("name: whole")
    tracker = JournalTracker(tmp_path / "journal")
    tracker.start("whole", {"lr": 0.1}, TAGS)
    tracker.log_metrics({"loss": 2.0}, 1)
    tracker.log_metrics({"loss": 1.0}, 2)
    tracker.log_artifact(tmp_path / "spec.yaml")
    tracker.log_input("atlas", "f" * 12, "here")
    tracker.log_table([{"a": 1}], "table.csv")
    tracker.describe("# A table")
    tracker.end()
    ids = set()
    for _ in range(2):
        forwarder = Forwarder(mlflow, lambda line: None)
        forwarder.add(tmp_path / "journal")
        forwarder.flush()
        forwarder.flush()
        ids.add(forwarder.run_id(tmp_path / "journal"))
    (run_id,) = ids
    run = mlflow._client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == ("whole", "FINISHED", {"lr": "0.1"})
    assert history(mlflow, run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert run.data.tags["mlflow.note.content"] == "# A table"
    assert {file.path for file in mlflow._client.list_artifacts(run_id)} >= {"spec.yaml", "table.csv"}
    assert len(run.inputs.dataset_inputs) == 1


def test_the_driver_says_what_a_record_is_called_and_what_became_of_it(mlflow: MlflowTracker, tmp_path: Path):
    JournalTracker(tmp_path / "journal").start("its own name", {"all": 1, "of": 2}, TAGS)
    forwarder = Forwarder(mlflow, lambda line: None)
    forwarder.add(tmp_path / "journal", Record("lr=1", {"lr": 1}, {**TAGS, PARENT: "p" * 32}))
    forwarder.add(tmp_path / "missing")
    forwarder.end(tmp_path / "journal", "KILLED")
    forwarder.flush()
    run = mlflow._client.get_run(forwarder.run_id(tmp_path / "journal"))
    assert (run.info.run_name, run.data.params, run.info.status) == ("lr=1", {"lr": "1"}, "KILLED")


def test_a_server_that_is_away_gets_everything_when_it_is_back(mlflow: MlflowTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    send = MlflowTracker._send

    def away(self: MlflowTracker, params: list, metrics: list) -> None:
        if any(metric.step == 2 for metric in metrics):
            send(self, params, metrics[:1])  # heard, and the answer lost
        raise EnvironmentMissing("tracking.mlflow", "MLflow does not do its work")

    tracker = JournalTracker(tmp_path / "journal")
    tracker.start("away", {}, TAGS)
    tracker.log_metrics({"loss": 1.0}, 1)
    forwarder = Forwarder(mlflow, said.append)
    forwarder.add(tmp_path / "journal")
    assert forwarder._try()
    monkeypatch.setattr(MlflowTracker, "_send", away)
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.log_metrics({"loss": 3.0}, 3)
    tracker.end()
    assert not forwarder._try() and not forwarder._try()
    assert said == ["MLflow does not do its work; the record goes on in files and is sent later"]
    monkeypatch.setattr(MlflowTracker, "_send", send)
    assert forwarder._try()
    assert said[1:] == ["MLflow answers again; what it has missed is sent"]
    run_id = forwarder.run_id(tmp_path / "journal")
    assert history(mlflow, run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert mlflow._client.get_run(run_id).info.status == "FINISHED"


def test_what_was_never_sent_waits_in_a_file_that_is_named(mlflow: MlflowTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []

    def away(*words: object, **more: object) -> None:
        raise EnvironmentMissing("tracking.mlflow", "MLflow does not do its work")

    with monkeypatch.context() as patched, forwarding(mlflow, said.append) as forwarder:
        patched.setattr(MlflowTracker, "start", away)
        forwarder.add(tmp_path / "journal")
        JournalTracker(tmp_path / "journal").start("late", {}, TAGS)
        patched.setattr(MlflowTracker, "start", away)
        forwarder.last_try()
    assert any(str(tmp_path / "journal") in line and "is sent when the same command runs again" in line for line in said)


def test_records_of_dead_drivers_are_closed_when_another_starts(mlflow: MlflowTracker, tmp_path: Path):
    JournalTracker(tmp_path / "dead").start("of another name", {}, TAGS)
    first = Forwarder(mlflow, lambda line: None)
    first.add(tmp_path / "dead")
    first.flush()
    dead = first.run_id(tmp_path / "dead")
    owner = json.loads(mlflow._client.get_run(dead).data.tags[OWNER]) | {"started": 1}
    mlflow._client.set_tag(dead, OWNER, json.dumps(owner, sort_keys=True))
    mlflow.another().start("new", {}, TAGS)
    assert mlflow._client.get_run(dead).info.status == "KILLED"


def test_a_journal_on_another_machine_is_taken_over_by_whoever_holds_its_folder(mlflow: MlflowTracker, tmp_path: Path):
    JournalTracker(tmp_path / "journal").start("moved", {}, TAGS)
    runs = []
    for _ in range(2):
        forwarder = Forwarder(mlflow, lambda line: None)
        forwarder.add(tmp_path / "journal")
        forwarder.flush()
        runs.append(forwarder.run_id(tmp_path / "journal"))
        owner = json.loads(mlflow._client.get_run(runs[-1]).data.tags[OWNER]) | {"host": "elsewhere"}
        mlflow._client.set_tag(runs[-1], OWNER, json.dumps(owner, sort_keys=True))
    assert runs[0] == runs[1]

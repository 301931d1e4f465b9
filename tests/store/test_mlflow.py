"""The MLflow record against a real sqlite store: continued, never doubled, closed when its driver died."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.specs.sections.compute import TrackingSpec
from hba_ray.store import mlflow as module
from hba_ray.store.mlflow import CHANGED, FINGERPRINT, OWNER, PARENT, MlflowTracker, Point, standard_tags
from hba_ray.store.provenance import Process
from tests.helpers.servers import free_port

TAGS = {FINGERPRINT: "0123456789ab"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def tracker(storage: Path) -> MlflowTracker:
    return MlflowTracker(TrackingSpec(), storage)


def run_of(tracker: MlflowTracker):
    return tracker._client.get_run(tracker.run_id)


def history(tracker: MlflowTracker, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracker._client.get_metric_history(tracker.run_id, metric)]


def log(tracker: MlflowTracker, metrics: dict[str, float], step: int) -> None:
    tracker.log_points([Point(name, value, step, time.time_ns() // 10**6) for name, value in metrics.items()])


def abandon(tracker: MlflowTracker, **changes: object) -> str:
    """Leaves the run open, as if its driver were another process."""
    tracker._client.set_tag(tracker.run_id, OWNER, replace(Process.current(), **changes).to_text())
    return tracker.run_id


def test_a_run_holds_what_was_logged_and_leaves_the_working_folder_alone(
    tracker: MlflowTracker, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("name: whole")
    tracker.start("whole", {"sft.lr": 1e-4, "long": "x" * 7000}, standard_tags("0123456789ab", seed=3))
    log(tracker, {"train/loss": 2.5, "train/lr": 1e-4}, 1)
    tracker.log_artifact(tmp_path / "spec.yaml")
    tracker.log_text("task,n\nEMO,3\n", "tables/tasks.csv")
    tracker.log_input("toy", "f" * 64, "atlas/toy")
    tracker.end()

    run = run_of(tracker)
    assert (run.info.run_name, run.info.status) == ("whole", "FINISHED")
    assert run.data.params["sft.lr"] == "0.0001"
    assert len(run.data.params["long"]) == 6000
    assert run.data.metrics == {"train/loss": 2.5, "train/lr": 1e-4}
    assert run.data.tags["hba.seed"] == "3" and run.data.tags["mlflow.user"]
    assert run.inputs.dataset_inputs[0].dataset.digest == "f" * 36
    folder = storage / "mlartifacts" / run.info.run_id / "artifacts"
    assert (folder / "spec.yaml").read_text() == "name: whole"
    assert (folder / "tables" / "tasks.csv").read_text() == "task,n\nEMO,3\n"
    assert len(json.loads((folder / "params.json").read_text())["long"]) == 7000
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


def test_parameters_that_mlflow_keeps_whole_are_in_no_file_of_their_own(storage: Path) -> None:
    tracker = MlflowTracker(TrackingSpec(), storage)
    tracker.start("short", {"sft.lr": 1e-4}, standard_tags("0" * 12, 0))
    tracker.end()
    artifacts = storage / "mlartifacts" / tracker.run_id / "artifacts"
    assert not artifacts.exists()
    again = MlflowTracker(TrackingSpec(), storage)
    again.start("short", {"sft.lr": 2e-4}, standard_tags("0" * 12, 0))
    again.end()
    assert again.run_id == tracker.run_id
    assert json.loads((artifacts / "params.json").read_text()) == {"sft.lr": 2e-4} and run_of(again).data.params == {"sft.lr": "0.0001"}


def test_the_same_spec_continues_its_run_and_doubles_no_step(storage: Path) -> None:
    first = MlflowTracker(TrackingSpec(), storage)
    first.start("resumed", {"compute.workers": 1}, TAGS)
    for step in (1, 2, 3):
        log(first, {"train/loss": 1.0 / step}, step)
    log(first, {"train/loss": 9.0}, 3)  # workers were replaced and repeat a step
    first.end("FAILED")

    second = MlflowTracker(TrackingSpec(), storage)
    second.start("resumed", {"compute.workers": 2, "new": "x"}, TAGS)
    assert second.run_id == first.run_id
    assert run_of(second).info.status == "RUNNING"
    for step in (3, 4):
        log(second, {"train/loss": 1.0 / step, "validation/loss": 2.0}, step)
    second.end()

    assert history(second, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert history(second, "validation/loss") == [(3, 2.0), (4, 2.0)]
    run = run_of(second)
    assert run.data.params == {"compute.workers": "1", "new": "x"}
    assert json.loads(run.data.tags[CHANGED]) == {"compute.workers": "2"}


def test_another_fingerprint_is_another_run(storage: Path, tracker: MlflowTracker) -> None:
    tracker.start("changed", {}, TAGS)
    before = tracker.run_id
    tracker.end()
    tracker.start("changed", {}, {FINGERPRINT: "ba9876543210"})
    assert tracker.run_id != before


def test_the_run_of_a_dead_driver_is_closed_or_continued(tracker: MlflowTracker) -> None:
    tracker.start("died", {}, {FINGERPRINT: "ba9876543210"})
    other_spec = abandon(tracker, boot="before the machine was started again")
    tracker.start("died", {}, TAGS)
    same_spec = abandon(tracker, started=1)

    tracker.start("died", {}, TAGS)
    assert tracker.run_id == same_spec
    assert tracker._client.get_run(other_spec).info.status == "KILLED"
    assert run_of(tracker).data.tags[OWNER] == Process.current().to_text()


def test_a_living_driver_keeps_its_run(tracker: MlflowTracker) -> None:
    tracker.start("alive", {}, TAGS)
    parent = os.getppid()
    started = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19])
    abandon(tracker, pid=parent, started=started)
    with pytest.raises(HbaError, match=f"process {parent} is running 'alive' right now"):
        tracker.start("alive", {}, TAGS)


def test_a_run_on_another_machine_is_left_alone(tracker: MlflowTracker) -> None:
    tracker.start("elsewhere", {}, TAGS)
    theirs = abandon(tracker, host="elsewhere")
    tracker.start("elsewhere", {}, TAGS)
    assert tracker.run_id != theirs
    assert tracker._client.get_run(theirs).info.status == "RUNNING"


def test_records_below_a_sweeps_are_looked_up_once_and_again_after_a_lost_answer(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = [{FINGERPRINT: f"{trial:012}", PARENT: "a" * 32} for trial in range(3)]
    first, asked = MlflowTracker(TrackingSpec(), storage), []
    begun = [first.another() for _ in tags]
    for trial, tracker in enumerate(begun):
        tracker.start(f"trial {trial}", {"lr": trial}, tags[trial], [Point("loss", 1.0 + trial, 1, 1000)])
        assert (history(tracker, "loss"), run_of(tracker).data.params) == ([(1, 1.0 + trial)], {"lr": str(trial)})
    second = MlflowTracker(TrackingSpec(), storage)
    search, send = second._client.search_runs, MlflowTracker._send_batch
    monkeypatch.setattr(second._client, "search_runs", lambda *given, **more: (asked.append(given[1]), search(*given, **more))[1])
    again = [second.another() for _ in tags]
    for trial, tracker in enumerate(again[:2]):
        tracker.start(f"trial {trial}", {"lr": trial}, tags[trial], [Point("loss", 9.0, 1, 2000), Point("loss", 9.0, 2, 2000)])
        assert (tracker.run_id, history(tracker, "loss")) == (begun[trial].run_id, [(1, 1.0 + trial), (2, 9.0)])
    assert len(asked) == 1

    def lost(self: MlflowTracker, params: list, metrics: list) -> None:
        send(self, params, metrics)
        raise OSError("no answer")

    new = second.another()
    with monkeypatch.context() as away, pytest.raises(EnvironmentMissing, match="no answer"):
        away.setattr(MlflowTracker, "_send_batch", lost)
        new.start("trial 3", {"lr": 3}, tags[0], [Point("loss", 1.0, 1, 1000)])
    retried = second.another()
    retried.start("trial 3", {"lr": 3}, tags[0], [Point("loss", 1.0, 1, 1000)])
    assert retried.run_id == new.run_id and history(retried, "loss") == [(1, 1.0)] and len(asked) == 2


def test_a_server_that_is_not_there_is_reported_in_seconds(tmp_path: Path) -> None:
    port = free_port()
    before = dict(os.environ)
    started = time.monotonic()
    with pytest.raises(EnvironmentMissing, match=f"MLflow at http://127.0.0.1:{port} does not do its work"):
        MlflowTracker(TrackingSpec(mlflow=f"http://127.0.0.1:{port}"), tmp_path)
    assert time.monotonic() - started < 30
    assert {name for name in os.environ if name.startswith("MLFLOW_HTTP")} == {name for name in before if name.startswith("MLFLOW_HTTP")}


def test_a_storage_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentMissing, match="see that its folder can be written"):
        MlflowTracker(TrackingSpec(), tmp_path / "file" / "runs")


@pytest.mark.parametrize("left", [b"SQLite format 3\0" + bytes(100), b"no store", b"\xff" * 5000])
def test_a_damaged_store_is_named_and_may_be_moved_away(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(left)
    with pytest.raises(EnvironmentMissing, match=r"mlflow\.db does not do its work: .*\n.*moved away, it is begun anew"):
        MlflowTracker(TrackingSpec(), tmp_path)


def test_a_store_whose_experiment_could_not_be_made_is_no_hindrance_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def full(tracker: MlflowTracker, name: str) -> str:
        tracker._client.search_experiments()  # the tables are there, the experiment is not
        raise MlflowException("database or disk is full")

    with monkeypatch.context() as patched, pytest.raises(EnvironmentMissing, match="make room"):
        patched.setattr(MlflowTracker, "_open", full)
        MlflowTracker(TrackingSpec(), tmp_path)
    MlflowTracker(TrackingSpec(), tmp_path).start("begun", {}, TAGS)


def test_a_store_that_someone_opens_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(module, "OPENING_SECONDS", 0.2)
    with FileLock(tmp_path / "mlflow.db.lock"), pytest.raises(EnvironmentMissing, match="no other program holds it"):
        MlflowTracker(TrackingSpec(), tmp_path)


def test_nothing_can_be_logged_before_the_start(tracker: MlflowTracker) -> None:
    with pytest.raises(HbaError, match="the run has not been started"):
        log(tracker, {"loss": 1.0}, 1)

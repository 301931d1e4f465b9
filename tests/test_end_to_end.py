"""`hba run` as people use it: killed, interrupted, started again; refused at once where it could never run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers.waiting import PATIENCE_SECONDS, wait_until

SPEC = {
    "name": "small",
    "atlas": {"source": "toy", "toy": {"rows": 40}, "limit": 3, "media": {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}},
    "model": {"backbone": "tiny", "train": "all", "tiny": {"hidden": 64, "vocabulary": 512}},
    "sft": {"epochs": 8, "batch": 4, "lr": 1e-3, "warmup_steps": 2, "max_gradient_norm": 1.0},
    "evaluate": {"max_new_tokens": 4},
    "compute": {"workers": 1, "cpus": 4, "micro_batch": 4, "checkpoint_every": 1, "object_store_mib": 200, "fork": True},
}


class Experiment:
    """A folder with a spec in it, and the command that runs it."""

    def __init__(self, folder: Path):
        self.folder, self.temporary = folder, folder / "t"
        self.temporary.mkdir()
        (folder / "small.yaml").write_text(yaml.safe_dump(SPEC))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command in a process group of its own, as a terminal starts it; what it says goes into a file."""
        command = [sys.executable, "-m", "hba_ray", "run", "small.yaml", "compute.storage=runs", *words]
        root = str(Path(__file__).parents[1])
        environ = os.environ | {"PYTHONPATH": root, "RAY_TMPDIR": str(self.temporary), "TMPDIR": str(self.temporary)}
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environ,
                stdout=said,
                stderr=said,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # a job in the background ignores it

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def steps(self) -> list[int]:
        """Optimiser steps in the step log, those of validations left out."""
        logs = list(self.folder.glob("runs/steps/sft-*/metrics.jsonl"))
        facts = [json.loads(line) for log in logs for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [fact["step"] for fact in facts if "epochs_done" not in fact]

    def ledger(self) -> list[tuple[str, str | None]]:
        (run,) = self.folder.glob("runs/small-*/ledger.jsonl")
        return [(fact["event"], fact.get("step")) for fact in map(json.loads, run.read_text().splitlines())]

    def processes(self) -> list[psutil.Process]:
        """Processes of this experiment's Ray, which have its temporary folder in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_TMPDIR") == str(self.temporary) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def experiment() -> Iterator[Experiment]:
    """In a folder whose path is short enough for Ray's sockets; no process of it survives the test."""
    folder = Path(tempfile.mkdtemp(prefix="hba"))
    made = Experiment(folder)
    yield made
    for process in made.processes():
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_run_goes_on_after_ctrl_c_after_the_end_of_its_machine_and_after_a_killed_driver(experiment: Experiment):
    driver = experiment.start()
    wait_until(lambda: len(experiment.steps()) >= 3, driver, lambda: experiment.said)
    os.killpg(driver.pid, signal.SIGINT)
    assert_interrupted(driver, experiment)
    interrupted = len(experiment.steps())

    driver = experiment.start()
    wait_until(lambda: len(experiment.steps()) > interrupted + 3, driver, lambda: experiment.said)
    os.kill(driver.pid, signal.SIGTERM)  # as a machine that is taken away does
    assert_interrupted(driver, experiment)
    interrupted = len(experiment.steps())

    driver = experiment.start()
    wait_until(lambda: len(experiment.steps()) > interrupted + 3, driver, lambda: experiment.said)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not experiment.processes())
    killed = len(experiment.steps())
    assert ("done", "sft") not in experiment.ledger()

    driver = experiment.start()
    assert driver.wait(PATIENCE_SECONDS) == 0, experiment.said
    assert experiment.steps() == list(range(1, len(experiment.steps()) + 1))
    assert len(experiment.steps()) > killed
    events = experiment.ledger()
    assert [events.count(("started", kind)) for kind in ("atlas", "backbone", "sft", "evaluate sft")] == [1, 1, 4, 1]
    assert events[-1] == ("finished", None)
    assert "small" in experiment.said and "report  " in experiment.said
    wait_until(lambda: not experiment.processes())
    assert_recorded_once(experiment)


def assert_interrupted(driver: subprocess.Popen[str], experiment: Experiment) -> None:
    """The driver says that it was, and no process of its Ray is left."""
    assert driver.wait(PATIENCE_SECONDS) == 130, experiment.said
    assert "Traceback" not in experiment.said and "interrupted; the same command goes on" in experiment.said
    wait_until(lambda: not experiment.processes())


def assert_recorded_once(experiment: Experiment) -> None:
    """MLflow holds one run, continued three times, with each step once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{experiment.folder / 'runs' / 'mlflow.db'}")
    known = client.get_experiment_by_name("hba_ray")
    assert known is not None
    (record,) = client.search_runs([known.experiment_id])
    assert record.info.status == "FINISHED"
    assert sorted(point.step for point in client.get_metric_history(record.info.run_id, "sft/loss")) == experiment.steps()


def test_what_would_wait_for_ever_is_refused_with_exit_code_5(experiment: Experiment):
    driver = experiment.start("compute.cpus=3", "compute.workers=2", "sft.batch=8")
    assert driver.wait(PATIENCE_SECONDS) == 5, experiment.said
    assert "the experiment needs 4 CPUs" in experiment.said and "Traceback" not in experiment.said
    assert not experiment.processes()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_run_killed_between_two_datasets_leaves_finished_adapters_alone(experiment: Experiment):
    pytest.importorskip("opensmile")
    words = ["stages=[sft,bam]", "atlas.limit=8", "sft.epochs=1", "bam.streams=[acoustic]", "bam.epochs=1000", "bam.batch=8"]

    def adapters(dataset: str) -> dict[str, tuple[int, int]]:
        files = experiment.folder.glob(f"runs/steps/bam-*/adapters/{dataset}/*")
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    driver = experiment.start(*words)
    wait_until(lambda: bool(adapters("toy_tone")), driver, lambda: experiment.said)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not experiment.processes())
    finished = adapters("toy_tone")
    assert not adapters("toy_answers") and ("done", "bam") not in experiment.ledger()

    driver = experiment.start(*words)
    assert driver.wait(PATIENCE_SECONDS) == 0, experiment.said
    assert adapters("toy_tone") == finished and adapters("toy_answers")
    events = experiment.ledger()
    assert [events.count(("started", name)) for name in ("sft", "states train", "bam", "evaluate sft+bam")] == [1, 1, 2, 1]

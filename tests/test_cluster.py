"""A real cluster of two nodes on this machine, with a token: specs as jobs, by Ray's own command and by ours."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hba_ray.report.tables import read_json
from hba_ray.runtime.jobs import packed
from hba_ray.specs import ExperimentSpec
from tests.test_end_to_end import SPEC

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 400


@dataclass(frozen=True)
class Cluster:
    """
    Attributes:
        folder: where everything of it lies; `shared` in it is what all nodes see.
        environ: with the token, for whoever talks to it.
    """

    folder: Path
    address: str
    dashboard: str
    mlflow: str
    environ: dict[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=self.environ, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    def spec(self, **changes: object) -> ExperimentSpec:
        compute = {"workers": 1, "micro_batch": 4, "address": "auto", "storage": str(self.folder / "shared")}
        raw = {**SPEC, "sft": {**SPEC["sft"], "epochs": 1}, "compute": compute, "tracking": {"mlflow": self.mlflow}}
        return ExperimentSpec.model_validate({**raw, **changes})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="hba"))  # short enough for Ray's sockets
    port, dashboard, mlflow = free_port(), free_port(), free_port()
    environ = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_TMPDIR": str(folder),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    environ.pop("RAY_ADDRESS", None)
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(words, env=environ, cwd=folder, stdout=log, stderr=log, start_new_session=True))

    store = ("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"))
    start("mlflow", str(BIN / "mlflow"), "server", "--port", str(mlflow), "--workers", "1", *store)
    common = ("--block", "--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats")
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}")
    start("head", str(BIN / "ray"), "start", *head, *common)
    wait_for(f"http://127.0.0.1:{dashboard}")
    start("worker", str(BIN / "ray"), "start", f"--address=127.0.0.1:{port}", *common)
    wait_for(f"http://127.0.0.1:{mlflow}/health")
    try:
        yield Cluster(folder, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{mlflow}", environ)
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_spec_runs_as_a_job_of_a_cluster_and_its_table_is_there(cluster: Cluster):
    spec = cluster.spec()
    with packed(spec) as upload:
        job = ("python", "-m", "hba_ray", "run", "spec.yaml")
        done = cluster.run(
            str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", str(upload.folder), "--", *job
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (cluster.folder / "shared").glob("small-*/report.json")
    assert {score.dataset for score in read_json(report.read_text()).scores["sft"].datasets} >= {"toy_tone", "toy_nod"}
    assert (report.parent / "table.md").is_file() and json.loads((report.parent / "env.json").read_text())["packages"]["ray"]

    (cluster.folder / "small.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    hba = (sys.executable, "-m", "hba_ray")
    again = cluster.run(*hba, "submit", "small.yaml", "--address", cluster.dashboard, "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "MiB" in again.stderr and "done before" in again.stdout
    name = next(line.split()[1] for line in again.stdout.splitlines() if line.startswith("job"))

    broken = cluster.run(*hba, "submit", "small.yaml", "atlas={source: released, root: /nowhere}", "--address", cluster.dashboard, "--wait")
    assert broken.returncode == 1 and "no such folder" in broken.stdout

    listed = cluster.run(*hba, "status", name, "--address", cluster.dashboard)
    assert listed.returncode == 0 and "SUCCEEDED" in listed.stdout
    refused = cluster.run(*hba, "submit", "small.yaml", "tracking.mlflow=null", "seed=3", "--address", cluster.dashboard, "--wait")
    assert refused.returncode == 5 and "an sqlite store is for one machine" in refused.stdout

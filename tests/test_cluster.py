"""A real cluster of two nodes on this machine, with a token: a sweep as a job, by Ray's own command and by ours.

Its trials are drivers of Ray Train workers, on Ray Tune, and its record is that of an MLflow server.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hba_ray.cluster.jobs import packed
from hba_ray.report.tables import read_json
from hba_ray.runs.sweep_plan import plan_sweep
from hba_ray.specs import ExperimentSpec
from hba_ray.store.folders import ledger
from tests.helpers.experiments import small_sweep
from tests.helpers.ray_nodes import BIN, Process, ended, of_a_cluster, start_node
from tests.helpers.recorded import assert_recorded, events
from tests.helpers.servers import free_port, mlflow_server
from tests.helpers.waiting import wait_until

PATIENCE_SECONDS = 600
KINDS = {"atlas": 1, "backbone": 1, "sft": 2, "evaluate": 2}
"""Steps of the sweep: what both trials need is done once."""


@dataclass(frozen=True)
class Cluster:
    """
    Attributes:
        folder: where everything of it lies; `shared` in it is what all nodes see.
        environ: with the token, for whoever talks to it.
    """

    folder: Path
    dashboard: str
    mlflow: str
    environ: dict[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=self.environ, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    def spec(self) -> ExperimentSpec:
        """Two trainings side by side, on what both share."""
        changes = {"compute__workers": 1, "compute__address": "auto", "tracking__mlflow": self.mlflow}
        return small_sweep(self.folder / "shared", sweep={"axes": {"sft.lr": [1e-3, 2e-3]}}, **changes)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError:
        return True  # it asks for the token
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="hba"))  # short enough for Ray's sockets
    port, dashboard = free_port(), free_port()
    environ = of_a_cluster(folder)
    started: list[Process] = []
    second = folder / "2"  # in one folder, a node that unpacks a job's working folder would replace that of the driver
    second.mkdir()
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}")
    other = (f"--address=127.0.0.1:{port}", f"--temp-dir={second}")
    try:
        with mlflow_server(folder) as mlflow, ended(started):
            for name, words in (("head", head), ("second node", other)):
                own = f"--dashboard-agent-listen-port={free_port()}"  # other Rays of this machine hold the one that it would take
                started.append(start_node([*words, own, "--num-cpus=2"], folder / f"{name}.log", environ))
            at = Cluster(folder, f"http://127.0.0.1:{dashboard}", mlflow, environ)
            wait_until(lambda: answers(at.dashboard), said=lambda: "the dashboard", seconds=180)
            yield at
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_sweep_runs_as_a_job_of_a_cluster_and_its_table_is_there(cluster: Cluster):
    spec = cluster.spec()
    with packed(spec) as upload:
        job = ("python", "-m", "hba_ray", "run", "spec.yaml")
        submit = (str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", str(upload.folder), "--", *job)
        while "No available agent" in (done := cluster.run(*submit)).stderr:
            time.sleep(1)  # a node is up before what takes its jobs is
    assert done.returncode == 0, done.stdout + done.stderr
    shared, plan = cluster.folder / "shared", plan_sweep(spec)
    events_of_trials = [line["event"] for line in ledger(plan.folder) if "trial" in line]
    assert events_of_trials == ["started", "started", "done", "done"], done.stdout  # side by side
    assert Counter(folder.name.split("-")[0] for folder in (shared / "steps").iterdir()) == KINDS
    assert {count for (event, _), count in events(shared).items() if event in ("started", "done")} == {1}
    assert list(read_json((plan.folder / "report.json").read_text()).scores) == [trial.name for trial in plan.trials]
    assert (plan.folder / "table.md").is_file() and json.loads((plan.folder / "env.json").read_text())["packages"]["ray"]
    assert_recorded(cluster.mlflow, plan)
    assert not list(plan.folder.glob("tune/**/checkpoint_*"))  # what Tune keeps is no result

    (cluster.folder / "small.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    hba = (sys.executable, "-m", "hba_ray")
    again = cluster.run(*hba, "submit", "small.yaml", "--address", cluster.dashboard, "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "MiB" in again.stderr and again.stdout.count("done before") == 2
    name = next(line.split()[1] for line in again.stdout.splitlines() if line.startswith("job"))
    listed = cluster.run(*hba, "status", name, "--address", cluster.dashboard)
    assert listed.returncode == 0 and "SUCCEEDED" in listed.stdout

    refused = cluster.run(*hba, "submit", "small.yaml", "tracking.mlflow=null", "seed=3", "--address", cluster.dashboard, "--wait")
    assert refused.returncode == 5 and "an sqlite store is for one machine" in refused.stdout

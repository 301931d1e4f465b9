"""Hosts that have no folder in common, and a bucket: a job on a cluster of them, and hosts that die or are cut off."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hba_ray.report.tables import read_json
from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec
from hba_ray.store.bucket import Bucket
from hba_ray.store.folders import REPORT, file_of_run
from tests.helpers.buckets import make_bucket, s3_server
from tests.helpers.experiments import SMALL
from tests.helpers.hosts import Host, hosts
from tests.helpers.ray_nodes import Process, ended, of_a_cluster, start_node
from tests.helpers.servers import answers, mlflow_server
from tests.helpers.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]
PORT, DASHBOARD = 6379, 8265
PATIENCE_SECONDS = 900
NAMES = ["atlas", "backbone", "evaluate sft", "sft"]


@dataclass(frozen=True)
class Site:
    """Hosts with a bucket and a server of MLflow, and the nodes that run on them.

    Attributes:
        hosts: the first is the head, which has no CPUs to give out.
        spec: the file of a spec for them.
    """

    hosts: list[Host]
    spec: Path
    bucket: str
    environ: dict[str, str]
    started: list[Process]

    def start(self, host: Host) -> None:
        """Starts a node on a host, the head on the first one."""
        is_head = host is self.hosts[0]
        words = (
            ["--head", f"--port={PORT}", f"--dashboard-host={host.address}"] if is_head else [f"--address={self.hosts[0].address}:{PORT}"]
        )
        cpus = 0 if is_head else 2
        more = [f"--node-ip-address={host.address}", f"--temp-dir={host.folder}", f"--num-cpus={cpus}"]
        environ = self.environ | host.scratch | {"RAY_TMPDIR": str(host.folder)}
        self.started.append(start_node([*words, *more], host.folder / "ray.log", environ, within=host.within))
        if is_head:
            wait_until(lambda: answers(DASHBOARD, host.address), said=lambda: "the dashboard", seconds=180)

    def submit(self, *overrides: str) -> subprocess.Popen[str]:
        """`hba submit` from this machine, which follows its job."""
        address = f"http://{self.hosts[0].address}:{DASHBOARD}"
        command = [sys.executable, "-m", "hba_ray", "submit", str(self.spec), *overrides, "--address", address, "--wait"]
        return subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, host: Host) -> subprocess.Popen[str]:
        """`hba run` on a host, in one process, whatever nodes there are."""
        command = [*host.within, sys.executable, "-m", "hba_ray", "run", str(self.spec), "compute.address=local", "compute.workers=0"]
        return subprocess.Popen(command, env=self.environ | host.scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def works(self) -> Host | None:
        """The host on which SFT is being done, once it has kept a checkpoint."""
        if not any(key.endswith("unfinished.json") for key in Bucket(self.bucket).list("steps/")):
            return None
        return next((host for host in self.hosts if list(host.folder.glob("scratch/*/steps/sft-*/metrics.jsonl"))), None)

    def check_finished(self) -> None:
        """Each step was finished once, each metric was logged once, and the report is read on this machine, too."""
        storage = Bucket(self.bucket)
        events = [storage.read(key) for key in storage.list("") if "/ledger/" in key]
        facts = [json.loads(event[0]) for event in events if event is not None]
        assert sorted(line["step"] for line in facts if line["event"] == "done") == NAMES
        experiment = plan(ExperimentSpec.model_validate(yaml.safe_load(self.spec.read_text())))
        (sft,) = (step for step in experiment.steps if step.name == "sft")
        lines = [json.loads(line) for line in sft.file("metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if "epochs_done" not in line]
        assert steps == list(range(1, steps[-1] + 1))
        assert read_json(file_of_run(experiment.folder, REPORT).read_bytes(), where="report").scores


@contextmanager
def site(monkeypatch: pytest.MonkeyPatch, *, with_nodes: bool = True) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="hba"))  # short enough for Ray's sockets
    started: list[Process] = []
    try:
        with (
            hosts(3, folder) as (here, three),
            s3_server(here) as access,
            mlflow_server(folder, here) as mlflow,
            ended(started),
        ):
            for name, value in (access | {"HBA_SCRATCH": str(folder / "scratch")}).items():
                monkeypatch.setenv(name, value)
            bucket, spec = make_bucket(access["AWS_ENDPOINT_URL"]), folder / "small.yaml"
            compute = {**SMALL["compute"], "workers": 1, "address": "auto", "storage": bucket}
            changes = {"sft": {**SMALL["sft"], "epochs": 16}, "compute": compute, "tracking": {"mlflow": mlflow}}
            spec.write_text(yaml.safe_dump(SMALL | changes))
            at = Site(three, spec, bucket, of_a_cluster(folder), started)
            for host in three if with_nodes else ():
                at.start(host)
            yield at
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_runs_on_hosts_that_have_only_a_bucket_in_common(monkeypatch: pytest.MonkeyPatch):
    with site(monkeypatch) as at:
        job = at.submit()
        said, _ = job.communicate(timeout=PATIENCE_SECONDS)
        assert job.returncode == 0, said
        at.check_finished()
        assert not list(at.hosts[0].folder.glob("scratch/*/steps/sft-*/model/*.safetensors")), "the head does without weights"
        assert "sft" in said and "is done on" in said

        again = at.submit("compute.cpus_per_worker=4")
        said, _ = again.communicate(timeout=PATIENCE_SECONDS)
        assert again.returncode == 0 and said.count("done before") == len(NAMES), said
        sweep = at.submit("sweep={axes: {evaluate.max_new_tokens: [4, 5]}}")  # its trials' drivers are on the head
        said, _ = sweep.communicate(timeout=PATIENCE_SECONDS)
        assert sweep.returncode == 0 and "2 trials" in said, said
        larger = at.submit("compute.cpus_per_worker=3", "seed=3")  # both nodes have so many together, and none alone
        said, _ = larger.communicate(timeout=PATIENCE_SECONDS)
        assert larger.returncode == 5 and "no node has them" in said, said


@pytest.mark.chaos
def test_a_job_outlives_the_host_that_trains(monkeypatch: pytest.MonkeyPatch):
    with site(monkeypatch) as at:
        job = at.submit()
        wait_until(lambda: at.works() is not None, job)
        host = at.works()
        assert host is not None
        host.cut_off()
        host.die()
        said, _ = job.communicate(timeout=PATIENCE_SECONDS)
        assert job.returncode == 0, said
        assert "was lost" in said or "ended with code" in said
        assert "was interrupted at step" in said
        at.check_finished()


@pytest.mark.chaos
def test_a_job_whose_head_dies_is_submitted_again_to_a_new_one_and_goes_on(monkeypatch: pytest.MonkeyPatch):
    with site(monkeypatch) as at:
        job = at.submit()
        wait_until(lambda: at.works() is not None, job)
        for host in at.hosts:  # nodes end with their head, sooner or later
            host.die()
        job.kill()
        job.wait()
        for host in at.hosts:
            shutil.rmtree(host.folder)  # new machines
            host.folder.mkdir()
            at.start(host)
        job = at.submit()
        said, _ = job.communicate(timeout=PATIENCE_SECONDS)
        assert job.returncode == 0, said
        assert "was interrupted at step" in said
        at.check_finished()


@pytest.mark.chaos
def test_a_driver_whose_host_is_cut_off_loses_its_lease_to_another_host_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    with site(monkeypatch, with_nodes=False) as at:
        first, second, _ = at.hosts
        driver = at.run(first)
        wait_until(lambda: at.works() is first, driver)
        first.cut_off()
        other = at.run(second)
        said, _ = other.communicate(timeout=PATIENCE_SECONDS)
        assert other.returncode == 0 and "was interrupted at step" in said, said
        at.check_finished()
        marks = Bucket(at.bucket).list("done/")
        first.join()
        said, _ = driver.communicate(timeout=PATIENCE_SECONDS)
        assert driver.returncode == 5, said
        assert Bucket(at.bucket).list("done/") == marks
        at.check_finished()

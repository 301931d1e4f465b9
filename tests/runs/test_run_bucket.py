"""Runs in a bucket: they finish, are done once, and any other host reads them or goes on with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hba_ray.report.tables import read_json
from hba_ray.runs.opened import open_run
from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.store.bucket import Bucket
from hba_ray.store.folders import REPORT, file_of_run, ledger
from hba_ray.store.mirror import mirror_of
from tests.helpers.buckets import on_host
from tests.helpers.experiments import SMALL, small_experiment
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow
NAMES = ["atlas", "backbone", "sft", "evaluate sft"]


def start(spec: Path, host: Path, *overrides: str) -> subprocess.Popen[str]:
    """`hba run` on a host of its own."""
    command = [sys.executable, "-m", "hba_ray", "run", str(spec), *overrides]
    return subprocess.Popen(command, env=on_host(host), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_run_in_a_bucket_is_done_once_and_read_on_another_host(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = small_experiment(bucket)
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / "a"))
    made = run_experiment(plan(spec), lambda line: None)
    assert [line["step"] for line in ledger(made.folder) if line["event"] == "done"] == NAMES
    first = mirror_of(made.folder)
    assert first is not None
    written, requests = first.bucket.moved["written"], dict(first.bucket.requests)
    assert sum(requests.values()) < 40 * len(NAMES)

    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / "b"))
    experiment = plan(spec)
    assert [step.name for step in experiment.steps if step.is_done] == NAMES
    again = run_experiment(experiment, lambda line: None)
    assert again.report.scores == made.report.scores
    assert [line["step"] for line in ledger(again.folder) if line["event"] == "started"] == NAMES, "nothing was begun twice"
    second = mirror_of(again.folder)
    assert second is not None
    model = experiment.steps[2].folder / "model" / "model.safetensors"
    assert not model.exists(), "a report needs no weights"
    assert experiment.steps[2].whole() == model.parents[1]
    assert second.bucket.moved["read"] < 1.1 * written

    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / "c"))
    folder = plan(spec).folder
    assert read_json(file_of_run(folder, REPORT).read_bytes(), where="report").scores == made.report.scores
    assert open_run(folder).fingerprint == experiment.fingerprint
    assert (folder / "report.html").read_text() == again.page.read_text()


def in_training(bucket: str, tmp_path: Path, workers: int) -> tuple[Path, subprocess.Popen[str]]:
    """A spec, and a driver on a host `a` that runs it and has just kept the first checkpoint of SFT."""
    spec, compute = tmp_path / "small.yaml", {**SMALL["compute"], "storage": bucket, "workers": workers}
    spec.write_text(yaml.safe_dump(SMALL | {"sft": {**SMALL["sft"], "epochs": 16}, "compute": compute}))
    storage, driver = Bucket(bucket), start(spec, tmp_path / "a")
    wait_until(lambda: any(key.endswith("unfinished.json") for key in storage.list("steps/")), driver)
    return spec, driver


def finish_elsewhere(spec: Path, host: Path) -> str:
    """What a driver on another host says, which goes on with the run; each step and each metric is there once then."""
    driver = start(spec, host)
    said, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    (log,) = host.glob("*/steps/sft-*/metrics.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines if "epochs_done" not in line]
    assert steps == list(range(1, steps[-1] + 1))
    (run,) = host.glob("*/small-*")
    tracked = [json.loads(line) for line in (run / "tracking.jsonl").read_text().splitlines()]
    recorded = [line["step"] for line in tracked if "sft/loss" in line.get("metrics", {})]
    assert sorted(recorded) == steps
    return said


def finished_steps(bucket: str) -> list[str]:
    """Names of the steps that the ledger of the one run says were finished, as often as it says so."""
    storage = Bucket(bucket)
    events = [storage.read(key) for key in storage.list("") if "/ledger/" in key]
    facts = [json.loads(event[0]) for event in events if event is not None]
    return sorted(line["step"] for line in facts if line["event"] == "done")


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_run_whose_host_dies_in_training_goes_on_from_its_last_checkpoint_on_another(bucket: str, tmp_path: Path, workers: int):
    spec, driver = in_training(bucket, tmp_path, workers)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not any("sft-" in key for key in Bucket(bucket).list("done/")), "it was killed too late"
    said = finish_elsewhere(spec, tmp_path / "b")
    assert "another process is running this experiment" in said
    assert "was interrupted at step" in said
    assert finished_steps(bucket) == sorted(NAMES)


@pytest.mark.chaos
def test_a_driver_that_was_cut_off_while_another_took_over_ends_and_changes_nothing(bucket: str, tmp_path: Path):
    spec, driver = in_training(bucket, tmp_path, workers=0)
    os.kill(driver.pid, signal.SIGSTOP)
    finish_elsewhere(spec, tmp_path / "b")
    before = Bucket(bucket).list("done/"), finished_steps(bucket)
    os.kill(driver.pid, signal.SIGCONT)
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 5
    assert "taken over" in said or "meanwhile" in said
    assert (Bucket(bucket).list("done/"), finished_steps(bucket)) == before
    assert before[1] == sorted(NAMES)

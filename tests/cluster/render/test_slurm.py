"""The batch script with stubs in place of Slurm and Ray: what it starts, that it waits, and that it is queued again in time."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from hba_ray.cluster.render.slurm import render_slurm
from hba_ray.specs.infra import InfraSpec
from tests.helpers.waiting import wait_until

STUBS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "scontrol $*" >> "$LOG"; fi',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; [ "$1" = hostname ] && echo 10.0.0.1 && exit; exec "$@"',
    "ray": 'echo "ray $*" >> "$LOG"; exec sleep 60',
    "apptainer": 'echo "apptainer $*" >> "$LOG"; while [ "$1" != hba ] && [ "$1" != ray ]; do shift; done; exec "$@"',
    "hba": 'echo "hba $*" >> "$LOG"; [ "$1" = cluster ] && exit; trap "echo ended >> \\"$LOG\\"; exit 130" TERM; '
    'if [ -n "${LASTS:-}" ]; then while true; do sleep 0.1; done; fi; exit "${CODE:-0}"',
}


@pytest.fixture
def slurm(tmp_path: Path):
    """A function that starts the script on two nodes of stubs."""
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    started = []

    def start(**variables: str) -> subprocess.Popen[str]:
        container = variables.pop("container", None)
        raw = {
            "head": {"cpus": 2, "memory_gib": 8},
            "workers": {"cpu": {"cpus": 4, "memory_gib": 16, "most": 2}},
            "mlflow": "http://mlflow:5000",
            "slurm": {"container": container, "runtime": "apptainer"},
        }
        (tmp_path / "slurm.sh").write_text(render_slurm(InfraSpec.model_validate(raw)))
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        own = {
            "PATH": path,
            "LOG": str(tmp_path / "log"),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "4",
        }
        script = ["bash", "slurm.sh", "spec.yaml", "seed=1"]
        started.append(subprocess.Popen(script, cwd=tmp_path, env=own | variables, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


@pytest.mark.parametrize("code", [0, 4])
def test_it_starts_all_nodes_waits_for_them_and_ends_as_the_run_does(slurm, tmp_path: Path, code: int):
    assert slurm(CODE=str(code)).wait(60) == code
    wait_until(lambda: sum(line.startswith("ray start") for line in said(tmp_path)) == 2)
    lines = said(tmp_path)
    waits = [line for line in lines if line.startswith("hba cluster wait")]
    assert waits == ["hba cluster wait 10.0.0.1:20007", "hba cluster wait 10.0.0.1:20007 --nodes 2"]
    assert sorted(line.split()[4] for line in lines if line.startswith("ray start")) == ["--address=10.0.0.1:20007", "--head"]
    (run,) = [line for line in lines if line.startswith("hba run")]
    address = "compute.address=10.0.0.1:20007"
    assert run == f"hba run spec.yaml seed=1 {address} compute.storage=/shared/runs tracking.mlflow=http://mlflow:5000"
    assert lines.index(waits[1]) < lines.index(run) and not any(line.startswith("scontrol") for line in lines)


def test_told_to_end_it_ends_the_run_and_is_queued_again(slurm, tmp_path: Path):
    job = slurm(LASTS="1")
    wait_until(lambda: any(line.startswith("hba run") for line in said(tmp_path)))
    os.kill(job.pid, signal.SIGTERM)  # as Slurm does with --signal=B:TERM: the script alone
    assert job.wait(60) == 0
    assert said(tmp_path)[-2:] == ["ended", "scontrol requeue 7"]


def test_in_a_container_every_command_runs_inside(slurm, tmp_path: Path):
    assert slurm(container="/images/hba.sif").wait(60) == 0
    wait_until(lambda: sum(line.startswith("ray start") for line in said(tmp_path)) == 2)
    inside = [line for line in said(tmp_path) if line.startswith("apptainer exec --nv --bind /shared")]
    assert len(inside) == sum(line.startswith(("ray ", "hba ")) for line in said(tmp_path)) == 5
    assert all(" /images/hba.sif " in line for line in inside)

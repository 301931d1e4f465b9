"""A spec as a RayJob, with a kubectl that only remembers: what is applied, that nothing is doubled, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from hba_ray.cluster import kubernetes_jobs as module
from hba_ray.cluster.kubernetes_jobs import LONGEST_NAME, KubernetesJobs, kubernetes_name
from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.specs.infra import InfraSpec
from tests.helpers.experiments import small_experiment

KUBECTL = """#!/bin/bash
echo "$*" >> calls
case "$3" in
    get) cat state 2>/dev/null || true ;;
    apply) cat > applied; echo '{"status": {}}' > state ;;
    logs) cat said 2>/dev/null || true; [ -f next ] && mv next state || true ;;
    delete) rm -f state ;;
    *) echo "unknown" >&2; exit 1 ;;
esac
"""
INFRA = InfraSpec.model_validate(
    {
        "image": {"cpu": "registry.example/hba:cpu"},
        "mlflow": "http://mlflow:5000",
        "head": {"cpus": 2, "memory_gib": 8},
        "workers": {"cpu": {"cpus": 4, "memory_gib": 16, "most": 2}},
        "kubernetes": {"namespace": "lab", "storage_class": "shared"},
    }
)
FILE = Path("infra.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stub, in which commands run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(KUBECTL)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(status: str) -> str:
    return json.dumps({"status": {"jobStatus": status}})


def test_a_spec_is_applied_as_one_job_and_not_doubled_while_it_runs(here: Path):
    jobs, spec = KubernetesJobs(INFRA, FILE), small_experiment(here)
    name = jobs.submit(spec)
    documents = list(yaml.safe_load_all((here / "applied").read_text()))
    assert documents[-1]["metadata"] == {"name": name, "namespace": "lab"}
    sent = yaml.safe_load(next(one for one in documents if one["kind"] == "ConfigMap")["data"]["spec.yaml"])
    assert (sent["name"], sent["compute"]["storage"]) == ("small", "/shared/runs")
    assert jobs.submit(spec) == name
    assert sum("apply" in line for line in (here / "calls").read_text().splitlines()) == 1
    (here / "state").write_text(state("FAILED"))
    assert jobs.submit(spec) == name
    assert sum("apply" in line for line in (here / "calls").read_text().splitlines()) == 2
    assert all(line.startswith("--namespace lab ") for line in (here / "calls").read_text().splitlines())


@pytest.mark.parametrize(("status", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 130)])
def test_a_job_is_followed_to_its_end(here: Path, status: str, code: int):
    jobs = KubernetesJobs(INFRA, FILE)
    name = jobs.submit(small_experiment(here))
    (here / "said").write_text("one\ntwo\n")
    (here / "next").write_text(state(status))
    shown: list[str] = []
    assert jobs.follow(name, shown.append) == code
    assert "".join(shown) == "one\ntwo\n"


def test_what_kubectl_says_is_told_with_a_way_out(here: Path):
    (here / "bin" / "kubectl").write_text("#!/bin/bash\necho 'error: You must be logged in to the server' >&2\nexit 1\n")
    with pytest.raises(EnvironmentMissing, match=r"kubectl get: error: You must be logged in to the server\n  look at `kubectl config"):
        KubernetesJobs(INFRA, FILE).submit(small_experiment(here))


def test_without_kubectl_or_with_blanks_nothing_is_sent(here: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SpecError, match=r"infra\.yaml: leaves out image\.cpu, kubernetes\.storage_class"):
        blank = {
            "image": INFRA.image.model_copy(update={"cpu": None}),
            "kubernetes": INFRA.kubernetes.model_copy(update={"storage_class": None}),
        }
        KubernetesJobs(INFRA.model_copy(update=blank), FILE)
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(EnvironmentMissing, match="there is no kubectl here"):
        KubernetesJobs(INFRA, FILE)


@pytest.mark.parametrize("name", ["x", "T20_rl.Ablation", "a" * 80, "ends-in-dash" * 4 + "-"])
def test_names_are_such_as_kubernetes_takes(tmp_path: Path, name: str):
    made = kubernetes_name(small_experiment(tmp_path, name=name))
    assert len(made) <= LONGEST_NAME and made == made.strip("-") and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert made != kubernetes_name(small_experiment(tmp_path, name=name, seed=1))

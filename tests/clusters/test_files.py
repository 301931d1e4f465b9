"""The cluster files are what Ray takes, ask for a token, scale their spot workers from zero, and name no package host."""

import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from hba_ray.specs import load_spec
from hba_ray.specs.sections.compute import ComputeSpec

FOLDER = Path(__file__).parents[2] / "clusters"
ROOT = FOLDER.parent
LAUNCHED = ("aws", "gcp")
RAY_JOB = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_own_schema_takes_the_file(name: str):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name) | {"cluster_synced_files": []}
    validate_config(config)
    prepared = prepare_config(config)
    types = prepared["available_node_types"]
    assert types["gpu"]["min_workers"] == 0 and types["gpu"]["max_workers"] == prepared["max_workers"] == 4
    assert prepared["head_node_type"] == "head"
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(config | {"min_wrokers": 1})


@pytest.mark.parametrize("name", LAUNCHED)
def test_workers_are_spot_and_the_head_is_not(name: str):
    types = read(name)["available_node_types"]
    spot = "spot" if name == "aws" else "SPOT"
    assert spot in str(types["gpu"]["node_config"]) and spot not in str(types["head"]["node_config"])
    assert types["gpu"]["resources"]["GPU"] == 8 and "GPU" not in types["head"]["resources"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_asks_for_a_token(name: str):
    config = read(name)
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert command.startswith("export RAY_AUTH_MODE=token")
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_the_kubernetes_job_scales_from_zero_and_asks_for_a_token():
    job = read("kuberay")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert cluster["rayVersion"] == metadata.version("ray") and cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    assert set(group) <= GROUP and group["minReplicas"] == group["replicas"] == 0
    for pod in (cluster["headGroupSpec"]["template"], group["template"]):
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes and container["resources"]["limits"]["memory"]


def test_the_command_of_the_kubernetes_job_is_one_of_ours():
    words = read("kuberay")["spec"]["entrypoint"].split()
    assert words[:2] == ["hba", "run"]
    assert load_spec(ROOT / words[2], words[3:]).compute == ComputeSpec(
        **load_spec(ROOT / words[2]).compute.model_dump() | {"address": "auto", "storage": "/shared/runs"}
    )


def test_the_slurm_script_is_one():
    file = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text()
    assert "RAY_AUTH_MODE=token" in text and text.count("#SBATCH") >= 5


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_no_host_is_named_but_this_machine_and_places_to_fill_in(file: Path):
    text = file.read_text()
    hosts = {host for host in re.findall(r"https?://([\w.-]+)", text) if host not in ("localhost", "mlflow")}
    assert not hosts and "index-url" not in text

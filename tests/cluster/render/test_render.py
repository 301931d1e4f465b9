"""One infra file becomes the file of each place: sound by what can be checked without a cloud, blank only where nobody else can know."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from hba_ray.cluster.growth import GROWS_TO, addable
from hba_ray.cluster.render.blanks import BLANK, blanks
from hba_ray.cluster.render.check import FILES, problems, render
from hba_ray.cluster.render.kubernetes import manifests, render_kubernetes
from hba_ray.cluster.render.ray_up import cluster_config
from hba_ray.errors import SpecError
from hba_ray.specs import ComputeSpec, load_spec
from hba_ray.specs.infra import InfraSpec, Target, load_infra

CLUSTERS = Path(__file__).parents[3] / "clusters"
TARGETS: list[Target] = ["aws", "gcp", "kubernetes", "slurm"]
ONLY_THE_USER_KNOWS = {
    "aws": ["image.cpu", "image.gpu", "mlflow", "aws.machine_image", "aws.file_system"],
    "gcp": ["image.cpu", "image.gpu", "mlflow", "gcp.project", "gcp.machine_image", "gcp.file_system"],
    "kubernetes": ["image.cpu", "image.gpu", "kubernetes.storage_class"],
    "slurm": ["mlflow"],
}
FILLED: dict[str, Any] = {
    "image": {"cpu": "registry.example/hba:cpu", "gpu": "registry.example/hba:gpu"},
    "mlflow": "http://mlflow.example:5000",
    "aws": {"instance_profile": "lab-runs", "machine_image": "ami-1", "file_system": "fs-1.efs.us-east-1.amazonaws.com:/"},
    "gcp": {
        "service_account": "runs@lab.example",
        "project": "lab",
        "machine_image": "projects/p/global/images/i",
        "file_system": "10.0.0.2:/share",
    },
    "kubernetes": {"storage_class": "efs"},
}
SMALL: dict[str, Any] = {"head": {"cpus": 2, "memory_gib": 8}, "workers": {"cpu": {"cpus": 4, "memory_gib": 16, "most": 2}}}


def infra(**changes: Any) -> InfraSpec:
    """That of clusters/infra.yaml, with sections changed."""
    raw = yaml.safe_load((CLUSTERS / "infra.yaml").read_text())
    return InfraSpec.model_validate(
        raw | {name: {**raw[name], **value} if isinstance(value, dict) else value for name, value in changes.items()}
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_shipped_file_is_the_one_rendered_from_the_shipped_infra_file(target: Target):
    assert (CLUSTERS / FILES[target]).read_text() == render(load_infra(CLUSTERS / "infra.yaml"), target)


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_sound_and_blank_only_where_the_user_alone_knows(target: Target):
    shipped = load_infra(CLUSTERS / "infra.yaml")
    text = render(shipped, target)
    assert problems(target, text) == []
    assert [blank.key for blank in blanks(text)] == ONLY_THE_USER_KNOWS[target]
    assert set(re.findall(BLANK + r"([\w.]*\w)", text)) == set(ONLY_THE_USER_KNOWS[target])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("storage", ["/shared/runs", "s3://bucket/runs"])
@pytest.mark.parametrize("queue", [None, "lab"])
def test_filled_in_it_has_no_blank_and_is_sound(target: Target, storage: str, queue: str | None):
    changed = infra(**{**FILLED, "storage": storage, "kubernetes": {**FILLED["kubernetes"], "queue": queue}})
    text = render(changed, target)
    assert BLANK not in text and blanks(text) == [] and problems(target, text) == []
    assert storage in text
    assert ("/shared" in text) == (storage == "/shared/runs")


def test_workers_come_when_there_is_work_and_the_head_does_none():
    config = cluster_config(infra(**FILLED), "aws")
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0} and config["max_workers"] == 4
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]) == (0, 4, {"CPU": 64, "GPU": 8})
    assert gpu["docker"] == {"worker_image": "registry.example/hba:gpu"} and config["docker"]["head_image"] == "registry.example/hba:cpu"
    assert "InstanceMarketOptions" in gpu["node_config"]
    on_demand = cluster_config(infra(**FILLED, spot=False), "aws")["available_node_types"]["gpu"]
    assert "InstanceMarketOptions" not in on_demand["node_config"] and on_demand["labels"] == {"ray.io/market-type": "on-demand"}


@pytest.mark.parametrize("target", ["aws", "gcp", "kubernetes"])
def test_the_head_knows_how_far_its_cluster_can_grow(target: Target):
    (said,) = re.findall(r"HBA_GROWS_TO\W+(?:value: ')?(\[.*?\])", render(infra(**FILLED), target).replace("\n", " "))
    nodes = addable(ComputeSpec(address="auto"), {GROWS_TO: said})
    assert [(node.cpus, node.gpus, node.most) for node in nodes] == [(64, 8, 4)]


def test_a_job_in_a_queue_is_admitted_whole_and_one_without_grows():
    waiting, growing = (manifests(infra(kubernetes={"queue": queue}), "name: x\n", "mine")[-1] for queue in ("lab", None))
    assert waiting["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lab"} and waiting["spec"]["suspend"] is True
    cluster = waiting["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster and cluster["workerGroupSpecs"][0]["replicas"] == 4
    cluster = growing["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True and cluster["workerGroupSpecs"][0]["replicas"] == 0


@pytest.mark.parametrize("target", TARGETS)
def test_every_node_asks_for_a_token_and_no_host_is_named(target: Target):
    text = (CLUSTERS / FILES[target]).read_text()
    assert "RAY_AUTH_MODE=token" in text or "authOptions:\n      mode: token" in text
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= {"localhost", "hba-mlflow"} and "index-url" not in text


def test_the_job_of_kubernetes_runs_this_ray_and_a_command_of_ours(tmp_path: Path):
    *_, config, job = manifests(infra(), "name: mine\nstages: [sft]\natlas: {source: toy}\n", "mine")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    program, command, file, *words = job["spec"]["entrypoint"].split()
    assert (program, command) == ("hba", "run") and file == "/spec/spec.yaml"
    (tmp_path / "spec.yaml").write_text(config["data"]["spec.yaml"])
    spec = load_spec(tmp_path / "spec.yaml", words)
    assert (spec.compute.address, spec.compute.storage, spec.tracking.mlflow) == ("auto", "/shared/runs", "http://hba-mlflow:5000")


def test_a_job_of_kubernetes_holds_its_spec_and_secrets_by_name_alone():
    text = render_kubernetes(infra(**FILLED, secrets=["HF_TOKEN", "JUDGE_KEY"]), "name: mine\nseed: 3\n", job="mine")
    documents = list(yaml.safe_load_all(text))
    assert next(one for one in documents if one["kind"] == "ConfigMap")["data"] == {"spec.yaml": "name: mine\nseed: 3\n"}
    container = documents[-1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert [one["name"] for one in container["env"]] == ["HF_TOKEN", "JUDGE_KEY", GROWS_TO]
    assert all("value" not in one for one in container["env"][:-1])


@pytest.mark.parametrize(
    ("storage", "client", "artifacts"),
    [
        ("s3a://bucket/runs", "boto3", "s3://bucket/runs/mlartifacts"),
        ("gs://bucket/runs", "google-cloud-storage", "gs://bucket/runs/mlartifacts"),
        (
            "abfs://box@a.dfs.core.windows.net/r",
            "azure-storage-file-datalake azure-identity",
            "abfss://box@a.dfs.core.windows.net/r/mlartifacts",
        ),
    ],
)
def test_the_mlflow_server_of_a_bucket_has_its_client_and_its_secrets(storage: str, client: str, artifacts: str):
    server = next(one for one in manifests(infra(storage=storage, secrets=["KEY"]), "name: x\n", "mine") if one["kind"] == "Deployment")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    shell, _, line = container["command"]
    assert shell == "sh" and line.startswith(f"pip install --quiet {client} && exec mlflow server")
    assert f"--artifacts-destination={artifacts} " in line and [one["name"] for one in container["env"]] == ["KEY"]


HEADED = "head: {cpus: 2, memory_gib: 8}\n"
SOUND = HEADED + "workers: {a: {cpus: 1, memory_gib: 1, most: 1}}\n"


def test_an_azure_container_without_its_account_is_refused_where_mlflow_needs_it():
    with pytest.raises(SpecError, match=r"names no account, which MLflow's server.*\n  give abfs://CONTAINER@ACCOUNT"):
        render(infra(storage="abfs://box/runs"), "kubernetes")
    assert "abfs://box/runs" in render(infra(storage="abfs://box/runs", mlflow="http://mlflow.example"), "kubernetes")


@pytest.mark.parametrize(
    ("target", "storage", "key", "secrets"),
    [
        ("aws", "s3://bucket/runs", "aws.instance_profile", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        ("gcp", "gs://bucket/runs", "gcp.service_account", ["GOOGLE_APPLICATION_CREDENTIALS"]),
    ],
)
def test_workers_have_rights_to_the_bucket_by_an_account_or_by_secrets(target: Target, storage: str, key: str, secrets: list[str]):
    place, name = key.split(".")
    assert [blank.key for blank in blanks(render(infra(storage=storage), target))].count(key) == 1
    assert key not in render(infra(storage=storage, secrets=secrets), target)
    text = render(infra(**{"storage": storage, place: {name: "lab-runs"}}), target)
    nodes = yaml.safe_load(text)["available_node_types"]
    assert "lab-runs" in str(nodes["gpu"]) and "lab-runs" not in str(nodes["head"])
    assert problems(target, text) == []


def test_pods_have_the_service_account_that_is_named():
    *_, mlflow, _, _, job = manifests(infra(kubernetes={"service_account": "runs"}), "name: x\n", "mine")
    pods = [mlflow["spec"], job["spec"]["rayClusterSpec"]["headGroupSpec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]]
    assert [pod["template"]["spec"]["serviceAccountName"] for pod in pods] == ["runs"] * 3


SPOILT: dict[str, tuple[Target, str, str, str]] = {
    "an unknown key of ray up": ("aws", "idle_timeout_minutes:", "idle_minutes:", "idle_minutes"),
    "a number in words": ("gcp", "max_workers: 4", "max_workers: four", "max_workers"),
    "a misspelt field of KubeRay": ("kubernetes", "shutdownAfterJobFinishes", "shutdownAfterJobFinish", "no field shutdownAfterJobFinish"),
    "an amount of memory": ("kubernetes", "memory: 512Gi", "memory: 512 GB", "512 GB is no quantity"),
    "a volume that is not there": (
        "kubernetes",
        "- name: shm\n              mountPath",
        "- name: smh\n              mountPath",
        "volume smh",
    ),
    "a claim that is not there": ("kubernetes", "claimName: hba-mlflow-records", "claimName: records", "PersistentVolumeClaim records"),
    "more nodes than there may be": ("kubernetes", "replicas: 0", "replicas: 9", "replicas is not between"),
    "no YAML": ("kubernetes", "kind: RayJob", "kind: [RayJob", "is no YAML"),
    "a quote that does not end": ("slurm", 'hba run "$@"', 'hba run "$@', "unexpected EOF"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_in_a_file_is_told(case: str):
    target, before, after, said = SPOILT[case]
    text = render(infra(**(FILLED | ({"mlflow": None} if target == "kubernetes" else {}))), target)
    assert before in text
    assert any(said in sentence for sentence in problems(target, text.replace(before, after, 1)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head: {cpus: 2, memory_gib: 8}\n", r"infra\.yaml: 'workers' is missing"),
        ("nam: x\n", r"infra\.yaml"),
        ("head: {cpus: 2, memory_gib: 8}\nworkers:\n  gpu:\n    cpus: 4\n    memory_gib: 8\n    most: 0\n", r"yaml:6: workers\.gpu\.most"),
        (f"storage: runs\n{SOUND}", r"yaml:1: storage: is relative.* \(given: 'runs'\)"),
        ("head: [", r"infra\.yaml"),
        ("# nothing\n", r"infra\.yaml: it takes keys"),
        (f"idle_minuts: 10\n{SOUND}", r"yaml:1: unknown key 'idle_minuts'\n  did you mean 'idle_minutes'\?"),
        (f"workers: {{a: {{cpus: 1, memory_gb: 1, most: 1}}}}\n{HEADED}", r"yaml:1: unknown key 'workers\.a\.memory_gb'\n  did you mean"),
        (f"secrets: HF_TOKEN\n{SOUND}", r"yaml:1: secrets: it takes a list"),
        (f"slurm: {{time: 24:00:00}}\n{SOUND}", r"yaml:1: slurm\.time: it takes a text; in YAML.* in quotes"),
        (f"storage: /\n{SOUND}", r"yaml:1: storage: is no folder that a file system can be mounted at"),
        (f"storage: /my runs\n{SOUND}", r"yaml:1: storage: '/my runs' has to be one word"),
        (f"storage: s4://b/r\n{SOUND}", r"yaml:1: storage: is an address from which runs cannot be read.* begins with s3"),
        (f"storage: 's3://'\n{SOUND}", r"yaml:1: storage: names no bucket: write s3://BUCKET/FOLDER"),
        (f"mlflow: 10.0.0.5:5000\n{SOUND}", r"yaml:1: mlflow: is no address of a server: give it as http://HOST:PORT"),
        (f"mlflow: 'http://bob:pass-1@10.0.0.5:5000'\n{SOUND}", r"yaml:1: mlflow: holds a password.* MLFLOW_TRACKING_PASSWORD in secrets"),
        (f"mlflow: '${{oc.env:MLF}}'\n{SOUND}", r"yaml:1: mlflow: holds a password, or a reference"),
        (f"mlflow: FILL_IN_xyz\n{SOUND}", r"yaml:1: mlflow: 'FILL_IN_xyz' is a blank"),
        (f"image: {{gpu: ''}}\n{SOUND}", r"yaml:1: image\.gpu: '' has to be one word"),
        (f"workers: {{head: {{cpus: 1, memory_gib: 1, most: 1}}}}\n{HEADED}", r"yaml:1: workers: a kind of worker is named 'head'"),
    ],
)  # fmt: skip
def test_a_bad_infra_file_is_refused_with_its_line_and_key(tmp_path: Path, text: str, said: str):
    (tmp_path / "infra.yaml").write_text(text)
    with pytest.raises(SpecError, match=said) as raised:
        load_infra(tmp_path / "infra.yaml")
    assert "pass-1" not in str(raised.value)
    with pytest.raises(SpecError, match=r"elsewhere\.yaml"):
        load_infra(tmp_path / "elsewhere.yaml")


@pytest.mark.parametrize("name", ["Hba", "-hba", "h b", "a" * 41])
def test_a_name_that_clouds_refuse_is_refused_before(name: str):
    with pytest.raises(ValueError, match="name"):
        InfraSpec.model_validate(SMALL | {"name": name})

"""A file for `ray up`: a head that is always there, and workers that come when trials need them and go when idle."""

from __future__ import annotations

from typing import Any

from hba_ray.cluster.growth import GROWS_TO, stated
from hba_ray.cluster.render.blanks import image_of, or_blank
from hba_ray.specs.infra import HEAD, Cloud, InfraSpec, NodeSpec, WorkerSpec
from hba_ray.specs.reading.yaml_text import dump_yaml

_HEAD = """\
# A cluster on {cloud}, rendered by `hba cluster render {target}`: change the infra file, and render it again.
#
#   ray get-auth-token --generate      # once, on this machine; the token goes to every node
#   ray up {target}.yaml
#   ray dashboard {target}.yaml            # a tunnel to it, on port 8265
#   hba submit SPEC --address http://localhost:8265 compute.storage={storage} tracking.mlflow={mlflow}
#   ray down {target}.yaml                 # results stay in {storage}
{secrets}"""
_SECRETS = """\
#
# Before: ~/.hba_secrets on this machine, readable by you alone, with a line NAME=VALUE for each of {names}.
"""
_NAMES: dict[Cloud, str] = {"aws": "AWS", "gcp": "Google Cloud"}
_SECRETS_FILE = "~/.hba_secrets"
_MOUNT_TYPES: dict[Cloud, str] = {"aws": "nfs4", "gcp": "nfs"}
_OWN_BUCKETS: dict[Cloud, tuple[tuple[str, ...], str]] = {"aws": (("s3", "s3a"), "AWS_"), "gcp": (("gs",), "GOOGLE_")}
"""Schemes of a cloud's own buckets, and how the names of variables begin by which one gets rights to them."""


def render_ray_up(infra: InfraSpec, cloud: Cloud) -> str:
    """The file for `ray up`."""
    secrets = _SECRETS.format(names=", ".join(infra.secrets)) if infra.secrets else ""
    mlflow = or_blank(infra.mlflow, "mlflow")
    head = _HEAD.format(cloud=_NAMES[cloud], target=cloud, storage=infra.storage, mlflow=mlflow, secrets=secrets)
    return head + dump_yaml(cluster_config(infra, cloud))


def cluster_config(infra: InfraSpec, cloud: Cloud) -> dict[str, Any]:
    """The same as plain values, in the form of Ray's ray-schema.json."""
    mounts = {"~/.ray/auth_token": "~/.ray/auth_token", **({_SECRETS_FILE: _SECRETS_FILE} if infra.secrets else {})}
    own = {
        "aws": {"type": "aws", "region": infra.aws.region},
        "gcp": {
            "type": "gcp",
            "region": infra.gcp.region,
            "availability_zone": infra.gcp.zone,
            "project_id": or_blank(infra.gcp.project, "gcp.project"),
        },
    }
    workers = {name: _worker(infra, name, worker, cloud) for name, worker in infra.workers.items()}
    return {
        "cluster_name": infra.name,
        "max_workers": sum(worker.most for worker in infra.workers.values()),
        "idle_timeout_minutes": infra.idle_minutes,
        "provider": {**own[cloud], "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "container_name": infra.name,
            "head_image": image_of(infra),
            "worker_image": image_of(infra),
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536", *([f"--volume {infra.mount}:{infra.mount}"] if infra.mount else [])],
        },
        "file_mounts": mounts,
        "initialization_commands": _mounted(infra, cloud),
        "head_node_type": HEAD,
        "available_node_types": {HEAD: _head(infra, cloud), **workers},
        "head_start_ray_commands": [
            "ray stop",
            f"export {GROWS_TO}='{stated(infra.nodes)}' && "
            + _started(infra, "--head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml"),
        ],
        "worker_start_ray_commands": ["ray stop", _started(infra, "--address=$RAY_HEAD_IP:6379")],
    }


def _head(infra: InfraSpec, cloud: Cloud) -> dict[str, Any]:
    """Drivers of jobs and trials sit on the head, and no work: so it is on demand, and its CPUs are none that Ray counts on."""
    machine = or_blank(infra.head.machine.get(cloud), f"head.machine.{cloud}")
    return {"resources": {"CPU": 0}, "node_config": _machine(infra, infra.head, machine, cloud, spot=False)}


def _worker(infra: InfraSpec, name: str, worker: WorkerSpec, cloud: Cloud) -> dict[str, Any]:
    machine = or_blank(worker.machine.get(cloud), f"workers.{name}.machine.{cloud}")
    return {
        "min_workers": worker.least,
        "max_workers": worker.most,
        "resources": {"CPU": worker.cpus, **({"GPU": worker.gpus} if worker.gpus else {})},
        "labels": {"ray.io/market-type": "spot" if infra.spot else "on-demand"},
        **({"docker": {"worker_image": image_of(infra, gpus=worker.gpus)}} if worker.gpus else {}),
        "node_config": {**_machine(infra, worker, machine, cloud, spot=infra.spot), **_rights(infra, cloud)},
    }


def _rights(infra: InfraSpec, cloud: Cloud) -> dict[str, Any]:
    """By what workers may use the bucket: Ray gives rights to the head alone."""
    schemes, variables = _OWN_BUCKETS[cloud]
    stated = infra.aws.instance_profile if cloud == "aws" else infra.gcp.service_account
    has_keys = any(name.startswith(variables) for name in infra.secrets)
    if stated is None and (has_keys or infra.storage.partition("://")[0] not in schemes):
        return {}
    if cloud == "aws":
        return {"IamInstanceProfile": {"Name": or_blank(stated, "aws.instance_profile")}}
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    return {"serviceAccounts": [{"email": or_blank(stated, "gcp.service_account"), "scopes": scopes}]}


def _machine(infra: InfraSpec, node: NodeSpec, machine: str, cloud: Cloud, *, spot: bool) -> dict[str, Any]:
    """A machine as the cloud's own interface describes it."""
    if cloud == "aws":
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": node.disk_gib, "VolumeType": "gp3"}}
        image = or_blank(infra.aws.machine_image, "aws.machine_image")
        market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
        return {"InstanceType": machine, "ImageId": image, "BlockDeviceMappings": [disk], **market}
    image = or_blank(infra.gcp.machine_image, "gcp.machine_image")
    disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": {"diskSizeGb": node.disk_gib, "sourceImage": image}}
    stays = [{"onHostMaintenance": "TERMINATE"}] if spot or node.gpus else []  # machines with GPUs cannot move
    scheduling = {"scheduling": [*([{"provisioningModel": "SPOT"}] if spot else []), *stays]} if stays else {}
    return {"machineType": machine, "disks": [disk], **scheduling}


def _mounted(infra: InfraSpec, cloud: Cloud) -> list[str]:
    """Commands before a node's container starts, which make the shared file system seen."""
    if infra.mount is None:
        return []
    at, kind = infra.mount, _MOUNT_TYPES[cloud]
    source = or_blank((infra.aws if cloud == "aws" else infra.gcp).file_system, f"{cloud}.file_system")
    return [
        "command -v mount.nfs >/dev/null || (sudo apt-get update && sudo apt-get install --yes nfs-common)",
        f"sudo mkdir -p {at} && (mountpoint -q {at} || sudo mount -t {kind} {source} {at}) && sudo chmod 1777 {at}",
    ]


def _started(infra: InfraSpec, options: str) -> str:
    secrets = f"set -a && . {_SECRETS_FILE} && set +a && " if infra.secrets else ""
    return f"{secrets}export RAY_AUTH_MODE=token && ulimit -n 65536 && ray start {options}"

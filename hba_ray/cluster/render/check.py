"""What is wrong with files that start a cluster, found without a cloud: Ray's own schema, KubeRay's fields, the shell's syntax."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hba_ray.cluster import ray_private
from hba_ray.cluster.render.kubernetes import render_kubernetes
from hba_ray.cluster.render.ray_up import render_ray_up
from hba_ray.cluster.render.slurm import render_slurm
from hba_ray.specs.infra import InfraSpec, Target

FILES: dict[Target, str] = {"aws": "aws.yaml", "gcp": "gcp.yaml", "kubernetes": "kubernetes.yaml", "slurm": "slurm.sh"}
"""Target -> name of its file."""
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGTPE]i?)?")


def render(infra: InfraSpec, target: Target) -> str:
    """The text of a target's file."""
    if target == "slurm":
        return render_slurm(infra)
    return render_kubernetes(infra) if target == "kubernetes" else render_ray_up(infra, target)


def problems(target: Target, text: str) -> list[str]:
    """What is wrong with a target's file, a sentence each; nothing where it is sound."""
    if target == "slurm":
        return _shell_problems(text)
    try:
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except yaml.YAMLError as cause:
        return [f"is no YAML: {' '.join(str(cause).split())}"]
    if not documents or not all(isinstance(one, dict) for one in documents):
        return ["holds no manifest"]
    return _kubernetes_problems(documents) if target == "kubernetes" else ray_private.cluster_file_defects(documents[0])


def _shell_problems(text: str) -> list[str]:
    """By bash itself, and by shellcheck where it is installed."""
    found = []
    for command in (["bash", "-n"], ["shellcheck", "--format=gcc", "-"]):
        if shutil.which(command[0]):
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            found += [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return found


_CONTAINER = {"name": str, "image": str, "command": list, "env": list, "ports": list, "resources": dict, "volumeMounts": list}
_POD = {"containers": list, "volumes": list, "tolerations": list, "nodeSelector": dict, "serviceAccountName": str}
_HEAD_GROUP = {"rayStartParams": dict, "template": dict, "serviceType": str}
_WORKER_GROUP = {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict, "template": dict}
_CLUSTER = {
    "rayVersion": str, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict, "authOptions": dict, "headGroupSpec": dict,
    "workerGroupSpecs": list,
}  # fmt: skip
_JOB = {
    "entrypoint": str, "backoffLimit": int, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "suspend": bool,
    "submissionMode": str, "activeDeadlineSeconds": int, "runtimeEnvYAML": str, "rayClusterSpec": dict,
}  # fmt: skip
"""Field of KubeRay's ray.io/v1 -> its type; those that a run of a spec has a use for."""


def _kubernetes_problems(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Of every manifest its kind and name, of the RayJob all fields, of the whole that what is named is there."""
    found = []
    for number, one in enumerate(documents, 1):
        if not all((one.get("apiVersion"), one.get("kind"), (one.get("metadata") or {}).get("name"))):
            found.append(f"document {number}: lacks apiVersion, kind or metadata.name")
    jobs = [one for one in documents if one.get("kind") == "RayJob"]
    if len(jobs) != 1:
        return [*found, f"holds {len(jobs)} RayJobs: it has to hold one"]
    found += _job_problems(jobs[0])
    there = {(one.get("kind"), (one.get("metadata") or {}).get("name")) for one in documents}
    for kind, name in sorted(_named_by(documents)):
        if (kind, name) not in there:
            found.append(f"names the {kind} {name}, which is not among the manifests")
    return found


def _job_problems(job: dict[str, Any]) -> list[str]:
    if job.get("apiVersion") != "ray.io/v1":
        return [f"RayJob: apiVersion is {job.get('apiVersion')}, and KubeRay's is ray.io/v1"]
    spec = job.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    head, workers = cluster.get("headGroupSpec") or {}, cluster.get("workerGroupSpecs") or []
    found = [
        *_fields(spec, _JOB, "spec", needed=("entrypoint", "rayClusterSpec")),
        *_fields(cluster, _CLUSTER, "spec.rayClusterSpec", needed=("rayVersion", "headGroupSpec", "workerGroupSpecs")),
        *_fields(head, _HEAD_GROUP, "headGroupSpec", needed=("rayStartParams", "template")),
        *_pod_problems(head, "headGroupSpec"),
    ]
    for place, group in enumerate(workers):
        where = f"workerGroupSpecs.{place}"
        found += [*_fields(group, _WORKER_GROUP, where, needed=("groupName", "maxReplicas", "template")), *_pod_problems(group, where)]
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            found.append(f"{where}: replicas is not between minReplicas and maxReplicas")
    return [*found, *_kueue_problems(job, cluster)]


def _kueue_problems(job: dict[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """What Kueue asks of a RayJob that waits in one of its queues."""
    labels = (job.get("metadata") or {}).get("labels") or {}
    if "kueue.x-k8s.io/queue-name" not in labels:
        return ["RayJob: has a priority of Kueue and no queue"] if "kueue.x-k8s.io/priority-class" in labels else []
    spec = job.get("spec") or {}
    asked = {
        "RayJob: waits in a queue, and spec.suspend is not true": spec.get("suspend") is True,
        "RayJob: Kueue takes back nodes only where spec.shutdownAfterJobFinishes is true": spec.get("shutdownAfterJobFinishes"),
        "RayJob: Kueue admits a job whole, so enableInTreeAutoscaling has to be off": not cluster.get("enableInTreeAutoscaling"),
    }
    return [sentence for sentence, holds in asked.items() if not holds]


def _pod_problems(group: Mapping[str, Any], where: str) -> list[str]:
    pod = ((group.get("template") or {}).get("spec")) or {}
    found = _fields(pod, _POD, f"{where}.template.spec", needed=("containers",))
    volumes = {one.get("name") for one in pod.get("volumes") or ()}
    for container in pod.get("containers") or ():
        found += _fields(container, _CONTAINER, f"{where}: container", needed=("name", "image"))
        for kind, amounts in (container.get("resources") or {}).items():
            bad = [f"{name}: {amount}" for name, amount in amounts.items() if not _QUANTITY.fullmatch(str(amount))]
            found += [f"{where}: {kind} {one} is no quantity" for one in bad]
        lost = [one["name"] for one in container.get("volumeMounts") or () if one.get("name") not in volumes]
        found += [f"{where}: mounts the volume {name}, which the pod does not have" for name in lost]
    return found


def _fields(section: Mapping[str, Any], known: Mapping[str, type], where: str, *, needed: Sequence[str]) -> list[str]:
    found = [f"{where}: there is no field {name}" for name in section if name not in known]
    found += [
        f"{where}.{name}: is no {known[name].__name__}" for name in section if name in known and type(section[name]) is not known[name]
    ]
    return found + [f"{where}: lacks {name}" for name in needed if name not in section]


def _named_by(documents: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Claims and ConfigMaps that pods name."""
    found: set[tuple[str, str]] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "claimName" in value:
                found.add(("PersistentVolumeClaim", value["claimName"]))
            if isinstance(value.get("configMap"), dict):
                found.add(("ConfigMap", value["configMap"].get("name")))
            for part in value.values():
                look(part)
        elif isinstance(value, list):
            for part in value:
                look(part)

    look(list(documents))
    return found

"""One spec as a RayJob of KubeRay, on a cluster that lives as long as the job, and what it needs beside it.

With a queue of Kueue the job waits until there is room for all of its nodes and starts with all (gang admission); without one it starts
with its head, and Ray's autoscaler asks for workers and gives them back.
"""

from __future__ import annotations

import shlex
from typing import Any

from hba_ray.cluster.growth import GROWS_TO, stated
from hba_ray.cluster.render.blanks import image_of, or_blank
from hba_ray.errors import SpecError
from hba_ray.specs.infra import InfraSpec, WorkerSpec
from hba_ray.specs.reading.yaml_text import dump_yaml

RAY_VERSION = "2.60.0"
SPEC_FOLDER, SPEC_FILE = "/spec", "spec.yaml"
MLFLOW_PORT = 5000
MLFLOW_IMAGE = "ghcr.io/mlflow/mlflow:v3.17.0"
MLFLOW_CLIENTS = {
    **dict.fromkeys(("s3", "s3a"), "boto3"),
    "gs": "google-cloud-storage",
    **dict.fromkeys(("abfs", "abfss"), "azure-storage-file-datalake azure-identity"),
}
"""What MLflow reads and writes a bucket with, by the start of its address."""
SECRETS = "hba-secrets"
"""Secret whose keys are the names of `secrets`."""
_EXAMPLE = "extends: /opt/hba_ray/experiments/quickstart.yaml\n"
_HEAD = """\
# One spec as a job on Kubernetes with the KubeRay operator{kueue}, rendered by `hba cluster render kubernetes`: change the infra file,
# and render it again. Results stay in {storage}.
#
#   kubectl apply --namespace {namespace} -f kubernetes.yaml
#   kubectl logs --namespace {namespace} --follow --selector job-name={name}
#
# The spec is in the ConfigMap; `hba submit SPEC --k8s INFRA --wait` puts one there and follows the job. A pod may be evicted: the job is
# started again, and goes on where it was.
{secrets}"""
_SECRETS = """\
#
# Before: kubectl create secret generic {secret} --namespace {namespace} {literals}
"""


def render_kubernetes(infra: InfraSpec, spec: str | None = None, *, job: str | None = None) -> str:
    """The manifests of one job, as the documents of one YAML file.

    Args:
        spec: text of the spec that is run; None is the quickstart.
        job: its name; None is that of the infra file.
    """
    kubernetes = infra.kubernetes
    literals = " ".join(f"--from-literal={name}=..." for name in infra.secrets)
    head = _HEAD.format(
        kueue=" and Kueue" if kubernetes.queue else "",
        storage=infra.storage,
        namespace=kubernetes.namespace,
        name=job or infra.name,
        secrets=_SECRETS.format(secret=SECRETS, namespace=kubernetes.namespace, literals=literals) if infra.secrets else "",
    )
    return head + "---\n".join(dump_yaml(one) for one in manifests(infra, spec or _EXAMPLE, job or infra.name))


def manifests(infra: InfraSpec, spec: str, job: str) -> list[dict[str, Any]]:
    """The same as plain values: the volume where `storage` is a folder, an MLflow server where none is named, the spec, the job."""
    storage = [_claim(infra)] if infra.mount else []
    mlflow = _mlflow(infra) if infra.mlflow is None else []
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(infra, job), "data": {SPEC_FILE: spec}}
    return [*storage, *mlflow, config, ray_job(infra, job)]


def ray_job(infra: InfraSpec, job: str) -> dict[str, Any]:
    """The RayJob, in the form of KubeRay's ray.io/v1."""
    kubernetes = infra.kubernetes
    labels = {"kueue.x-k8s.io/queue-name": kubernetes.queue} if kubernetes.queue else {}
    labels |= {"kueue.x-k8s.io/priority-class": kubernetes.priority} if kubernetes.priority else {}
    words = f"compute.address=auto compute.storage={infra.storage} tracking.mlflow={infra.mlflow or _mlflow_address(infra)}"
    options = {"version": "v2", "idleTimeoutSeconds": 60 * infra.idle_minutes}
    scaling: dict[str, Any] = {} if kubernetes.queue else {"enableInTreeAutoscaling": True, "autoscalerOptions": options}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(infra, job, labels),
        "spec": {
            "entrypoint": f"hba run {SPEC_FOLDER}/{SPEC_FILE} {words}",
            "backoffLimit": 3,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            **({"suspend": True} if kubernetes.queue else {}),
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                **scaling,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": _head_pod(infra, job)}},
                "workerGroupSpecs": [_worker_group(infra, name, worker) for name, worker in infra.workers.items()],
            },
        },
    }


def _head_pod(infra: InfraSpec, job: str) -> dict[str, Any]:
    """The pod of drivers, which also holds the spec."""
    pod = _pod(infra, "ray-head", image_of(infra), {"cpu": str(infra.head.cpus), "memory": f"{infra.head.memory_gib}Gi"})
    pod["containers"][0].setdefault("env", []).append({"name": GROWS_TO, "value": stated(infra.nodes)})
    pod["containers"][0]["volumeMounts"].append({"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True})
    pod["volumes"].append({"name": "spec", "configMap": {"name": job}})
    return pod


def _worker_group(infra: InfraSpec, name: str, worker: WorkerSpec) -> dict[str, Any]:
    """Nodes of one kind: all of them at once under a queue, otherwise none before there is work."""
    gpus = {"nvidia.com/gpu": str(worker.gpus)} if worker.gpus else {}
    pod = _pod(
        infra, "ray-worker", image_of(infra, gpus=worker.gpus), {"cpu": str(worker.cpus), "memory": f"{worker.memory_gib}Gi", **gpus}
    )
    pod["containers"][0]["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})  # Ray's object store, and NCCL's buffers
    pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, worker.memory_gib // 4)}Gi"}})
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if worker.gpus else []
    count = worker.most if infra.kubernetes.queue else worker.least
    return {
        "groupName": name,
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": worker.most,
        "rayStartParams": {},
        "template": {"spec": {**({"tolerations": tolerations} if tolerations else {}), **pod}},
    }


def _pod(infra: InfraSpec, container: str, image: str, resources: dict[str, str]) -> dict[str, Any]:
    limits = {name: amount for name, amount in resources.items() if name != "cpu"}  # a pod may use CPUs that nobody else wants
    mounts, volumes = _shared(infra)
    return {
        "containers": [
            {
                "name": container,
                "image": image,
                "resources": {"requests": resources, "limits": limits},
                **_variables(infra),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
        **_account(infra),
    }


def _account(infra: InfraSpec) -> dict[str, str]:
    """Who a pod is to its cloud."""
    return {"serviceAccountName": infra.kubernetes.service_account} if infra.kubernetes.service_account else {}


def _variables(infra: InfraSpec) -> dict[str, Any]:
    """The secrets as variables of a container; nothing where there are none."""
    named = [{"name": name, "valueFrom": {"secretKeyRef": {"name": SECRETS, "key": name, "optional": True}}} for name in infra.secrets]
    return {"env": named} if named else {}


def _shared(infra: InfraSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Where a container sees the shared volume, and the pod's entry for it; nothing where `storage` is a bucket."""
    if infra.mount is None:
        return [], []
    claim = {"name": "shared", "persistentVolumeClaim": {"claimName": _claim_name(infra)}}
    return [{"name": "shared", "mountPath": infra.mount}], [claim]


def _claim(infra: InfraSpec) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(infra, _claim_name(infra)),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": or_blank(infra.kubernetes.storage_class, "kubernetes.storage_class"),
            "resources": {"requests": {"storage": f"{infra.kubernetes.storage_gib}Gi"}},
        },
    }


def _with_client(storage: str, server: list[str]) -> list[str]:
    """The command of a server of MLflow, whose image has no client of the bucket in which its artifacts are."""
    if "://" not in storage:
        return server
    return ["sh", "-c", f"pip install --quiet {MLFLOW_CLIENTS[storage.partition('://')[0]]} && exec {shlex.join(server)}"]


def _artifacts(storage: str) -> str:
    """Where MLflow's server keeps artifacts, in the form in which MLflow knows addresses.

    Raises:
        SpecError: it needs the account of a container of Azure in its address, which is not there.
    """
    if storage.startswith(("abfs://", "abfss://")) and "@" not in storage:
        way_out = "give abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER, or the address of a server of your own as mlflow"
        raise SpecError(f"storage: {storage}", "names no account, which MLflow's server on Kubernetes needs", way_out)
    return f"{storage.rstrip('/')}/mlartifacts".replace("s3a://", "s3://").replace("abfs://", "abfss://")


def _mlflow(infra: InfraSpec) -> list[dict[str, Any]]:
    """An MLflow server, its records on a volume of its own, its artifacts where results are."""
    name, artifacts = _mlflow_name(infra), _artifacts(infra.storage)
    server = [
        "mlflow", "server", "--host=0.0.0.0", f"--port={MLFLOW_PORT}", "--backend-store-uri=sqlite:////records/mlflow.db",
        f"--artifacts-destination={artifacts}", f"--allowed-hosts={name}:{MLFLOW_PORT},{name}.{infra.kubernetes.namespace}:{MLFLOW_PORT}",
    ]  # fmt: skip
    mounts, shared = _shared(infra)
    container = {
        "name": "mlflow",
        "image": MLFLOW_IMAGE,
        "command": _with_client(infra.storage, server),
        **({} if infra.mount else _variables(infra)),
        "ports": [{"containerPort": MLFLOW_PORT}],
        "volumeMounts": [{"name": "records", "mountPath": "/records"}, *mounts],
    }
    records = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(infra, f"{name}-records"),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}},
    }
    volumes = [{"name": "records", "persistentVolumeClaim": {"claimName": f"{name}-records"}}, *shared]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(infra, name),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two servers would write one sqlite file
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container], "volumes": volumes, **_account(infra)}},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(infra, name),
        "spec": {"selector": {"app": name}, "ports": [{"port": MLFLOW_PORT, "targetPort": MLFLOW_PORT}]},
    }
    return [records, deployment, service]


def _metadata(infra: InfraSpec, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"name": name, "namespace": infra.kubernetes.namespace, **({"labels": labels} if labels else {})}


def _claim_name(infra: InfraSpec) -> str:
    return f"{infra.name}-shared"


def _mlflow_name(infra: InfraSpec) -> str:
    return f"{infra.name}-mlflow"


def _mlflow_address(infra: InfraSpec) -> str:
    return f"http://{_mlflow_name(infra)}:{MLFLOW_PORT}"

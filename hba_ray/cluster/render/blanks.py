"""What only the user of a cluster knows: rendered as a blank that says its key, and told by `hba cluster check`."""

from __future__ import annotations

from dataclasses import dataclass

from hba_ray.specs.infra import InfraSpec, Target

BLANK = "FILL_IN_"
"""How a blank begins; the key of the infra file follows."""


@dataclass(frozen=True)
class Blank:
    """A value that the infra file lacks.

    Attributes:
        key: in the infra file.
        what: it is, in words.
    """

    key: str
    what: str


def or_blank(value: str | None, key: str) -> str:
    return BLANK + key if value is None else value


def blanks(infra: InfraSpec, target: Target) -> list[Blank]:
    """What a target needs to be told and the infra file does not say, in the order of the file."""
    needed: list[tuple[object, str, str]] = []
    has_gpus = any(worker.gpus for worker in infra.workers.values())
    if target != "slurm":
        needed += [(infra.image.cpu, "image.cpu", "the image for nodes without GPUs, built from clusters/Dockerfile")]
        needed += [(infra.image.gpu, "image.gpu", "the image for nodes with GPUs, built from clusters/Dockerfile")] if has_gpus else []
    if target != "kubernetes":
        needed += [(infra.mlflow, "mlflow", "the address of an MLflow server that the nodes reach")]
    if target in ("aws", "gcp"):
        cloud = infra.aws if target == "aws" else infra.gcp
        for name, node in {"head": infra.head, **{f"workers.{name}": worker for name, worker in infra.workers.items()}}.items():
            needed += [(node.machine.get(target), f"{name}.machine.{target}", "the type of machine")]
        if target == "gcp":
            needed += [(infra.gcp.project, "gcp.project", "the id of your project")]
        needed += [(cloud.machine_image, f"{target}.machine_image", "an image of a machine with Docker and NVIDIA's driver")]
        if infra.mount:
            needed += [(cloud.file_system, f"{target}.file_system", "the address of the shared file system")]
    if target == "kubernetes" and infra.mount:
        needed += [(infra.kubernetes.storage_class, "kubernetes.storage_class", "a storage class with volumes that many pods can write to")]
    return [Blank(key, what) for value, key, what in needed if value is None]

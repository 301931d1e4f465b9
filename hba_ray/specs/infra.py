"""An infra file: the image, the storage, the nodes and the limits of a cluster, from which files for AWS, Google Cloud, Kubernetes
and Slurm are rendered (hba_ray/cluster/render). It lies beside the specs, and no result depends on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec
from hba_ray.specs.reading.files import UnreadableFile, whole_text
from hba_ray.specs.reading.yaml_text import InvalidYaml, parse_yaml
from hba_ray.specs.sections.compute import NodesSpec

Target = Literal["aws", "gcp", "kubernetes", "slurm"]
Cloud = Literal["aws", "gcp"]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A name that clouds and Kubernetes take: lower-case letters, digits and dashes."""
VariableName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


class NodeSpec(Spec):
    """A kind of node."""

    machine: dict[Cloud, str] = Field(default_factory=dict)
    """Type of machine on each cloud."""
    cpus: int = Field(ge=1)
    """CPUs that Ray counts on."""
    gpus: int = Field(default=0, ge=0)
    """GPUs that Ray counts on."""
    memory_gib: int = Field(ge=1)
    """Memory, in GiB."""
    disk_gib: int = Field(default=200, ge=20)
    """Disk of the node itself, in GiB."""


class WorkerSpec(NodeSpec):
    """A kind of node that comes when there is work and goes when there is none."""

    least: int = Field(default=0, ge=0)
    """Nodes that are always there."""
    most: int = Field(ge=1)
    """Nodes that there may be at a time."""
    dollars_per_hour: float | None = Field(default=None, ge=0)
    """Price of one node, in US dollars an hour, by which runs on AWS, Google Cloud and Kubernetes say what they have cost so far."""

    @model_validator(mode="after")
    def _is_ordered(self) -> WorkerSpec:
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most {self.most}: least is at most as large")
        return self


class ImageSpec(Spec):
    """Images built from clusters/Dockerfile, by their addresses in a registry; null where they are not known yet."""

    cpu: str | None = None
    """For nodes without GPUs, the head among them."""
    gpu: str | None = None
    """For nodes with GPUs."""


class AwsSpec(Spec):
    """What only AWS asks for."""

    region: str = "us-east-1"
    machine_image: str | None = None
    """An AMI with Docker and, for GPUs, NVIDIA's driver and container toolkit: AWS's "Deep Learning Base" is one."""
    file_system: str | None = None
    """Address of an EFS file system, `fs-ID.efs.REGION.amazonaws.com:/`, where `storage` is a folder."""


class GcpSpec(Spec):
    """What only Google Cloud asks for."""

    project: str | None = None
    """Id of the project."""
    region: str = "us-central1"
    zone: str = "us-central1-a"
    machine_image: str | None = None
    """An image with Docker and, for GPUs, NVIDIA's driver and container toolkit: those of the project deeplearning-platform-release do."""
    file_system: str | None = None
    """Address of a Filestore share, `ADDRESS:/SHARE`, where `storage` is a folder."""


class KubernetesSpec(Spec):
    """What only Kubernetes asks for; the KubeRay operator has to be there, from 1.5 on."""

    namespace: DnsLabel = "default"
    storage_class: str | None = None
    """Storage class whose volumes many pods can write to (ReadWriteMany), where `storage` is a folder."""
    storage_gib: int = Field(default=500, ge=1)
    """Size of that volume, in GiB."""
    queue: str | None = None
    """LocalQueue of Kueue: a job waits until the queue has room for all of its nodes, and starts with all. Null starts at once,
    without workers, which then come one by one."""
    priority: str | None = None
    """WorkloadPriorityClass of Kueue."""

    @model_validator(mode="after")
    def _has_queue(self) -> KubernetesSpec:
        if self.priority and not self.queue:
            raise ValueError("priority is one of Kueue's, and there is no queue: give queue, too")
        return self


class SlurmSpec(Spec):
    """What only Slurm asks for."""

    nodes: int = Field(default=2, ge=1)
    time: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")
    """Time limit, [DAYS-]HH:MM:SS. The job is queued again before it, and goes on."""
    grace_seconds: int = Field(default=300, ge=60)
    """Seconds before the limit at which a run is told to end; it writes what it has."""
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    """An image in the form that `runtime` takes; null uses the .venv of the checkout, which all nodes see."""
    runtime: Literal["enroot", "apptainer"] = "enroot"
    """What runs the container: enroot by its plugin for Slurm, pyxis, or apptainer."""


class InfraSpec(Spec):
    """A cluster, for whichever of the four kinds of places."""

    name: DnsLabel = "hba"
    image: ImageSpec = ImageSpec()
    storage: str = Field(default="/shared/runs", min_length=1)
    """`compute.storage` of the specs that run there: a folder that all nodes see, or the address of one in a bucket."""
    mlflow: str | None = None
    """`tracking.mlflow` of the specs that run there: the address of a server. On Kubernetes, null renders one."""
    spot: bool = True
    """Whether workers may be taken away at any time, which is cheaper. The head stays."""
    idle_minutes: int = Field(default=10, ge=1)
    """Minutes after which a worker without work goes."""
    head: NodeSpec
    workers: dict[DnsLabel, WorkerSpec] = Field(min_length=1)
    secrets: tuple[VariableName, ...] = ()
    """Names of environment variables that jobs need, HF_TOKEN for example. Their values are never written into a file."""
    aws: AwsSpec = AwsSpec()
    gcp: GcpSpec = GcpSpec()
    kubernetes: KubernetesSpec = KubernetesSpec()
    slurm: SlurmSpec = SlurmSpec()

    @field_validator("storage")
    @classmethod
    def _is_seen_by_all(cls, storage: str) -> str:
        if "://" not in storage and not Path(storage).is_absolute():
            raise ValueError(f"'{storage}' is relative, and each node has folders of its own: give an absolute folder that all nodes see")
        return storage

    @property
    def nodes(self) -> list[NodesSpec]:
        """The workers, as Ray counts them."""
        return [
            NodesSpec(cpus=worker.cpus, gpus=worker.gpus, most=worker.most, dollars_per_hour=worker.dollars_per_hour)
            for worker in self.workers.values()
        ]

    @property
    def mount(self) -> str | None:
        """The folder at which nodes see the shared file system: the first part of `storage`; None where that is a bucket."""
        return None if "://" in self.storage else f"/{Path(self.storage).parts[1]}"


def load_infra(file: Path) -> InfraSpec:
    """Reads an infra file.

    Raises:
        SpecError: it is not there, is no YAML, or a key in it is missing, unknown or not valid; names file, line and key.
    """
    way_out = "clusters/infra.yaml shows the form"
    try:
        raw, lines = parse_yaml(whole_text(file))
    except UnreadableFile as cause:
        raise SpecError(str(file), cause.what, way_out) from None
    except InvalidYaml as cause:
        raise SpecError(f"{file}{cause.place}", cause.what, way_out) from None
    try:
        return InfraSpec.model_validate(raw)
    except ValidationError as cause:
        raise SpecError(*_first_defect(cause, file, lines), way_out) from None


def _first_defect(cause: ValidationError, file: Path, lines: dict[tuple[str, ...], int]) -> tuple[str, str]:
    """Where the first defect is, and what it is."""
    error: Any = cause.errors()[0]
    path = tuple(map(str, error["loc"]))
    known = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in lines), None)
    where = f"{file}:{lines[known]}" if known else str(file)
    return f"{where}: {'.'.join(path)}" if path else where, error["msg"].removeprefix("Value error, ")

"""An infra file: the image, the storage, the nodes and the limits of a cluster, from which files for AWS, Google Cloud, Kubernetes
and Slurm are rendered (hba_ray/cluster/render). It lies beside the specs, and no result depends on it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec, folder_or_bucket
from hba_ray.specs.reading.defects import located
from hba_ray.specs.reading.files import UnreadableFile, whole_text
from hba_ray.specs.reading.secrets import holds_secret
from hba_ray.specs.reading.yaml_text import InvalidYaml, parse_yaml
from hba_ray.specs.sections.compute import NodesSpec

Target = Literal["aws", "gcp", "kubernetes", "slurm"]
Cloud = Literal["aws", "gcp"]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A name that clouds and Kubernetes take: lower-case letters, digits and dashes."""
BLANK = "FILL_IN_"
"""How a blank of a rendered file begins; the key of the infra file follows."""
HEAD = "head"
"""The kind of node that the head is, in files that list kinds."""
_WORD = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def _filled_in(value: str) -> str:
    """A word of a rendered file's commands; a validator gives it to pydantic.

    Raises:
        ValueError: it is a blank still, or holds what shells and containers read as their own.
    """
    if BLANK in value:
        raise ValueError(f"'{value}' is a blank of a rendered file: give the value, or null while it is not known")
    if not _WORD.fullmatch(value):
        raise ValueError(f"'{value}' has to be one word, of letters, digits and @%+=:,./-_: it becomes part of commands")
    return value


Word = Annotated[str, AfterValidator(_filled_in)]
VariableName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


class NodeSpec(Spec):
    """A kind of node."""

    machine: dict[Cloud, Word] = Field(default_factory=dict)
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

    cpu: Word | None = None
    """For nodes without GPUs, the head among them."""
    gpu: Word | None = None
    """For nodes with GPUs."""


class AwsSpec(Spec):
    """What only AWS asks for."""

    region: Word = "us-east-1"
    machine_image: Word | None = None
    """An AMI with Docker and, for GPUs, NVIDIA's driver and container toolkit: AWS's "Deep Learning Base" is one."""
    file_system: Word | None = None
    """Address of an EFS file system, `fs-ID.efs.REGION.amazonaws.com:/`, where `storage` is a folder."""
    instance_profile: Word | None = None
    """Name of an instance profile that gives workers rights to the bucket, where `storage` is one and `secrets` names no AWS_ variables.
    The head has the role that Ray makes for it, which has to be allowed to pass this one (iam:PassRole)."""


class GcpSpec(Spec):
    """What only Google Cloud asks for."""

    project: Word | None = None
    """Id of the project."""
    region: Word = "us-central1"
    zone: Word = "us-central1-a"
    machine_image: Word | None = None
    """An image with Docker and, for GPUs, NVIDIA's driver and container toolkit: those of the project deeplearning-platform-release do."""
    file_system: Word | None = None
    """Address of a Filestore share, `ADDRESS:/SHARE`, where `storage` is a folder."""
    service_account: Word | None = None
    """E-mail address of a service account that gives workers rights to the bucket, where `storage` is one and `secrets` names no GOOGLE_
    variables. The head has the account that Ray makes for it."""


class KubernetesSpec(Spec):
    """What only Kubernetes asks for; the KubeRay operator has to be there, from 1.5 on."""

    namespace: DnsLabel = "default"
    storage_class: Word | None = None
    """Storage class whose volumes many pods can write to (ReadWriteMany), where `storage` is a folder."""
    storage_gib: int = Field(default=500, ge=1)
    """Size of that volume, in GiB."""
    service_account: Word | None = None
    """Service account of all pods, by which clouds give them rights to a bucket; null is the namespace's own."""
    queue: Word | None = None
    """LocalQueue of Kueue: a job waits until the queue has room for all of its nodes, and starts with all. Null starts at once,
    without workers, which then come one by one."""
    priority: Word | None = None
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
    partition: Word | None = None
    account: Word | None = None
    container: str | None = None
    """An image in the form that `runtime` takes; null uses the .venv of the checkout, which all nodes see."""
    runtime: Literal["enroot", "apptainer"] = "enroot"
    """What runs the container: enroot by its plugin for Slurm, pyxis, or apptainer."""


class InfraSpec(Spec):
    """A cluster, for whichever of the four kinds of places."""

    name: DnsLabel = "hba"
    image: ImageSpec = ImageSpec()
    storage: Word = "/shared/runs"
    """`compute.storage` of the specs that run there: a folder that all nodes see, or the address of one in a bucket."""
    mlflow: Word | None = None
    """`tracking.mlflow` of the specs that run there: the address of a server. On Kubernetes, null renders one. A server that asks for a
    password is told it by the variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which `secrets` then names."""
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
        if "://" not in folder_or_bucket(storage, "runs"):
            if not Path(storage).is_absolute():
                raise ValueError("is relative, and each node has folders of its own: give an absolute folder that all nodes see")
            if len(Path(storage).parts) < 2 or ".." in Path(storage).parts:
                raise ValueError("is no folder that a file system can be mounted at: give one as /shared/runs")
        return storage

    @field_validator("mlflow", mode="before")
    @classmethod
    def _is_a_server(cls, address: object) -> object:
        if isinstance(address, str) and BLANK not in address:
            if "${" in address or holds_secret(address):
                way = "leave it out here, and name MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in secrets"
                raise ValueError(f"holds a password, or a reference to one, which rendered files must not: {way}")
            if not re.match(r"https?://\w", address):
                raise ValueError("is no address of a server: give it as http://HOST:PORT")
        return address

    @field_validator("workers")
    @classmethod
    def _are_no_heads(cls, workers: dict[str, WorkerSpec]) -> dict[str, WorkerSpec]:
        if HEAD in workers:
            raise ValueError(f"a kind of worker is named '{HEAD}', as the head is: give it another name")
        return workers

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

    def place(path: tuple[str, ...]) -> str:
        known = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in lines), None)
        return f"{file}:{lines[known]}" if known else str(file)

    try:
        return InfraSpec.model_validate(raw)
    except ValidationError as cause:
        raise located(cause, InfraSpec, place, way_out) from None

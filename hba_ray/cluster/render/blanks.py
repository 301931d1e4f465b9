"""What only the user of a cluster knows: a blank in a rendered file says its key, and `hba cluster check` says what it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hba_ray.specs.infra import BLANK, InfraSpec

_KEY = re.compile(BLANK + r"([\w.-]*\w)")
WORDS = {
    "image.cpu": "the image for nodes without GPUs, built from clusters/Dockerfile",
    "image.gpu": "the image for nodes with GPUs, built from clusters/Dockerfile",
    "mlflow": "the address of an MLflow server that the nodes reach",
    "machine": "the type of machine",
    "project": "the id of your project",
    "machine_image": "an image of a machine with Docker and NVIDIA's driver",
    "file_system": "the address of the shared file system",
    "instance_profile": "the name of an instance profile that gives workers rights to the bucket, unless secrets names AWS_ variables",
    "service_account": "a service account that gives workers rights to the bucket, unless secrets names GOOGLE_ variables",
    "storage_class": "a storage class with volumes that many pods can write to",
}
"""What a key is, by the whole key or by the name that all places share; in the order in which it is told."""


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


def image_of(infra: InfraSpec, *, gpus: int = 0) -> str:
    """The image of nodes with so many GPUs."""
    return or_blank(infra.image.gpu, "image.gpu") if gpus else or_blank(infra.image.cpu, "image.cpu")


def blanks(text: str) -> list[Blank]:
    """The blanks of a rendered file, each once."""
    named = [(_kind_of(key), key) for key in dict.fromkeys(_KEY.findall(text))]
    return [Blank(key, WORDS[kind]) for kind, key in sorted(named, key=lambda one: list(WORDS).index(one[0]))]


def _kind_of(key: str) -> str:
    *path, name = key.split(".")
    return key if key in WORDS else "machine" if path[-1] == "machine" else name

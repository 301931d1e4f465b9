"""What all sections of a spec have in common: frozen, strict about keys, and named by their content.

The name is a fingerprint of `Spec.identity()`. Fields of the first release always enter it. A field that came later is
declared with `Added` and enters only where it is set to something new, so an upgrade renames no finished step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

LARGEST = 2**63 - 1
"""The largest whole number that libraries such as NumPy and Ray accept."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""The seeds of NumPy and transformers have 32 bits."""
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
Name = TypeVar("Name")


@dataclass(frozen=True)
class Added:
    """Marks a field that a section got after the first release:

        clip: Annotated[float, Added(before=0.0)] = Field(default=0.0, ge=0)

    Attributes:
        before: the value with which the section does what it did before it had the field. It stays as it is when the
            default changes.
    """

    before: Any


@dataclass(frozen=True)
class TakesSecrets:
    """Marks a text field that may refer to a secret, which stays a reference until the text is used: see `specs/reading/secrets.py`."""


class Spec(BaseModel):
    """A section of a spec. The string under a field is its description, also in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _means_what_it_says(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuses values that a later step would silently misread, or fail on."""
        if isinstance(value, bool) and not {bool, Any} & _leaves(cls.model_fields[field.field_name or ""].annotation):
            raise ValueError(
                f"is {str(value).lower()}, a yes or no; YAML reads on, off, yes and no so, too: give it in quotes, or a number"
            )
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError("is no number of 64 bits, the largest that libraries accept")
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
            raise ValueError("holds a zero byte, or half a character")
        return value

    def identity(self) -> dict[str, Any]:
        """What enters the fingerprints of results that depend on this section, as plain JSON values."""
        return identity_values(self)


def identity_values(section: Spec, *, include: Collection[str] | None = None, exclude: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a section as plain JSON values, without those that were `Added` and do nothing new, at every depth.

    Every fingerprint takes the fields of a section from here; `model_dump` would bring in fields that came later.

    Args:
        include: names of the fields to take; None takes all.
        exclude: names of fields to leave out.
    """
    values = _without_unused(section, section.model_dump(mode="json"))
    return {name: value for name, value in values.items() if (include is None or name in include) and name not in exclude}


def _without_unused(value: Any, plain: Any) -> Any:
    """`plain`, the JSON form of `value`, without the fields of its sections that do nothing new."""
    if isinstance(value, Spec):
        fields = type(value).model_fields
        used = [name for name, field in fields.items() if not _does_nothing_new(field, plain[name])]
        return {name: _without_unused(getattr(value, name), plain[name]) for name in used}
    if isinstance(value, Mapping):
        return {name: _without_unused(inner, plain[str(name)]) for name, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_without_unused(inner, one) for inner, one in zip(value, plain, strict=True)]
    return plain


def _does_nothing_new(field: FieldInfo, plain: Any) -> bool:
    return any(isinstance(mark, Added) and _ANY.dump_python(mark.before, mode="json") == plain for mark in field.metadata)


def _leaves(kind: Any) -> set[Any]:
    """The types at the leaves of an annotation: {int, NoneType} of `int | None`, {str} of a Literal of texts."""
    inner = [part for part in get_args(kind) if part is not Ellipsis]
    return set().union(*map(_leaves, inner)) if inner and get_origin(kind) is not Literal else {type(value) for value in inner} or {kind}


def once_each(names: tuple[Name, ...], what: str) -> tuple[Name, ...]:
    """The names of a list that repeats none; a validator gives them to pydantic.

    Args:
        what: what one of them is, for the error ("a stream").

    Raises:
        ValueError: one of them is there twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"{what} is named twice in {list(names)}")
    return names


BUCKETS = ("s3", "s3a", "gs", "abfs", "abfss")
"""Schemes of the addresses of object storage that knows conditional writes."""
_ALMOST_AN_ADDRESS = re.compile(rf"({'|'.join(BUCKETS)})(:|//)")


def local_folder(name: str | None, what: str) -> str | None:
    """The name of a folder, if it is none in object storage; a validator gives it to pydantic.

    Args:
        what: what lies there, for the error ("runs").

    Raises:
        ValueError: it is an address such as s3://BUCKET/FOLDER, which would be taken for a folder of that name here.
    """
    if name is not None and "://" in name:
        raise ValueError(
            f"is an address of object storage, from which {what} cannot be read or written: give a folder that all machines see, such "
            "as one into which the bucket is mounted (goofys, gcsfuse, rclone mount) or copied (aws s3 sync, gsutil rsync)"
        )
    return name


def folder_or_bucket(name: str, what: str) -> str:
    """The name of a folder or the address of one in a bucket; a validator gives it to pydantic.

    Raises:
        ValueError: it is an address of something else, or lacks a part.
    """
    scheme, _, bucket = name.partition("://")
    if "://" not in name:
        if slip := _ALMOST_AN_ADDRESS.match(name):
            raise ValueError(f"is no address of a bucket, and would be a folder of that name here: write {slip[1]}://BUCKET/FOLDER")
        return name
    if scheme not in BUCKETS:
        known = ", ".join(BUCKETS)
        raise ValueError(f"is an address from which {what} cannot be read or written: give one that begins with {known}, or a folder")
    if not bucket or bucket.startswith("/"):
        raise ValueError(f"names no bucket: write {scheme}://BUCKET/FOLDER")
    return name


def section_at(kind: Any, path: Sequence[str]) -> type[BaseModel] | None:
    """The class of the section that a key path leads to; None where it leads to no section.

    Args:
        kind: annotation to start from: a section, or an optional one, or a mapping or list of sections. In the last two
            the next part of the path is any name or number.
        path: names of fields.
    """
    origin, inner = get_origin(kind), [part for part in get_args(kind) if part is not Ellipsis]
    if origin in (Union, UnionType):
        return next((found for part in inner if (found := section_at(part, path))), None)
    if origin in (dict, tuple, list):
        return section_at(inner[-1], path[1:]) if path else None
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None
    if not path:
        return kind
    field = kind.model_fields.get(path[0])
    return section_at(field.annotation, path[1:]) if field else None


def has_key(section: type[BaseModel], key: str) -> bool:
    """Whether a dotted key names a field of a section, or of a section in it.

    >>> from hba_ray.specs.sections.model import ModelSpec
    >>> has_key(ModelSpec, "lora.rank"), has_key(ModelSpec, "lora.rnk")
    (True, False)
    """
    *path, name = key.split(".")
    found = section_at(section, path)
    return found is not None and name in found.model_fields


def value_at(spec: Spec, key: str) -> Any:
    """The value at a dotted key, as plain JSON; None where a section on the way is null.

    Raises:
        KeyError: no such key.
    """
    value: Any = spec.model_dump(mode="json")
    for name in key.split("."):
        value = None if value is None else value[name]
    return value


def put_at(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value at a dotted key of nested mappings; sections that are missing or null are made.

    Raises:
        KeyError: a section on the way holds a value; names it.

    >>> put_at(values := {"sft": None}, "sft.lr", 0.1); values
    {'sft': {'lr': 0.1}}
    """
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            raise KeyError(section)
        values[section] = inner
        values = inner
    values[last] = value


def flat(values: Any, *, whole: Callable[[Mapping[Any, Any]], bool] = lambda value: False) -> dict[str, Any]:
    """Nested mappings as one, by dotted keys; an empty mapping is a value.

    Args:
        whole: mappings that count as one value, too.

    >>> flat({"sft": {"lr": 0.1}, "grpo.verl": {}, "bam": {"streams": ["pose"]}})
    {'sft.lr': 0.1, 'grpo.verl': {}, 'bam.streams': ['pose']}
    """
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not whole(value):
            leaves |= {f"{name}.{inner}": leaf for inner, leaf in flat(value, whole=whole).items()}
        else:
            leaves[str(name)] = value
    return leaves


def fingerprint(identity: Any) -> str:
    """A name for plain JSON values: the first twelve hexadecimal digits of their SHA-256, whatever the order of keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

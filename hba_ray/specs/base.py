"""What all sections of a spec have in common: frozen, strict about keys, hashable by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A section of a spec. The string under a field is its description, also in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The section as plain JSON values: what enters a fingerprint."""
        return self.model_dump(mode="json")


def section_at(kind: Any, path: Sequence[str]) -> type[BaseModel] | None:
    """The section at a key path below a section's annotation; None where the path leads to none.

    Sections may be optional, and in mappings and lists: there one part of the path is any name or number.
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
    """Whether a dotted key is one of the section's own or of a section in it.

    >>> from hba_ray.specs.model import ModelSpec
    >>> has_key(ModelSpec, "lora.rank"), has_key(ModelSpec, "lora.rnk")
    (True, False)
    """
    *path, name = key.split(".")
    found = section_at(section, path)
    return found is not None and name in found.model_fields


def value_at(spec: Spec, key: str) -> Any:
    """The value of a dotted key as plain JSON; None behind a section that is left out.

    Raises:
        KeyError: no such key.
    """
    value: Any = spec.model_dump(mode="json")
    for name in key.split("."):
        value = None if value is None else value[name]
    return value


def fingerprint(identity: Any) -> str:
    """Twelve hexadecimal digits that name what `identity` (JSON values) says.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

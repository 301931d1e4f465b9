"""What pydantic says of a wrong spec, in words that help: the key, what is wrong, the key that was probably meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from hba_ray.specs.base import has_key, section_at
from hba_ray.specs.experiment import ExperimentSpec

_IN_YAML = {
    "tuple_type": "it takes a list, as in [a, b]",
    "model_type": "it takes keys, as in {key: value}",
    "dict_type": "it takes keys, as in {key: value}",
}
"""Pydantic's names of types are those of Python."""


def problem(error: Any) -> tuple[tuple[str, ...], str, str]:
    """Key path, what is wrong with it, and a way out (or nothing), of one of `ValidationError.errors()`."""
    path = tuple(str(part) for part in error["loc"])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        section = section_at(ExperimentSpec, path[:-1])
        fields = list(section.model_fields) if section else []
        return path, f"unknown key '{key}'", _suggestion(path, section, fields)
    if error["type"] == "missing":
        return path, f"'{key}' is missing", ""
    message = _IN_YAML.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict | BaseModel) else f" (given: {str(error['input'])[:80]!r})"
    return path, f"{key}: {message}{given}" if key else message, _meaning(path) if error["type"] == "string_pattern_mismatch" else ""


def _meaning(path: tuple[str, ...]) -> str:
    """The description of a field."""
    section = section_at(ExperimentSpec, path[:-1])
    return (section.model_fields[path[-1]].description or "") if section and path[-1] in section.model_fields else ""


def _suggestion(path: tuple[str, ...], section: type[BaseModel] | None, fields: list[str]) -> str:
    """The valid key that was probably meant: a misspelling first, then the same key in another section."""
    if len(path) == 1 and has_key(ExperimentSpec, path[0]):
        *sections, name = path[0].split(".")
        return f"in a file keys are nested: {': {'.join((*sections, name))}: ...{'}' * len(sections)}"
    here = [".".join((*path[:-1], name)) for name in _close(path[-1], fields, 0.75)]
    maybe = [".".join((*path[:-1], name)) for name in _close(path[-1], fields, 0.5) or _described(path[-1], section)]
    elsewhere = _elsewhere(path[-1])
    best = [*here, *([elsewhere] if elsewhere else []), *maybe]
    return f"did you mean '{best[0]}'?" if best else f"keys here: {', '.join(fields)}"


def _close(key: str, names: list[str], cutoff: float) -> list[str]:
    return get_close_matches(key, names, n=1, cutoff=cutoff)


def _described(key: str, section: type[BaseModel] | None) -> list[str]:
    """Fields whose description says the words of `key`: learning_rate is `lr`."""
    words = key.replace("_", " ").lower()
    fields = section.model_fields if section else {}
    return [name for name, field in fields.items() if words in (field.description or "").lower()]


def _elsewhere(key: str, section: type[BaseModel] = ExperimentSpec, prefix: str = "") -> str | None:
    """The dotted path of a key that is valid in another section."""
    for name, field in section.model_fields.items():
        if name == key:
            return prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found = _elsewhere(key, kind, f"{prefix}{name}.")
            if found:
                return found
    return None

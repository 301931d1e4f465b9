"""What is wrong with a YAML file whose keys are missing, unknown or not valid: the key, the defect, and the key that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from hba_ray.errors import SpecError
from hba_ray.specs.base import has_key, section_at
from hba_ray.specs.reading.secrets import masked

_KEY = re.compile(r"[\w.+ -]{1,80}")
_TYPES_IN_YAML = {
    "tuple_type": "it takes a list, as in [a, b]",
    "model_type": "it takes keys, as in {key: value}",
    "dict_type": "it takes keys, as in {key: value}",
    "string_type": "it takes a text; in YAML, yes, no, null, numbers and times are texts only in quotes",
}
"""Kind of a pydantic error -> what to say, since pydantic names Python's types."""


def located(invalid: ValidationError, of: type[BaseModel], locate: Callable[[tuple[str, ...]], str], way_out: str = "") -> SpecError:
    """One error for all defects of a file: the place and the way out of the first, and a line for each of the next five.

    Args:
        of: what the file holds.
        locate: the place of a key path.
        way_out: where a defect has none of its own.
    """
    (path, what, own), *others = problems(invalid, of)
    rest = [f"also {locate(other)}: {said}" for other, said, _ in others[:5]]
    return SpecError(locate(path), what, "\n  ".join(part for part in (own or way_out, *rest) if part))


def problems(invalid: ValidationError, of: type[BaseModel]) -> list[tuple[tuple[str, ...], str, str]]:
    """Key path, defect and way out of all that is wrong with a file; unknown keys first, since a misspelt one explains a missing one.

    Args:
        of: what the file holds.
    """
    errors = sorted(invalid.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    return [_problem(error, of) for error in errors]


def _problem(error: Any, of: type[BaseModel]) -> tuple[tuple[str, ...], str, str]:
    """Key path, defect and way out of an invalid file; the way out may be empty.

    Args:
        error: one of pydantic's `ValidationError.errors()`.
        of: what the file holds.
    """
    path = tuple(str(part) for part in error["loc"])
    key = masked(".".join(path))
    if error["type"] == "extra_forbidden":
        section = section_at(of, path[:-1])
        fields = list(section.model_fields) if section else []
        shown = f"'{key}'" if _KEY.fullmatch(key) else "that is no name; is this the right file?"  # a line of any file may look like a key
        return path, f"unknown key {shown}", _suggestion(path, of, section, fields)
    if error["type"] == "missing":
        return path, f"'{key}' is missing", ""
    message = _TYPES_IN_YAML.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict | BaseModel) else f" (given: {_short(error['input'])!r})"
    return path, f"{key}: {message}{given}" if key else message, _meaning(path, of) if error["type"] == "string_pattern_mismatch" else ""


def _short(value: Any) -> str:
    """A value for an error, without passwords; Python writes no number of more than some four thousand digits."""
    is_huge = isinstance(value, int) and value.bit_length() > 400
    return "a number of hundreds of digits" if is_huge else masked(str(value))[:80]


def _meaning(path: tuple[str, ...], of: type[BaseModel]) -> str:
    """The description of the field at a key path."""
    section = section_at(of, path[:-1])
    return (section.model_fields[path[-1]].description or "") if section and path[-1] in section.model_fields else ""


def _suggestion(path: tuple[str, ...], of: type[BaseModel], section: type[BaseModel] | None, fields: list[str]) -> str:
    """A hint at the valid key that was probably meant: a similar one here, the same in another section, or one described so."""
    if len(path) == 1 and has_key(of, path[0]):
        *sections, name = path[0].split(".")
        return f"in a file keys are nested: {': {'.join((*sections, name))}: ...{'}' * len(sections)}"
    here = [".".join((*path[:-1], name)) for name in _close(path[-1], fields, 0.75)]
    maybe = [".".join((*path[:-1], name)) for name in _close(path[-1], fields, 0.5) or _described(path[-1], section)]
    elsewhere = _elsewhere(path[-1], of)
    best = [*here, *([elsewhere] if elsewhere else []), *maybe]
    return f"did you mean '{best[0]}'?" if best else f"keys here: {', '.join(fields)}"


def _close(key: str, names: list[str], cutoff: float) -> list[str]:
    """The most similar name, in a list; an empty list where none is similar."""
    return get_close_matches(key, names, n=1, cutoff=cutoff)


def _described(key: str, section: type[BaseModel] | None) -> list[str]:
    """Fields whose description holds the words of a key: `lr` is described as learning rate."""
    words = key.replace("_", " ").lower()
    fields = section.model_fields if section else {}
    return [name for name, field in fields.items() if words in (field.description or "").lower()]


def _elsewhere(key: str, section: type[BaseModel], prefix: str = "") -> str | None:
    """The dotted path of a key that is valid in this section or in one in it."""
    for name, field in section.model_fields.items():
        if name == key:
            return prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found = _elsewhere(key, kind, f"{prefix}{name}.")
            if found:
                return found
    return None

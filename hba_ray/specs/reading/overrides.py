"""Words of the command line, `key=value`, read as what their field takes.

A field that takes text gets the value as it is typed, with every sign in it. Other fields get what the value is as YAML: a number, a
yes or no, null, a list, a mapping. Nothing behind ` #` is dropped, as it would be in a file: on the command line there are no
comments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from hba_ray.errors import SpecError
from hba_ray.specs.experiment import ExperimentSpec
from hba_ray.specs.reading.secrets import masked
from hba_ray.specs.reading.yaml_text import InvalidYaml, has_comment, parse_yaml

COMMAND_LINE = "command line"
MISSING = "???"
"""OmegaConf's mark of a value that is still to come."""
MOST_DOTS = 20
"""Most dots in the key of an override; keys of a spec have a few."""
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")
OVERRIDE_OF_A_LIST = re.compile(r"[A-Za-z_][\w.]*(\[\d+\]|\.\d+)[\w.\[\]]*=")


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """The nested values of `key=value` words; of two words for one key the later wins.

    Raises:
        SpecError: a word is of another form, or its value is not YAML where its field takes no text.
    """
    values: dict[str, Any] = {}
    for word in words:
        if OVERRIDE_OF_A_LIST.match(word):
            raise SpecError(COMMAND_LINE, f"'{_short(word)}' sets a part of a list", "give the whole list, for example stages=[sft,bam]")
        if not OVERRIDE.match(word):
            raise SpecError(COMMAND_LINE, f"'{_short(word)}' is not of the form key=value", "for example sft.lr=1e-4")
        key, _, stated = word.partition("=")
        if key.count(".") > MOST_DOTS:
            raise SpecError(COMMAND_LINE, f"unknown key '{_short(word)}'", "no key of a spec is as deep")
        if stated.strip() == MISSING:
            raise SpecError(COMMAND_LINE, f"{word}: {MISSING} stands for a value that is still to come", "give the value")
        try:
            value = typed(stated, kinds_at(ExperimentSpec, key.split(".")))
        except InvalidYaml as cause:
            raise SpecError(COMMAND_LINE, f"{_short(word)}: {cause.what}") from None
        *sections, name = key.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            if not isinstance(place[section], dict):
                raise SpecError(
                    COMMAND_LINE, f"'{key}' sets a part of '{section}', which another word gives as a whole", "drop one of them"
                )
            place = place[section]
        place[name] = value
    return values


def typed(stated: str, kinds: frozenset[Any]) -> Any:
    """The value that a text stands for in a field.

    Args:
        kinds: what the field takes, as `kinds_at` gives it.

    Raises:
        InvalidYaml: the field takes no text, and this is no YAML.
    """
    if kinds and kinds <= {str, NoneType}:
        return None if stated == "null" and NoneType in kinds else stated
    takes_text = bool({str, Any} & kinds)
    try:
        if has_comment(stated):
            return stated
        value, _ = parse_yaml(stated)
    except InvalidYaml:
        if str in kinds:
            return stated
        raise
    if takes_text and isinstance(value, str) and value == stated.strip():
        return stated
    return stated if str in kinds and type(value) not in kinds else value


def kinds_at(kind: Any, path: Sequence[str]) -> frozenset[Any]:
    """The types that the field at a key path takes: those of a union one by one, str for names to choose from, and of lists
    and mappings `list` and `dict`. Empty where the path leads to no field.

    >>> sorted(kind.__name__ for kind in kinds_at(ExperimentSpec, ["atlas", "root"]))
    ['NoneType', 'str']

    Args:
        kind: annotation to start from.
    """
    if path[:2] == ["sweep", "arms"] and len(path) > 3 and kind is ExperimentSpec:
        return kinds_at(kind, path[3:])  # an arm sets keys of the spec
    origin, inner = get_origin(kind), [part for part in get_args(kind) if part is not Ellipsis]
    if origin is Annotated:
        return kinds_at(inner[0], path)
    if origin in (Union, UnionType):
        return frozenset().union(*(kinds_at(part, path) for part in inner))
    if isinstance(kind, type) and issubclass(kind, BaseModel) and path:
        field = kind.model_fields.get(path[0])
        return kinds_at(field.annotation, path[1:]) if field else frozenset()
    if origin is dict and path:
        return kinds_at(inner[-1], path[1:])
    if origin is Literal:
        return frozenset(map(type, inner))
    if kind is Any:
        return frozenset({Any})
    found = {tuple: list, list: list, dict: dict}.get(origin, dict if isinstance(kind, type) and issubclass(kind, BaseModel) else kind)
    return frozenset() if path else frozenset({found})


def _short(word: str) -> str:
    word = masked(word)
    return word if len(word) <= 200 else f"{word[:200]}…"

"""Reads specs: from YAML files and `key=value` overrides to a validated `ExperimentSpec`, with errors that name file, line and key.

`specs/reading` turns texts into plain values, which are merged here; pydantic validates the result.
`as_yaml` writes a spec so that it is read back the same. Files of prompts, which a spec names, are read by `load_prompt_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec, TakesSecrets, section_at
from hba_ray.specs.experiment import ExperimentSpec
from hba_ray.specs.reading.defects import located
from hba_ray.specs.reading.files import UnreadableFile, whole_text
from hba_ray.specs.reading.interpolation import Unresolved, leaves, resolve
from hba_ray.specs.reading.overrides import COMMAND_LINE, MISSING, read_overrides
from hba_ray.specs.reading.secrets import REFERENCE, WHERE_SECRETS_GO, holds_secret, masked, secret_references, shown
from hba_ray.specs.reading.yaml_text import InvalidYaml, dump_yaml, parse_yaml
from hba_ray.specs.trials import trials

MAX_SPEC_FILES = 64
"""Most files that a spec comes from, each counted as often as it is extended: a few files can stand for billions, too."""
WHAT_EXTENDS_NAMES = "it names a file, or a list of files"

Prompts = TypeVar("Prompts", bound=Spec)


@dataclass(frozen=True)
class _Layer:
    """The keys that one source sets.

    Attributes:
        name: a file, or the command line.
        lines: key path -> line in the file, from 1.
    """

    name: str
    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]

    def __post_init__(self) -> None:
        for path in _keys(self.values):
            if holds_secret(path[-1]):
                what = f"the key {masked('.'.join(path))} holds a password or a token, which would be written to disk"
                raise SpecError(_at(self, path), what, WHERE_SECRETS_GO)


def load_spec(path: str | Path, overrides: Sequence[str] = (), *, over: Sequence[str | Path] = ()) -> ExperimentSpec:
    """The spec in a file, merged with what it extends and with overrides, and validated.

    Args:
        path: YAML file. `extends` in it names one file or several, relative to it, whose keys it takes over; of several files
            the later wins, and the file itself wins over all of them.
        overrides: words `key=value` with dotted keys; they win over all files. See `specs/reading/overrides.py`.
        over: further files, whose keys (but for `name`) win over the spec's.

    Raises:
        SpecError: the spec is not valid; names file, line and key, and the nearest valid key.
    """
    added = [layer for file in over for layer in _read_chain(Path(file))]
    for layer in added:
        layer.values.pop("name", None)
    return _validated([*_read_chain(Path(path)), *added, _Layer(COMMAND_LINE, read_overrides(overrides), {})])


def spec_of_atlas(folder: Path, overrides: Sequence[str] = ()) -> ExperimentSpec:
    """A spec with defaults for everything but the folder of an atlas: enough to check an atlas or to extract descriptors.

    Raises:
        SpecError: an override is not valid; see `load_spec`.
    """
    root = _written(str(folder.absolute()))
    stated = {"name": "atlas", "atlas": {"source": "released", "root": root}}
    return _validated([_Layer(str(folder), stated, {}), _Layer(COMMAND_LINE, read_overrides(overrides), {})])


def _keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys of mappings, at every depth."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            here = (*path, str(key))
            yield here
            yield from _keys(inner, here)


def _validated(layers: Sequence[_Layer]) -> ExperimentSpec:
    raw = _resolve(layers)
    try:
        spec = ExperimentSpec.model_validate(raw)
    except ValidationError as invalid:
        raise located(invalid, ExperimentSpec, lambda path: _locate(path, layers)) from None
    trials(spec, lambda path: _locate(path, layers))  # a sweep's wrong axis is found now, not after hours
    return spec


def _read_chain(path: Path) -> list[_Layer]:
    """The layers of a file and of all that it extends; later ones win, so the file itself is the last."""
    layers: list[_Layer] = []
    read = 0

    def visit(file: Path, stated: str, seen: tuple[Path, ...]) -> None:
        nonlocal read
        read += 1
        if read > MAX_SPEC_FILES:
            raise SpecError(stated, f"{path} comes from more than {MAX_SPEC_FILES} files", "extend fewer, and each of them once")
        layer = _read_file(file, stated)
        if file.resolve() in seen:
            raise SpecError(str(file), f"extends itself, by way of {' -> '.join(str(s) for s in seen)}")
        for name, line in _parents(layer):
            visit(file.parent / name, line, (*seen, file.resolve()))
        layers.append(layer)

    visit(path, str(path), ())
    return layers


def _parents(layer: _Layer) -> list[tuple[str, str]]:
    """(file name, place in the spec) of what a layer extends; the key `extends` is removed from it."""
    place = _at(layer, ("extends",))
    if "extends" not in layer.values:
        return []
    try:
        stated = resolve({"extends": layer.values.pop("extends"), **layer.values}, only="extends")
    except Unresolved as cause:
        raise SpecError(place, f"extends cannot be resolved: {masked(cause.what)}", cause.way_out or WHAT_EXTENDS_NAMES) from None
    names = [] if stated is None else stated if isinstance(stated, list) else [stated]
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise SpecError(place, f"extends holds {masked(str(name))[:80]!r}, which is not a file name", WHAT_EXTENDS_NAMES)
        if holds_secret(name):  # before it is a path, which would leave one slash of two
            raise SpecError(place, f"extends holds a password or a token: {masked(name)}", WHAT_EXTENDS_NAMES)
    return [(name, place) for name in names]


def _read_file(path: Path, stated: str) -> _Layer:
    """Reads a YAML file into a layer.

    Args:
        stated: what errors name: the file itself, or the line of another file that extends it.
    """
    try:
        values, lines = parse_yaml(whole_text(path))
    except UnreadableFile as cause:
        what = cause.what if stated == str(path) else f"extends {masked(str(path))}: {cause.what}"
        raise SpecError(masked(stated), what, _nearby(path) if cause.is_missing else cause.way_out) from None
    except InvalidYaml as cause:
        raise SpecError(f"{path}{cause.place}", cause.what, "correct the file") from None
    if values is not None and not isinstance(values, dict):
        raise SpecError(str(path), "a spec is a mapping of keys to values", "name a YAML file of the form key: value")
    return _Layer(str(path), values or {}, lines)


def _nearby(path: Path) -> str:
    """A hint at the file that was probably meant."""
    folder = path.parent
    near = get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], n=1, cutoff=0.4) if folder.is_dir() else []
    return f"did you mean {folder / near[0]}?" if near else "shipped specs are in experiments/"


def _merged(layers: Sequence[_Layer]) -> dict[str, Any]:
    """The keys of all layers; later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer.values, (), layer)
    return merged


def _merge(into: dict[str, Any], values: Mapping[str, Any], path: tuple[str, ...], layer: _Layer) -> None:
    for key, value in values.items():
        here, before = (*path, key), into.get(key)
        if isinstance(value, dict):
            if isinstance(before, str) and "${" in before:
                what = f"{'.'.join(here)} is a reference to another section, of which a part cannot be changed"
                raise SpecError(_at(layer, here), what, "write the section out where it is a reference now")
            into[key] = dict(before) if isinstance(before, dict) else {}
            _merge(into[key], value, here, layer)
        elif value != MISSING or key not in into:  # a value that is still to come leaves what is there
            into[key] = value


def _resolve(layers: Sequence[_Layer]) -> dict[str, Any]:
    """The keys of all layers merged, with interpolations resolved. Secrets stay references, and stand only where they are taken."""
    try:
        raw = resolve(_merged(layers), takes_secrets)
    except Unresolved as cause:
        raise SpecError(_locate(cause.path, layers), masked(cause.what), cause.way_out) from None
    for path, value in leaves(raw):
        if not isinstance(value, str):
            continue
        key, taken = ".".join(path), takes_secrets(path)
        if holds_secret(value):
            what = f"{key} holds a password or a token, which would be written to disk: {shown(value)}"
            way_out = "give it as ${oc.env:NAME}, the name of an environment variable" if taken else WHERE_SECRETS_GO
            raise SpecError(_locate(path, layers), what, way_out)
        if not taken and (names := secret_references(value)):
            raise SpecError(_locate(path, layers), f"{key} refers to the secret {names[0]}", WHERE_SECRETS_GO)
    return raw


def takes_secrets(path: tuple[str, ...]) -> bool:
    """Whether the field at a key path may refer to a secret."""
    section = section_at(ExperimentSpec, path[:-1])
    field = section.model_fields.get(path[-1]) if section and path else None
    return field is not None and any(isinstance(mark, TakesSecrets) for mark in field.metadata)


def as_yaml(spec: ExperimentSpec, *, exclude_unset: bool = False) -> str:
    """The text of a spec with all its settings, which `load_spec` reads back the same. Secrets are references in it.

    Args:
        exclude_unset: leaves out what the spec does not set.
    """
    return dump_yaml(_escaped(spec.model_dump(mode="json", exclude_unset=exclude_unset), ()))


def _escaped(value: Any, path: tuple[str, ...]) -> Any:
    """The values with `${` written so that it is no reference, but for references to secrets."""
    if isinstance(value, dict):
        return {key: _escaped(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner, path) for inner in value]
    if not isinstance(value, str):
        return value
    kept = REFERENCE.findall(value) if takes_secrets(path) else []
    between = REFERENCE.split(value)[::2] if kept else [value]
    return "".join(
        text for pair in zip(map(_written, between), [*(f"${{oc.env:{name}}}" for name in kept), ""], strict=True) for text in pair
    )


def _written(text: str) -> str:
    """A text as a file states it, in which `${` would be a reference."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)


def _at(layer: _Layer, path: tuple[str, ...]) -> str:
    line = layer.lines.get(path)
    return f"{layer.name}:{line}" if line else layer.name


def _locate(path: tuple[str, ...], layers: Sequence[_Layer]) -> str:
    """File and line, or the command line, that set a key or, where nothing sets it, the nearest key above it."""
    for depth in range(len(path), 0, -1):
        for layer in reversed(layers):
            if _sets(layer.values, path[:depth]):
                return _at(layer, path[:depth])
    return next((layer.name for layer in reversed(layers) if layer.name != COMMAND_LINE), COMMAND_LINE)


def _sets(values: Any, path: tuple[str, ...]) -> bool:
    """Whether a layer's keys include this one."""
    for key in path:
        if isinstance(values, dict) and key in values:
            values = values[key]
        elif isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        else:
            return False
    return True


def load_prompt_file(kind: type[Prompts], name: str, *, key: str, built_in: Mapping[str, str]) -> Prompts:
    """The prompts that a key of a spec names: built-in ones, or a YAML file of the user's.

    Args:
        kind: the section that the file holds.
        name: name of built-in prompts, or path of a file.
        key: the key of the spec, for errors.
        built_in: name -> file of built-in prompts, relative to the package.

    Raises:
        SpecError: there is no such file, it is not YAML, or a field in it is missing, unknown or not valid.
    """
    where = f"{key}={masked(name)}"
    way_out = f"give {', '.join(built_in)} or a YAML file in the form of hba_ray/{next(iter(built_in.values()))}"
    try:
        raw, _ = parse_yaml(
            (files("hba_ray") / built_in[name]).read_text(encoding="utf-8") if name in built_in else whole_text(Path(name).expanduser())
        )
    except UnreadableFile as cause:
        raise SpecError(where, cause.what, way_out) from None
    except InvalidYaml as cause:
        raise SpecError(f"{where}{cause.place}", cause.what, way_out) from None
    try:
        return kind.model_validate(raw)
    except ValidationError as cause:
        defects = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}" for error in cause.errors())
        raise SpecError(where, defects, way_out) from None

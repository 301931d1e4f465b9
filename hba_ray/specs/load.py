"""From a YAML file and `key=value` words to a validated spec, with errors that name file, line and key.

OmegaConf reads (`extends`, interpolation, overrides); pydantic validates.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from hba_ray.errors import SpecError
from hba_ray.specs.experiment import ExperimentSpec
from hba_ray.specs.problems import problem
from hba_ray.specs.trials import trials

MAX_SPEC_BYTES = 1 << 20
MAX_SPEC_NODES = 100_000
"""Keys and values, aliases written out: a few lines of YAML can stand for billions."""
COMMAND_LINE = "command line"
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")


@dataclass(frozen=True)
class _Layer:
    """One source of keys: a file or the command line."""

    name: str
    config: DictConfig
    lines: dict[tuple[str, ...], int]
    """Key path -> line in the file, from 1."""


def load_spec(path: str | Path, overrides: Sequence[str] = (), *, over: Sequence[str | Path] = ()) -> ExperimentSpec:
    """The spec in a file, after its `extends` and the overrides.

    Args:
        path: YAML file. `extends` in it names one or several files, relative to it; the nearer wins.
        overrides: `key=value` words; keys are dotted, values are YAML.
        over: further files whose keys win over the spec's and not over the overrides; their `name` does not.

    Raises:
        SpecError: naming the file, the line and the key, with the nearest valid key.
    """
    added = [layer for file in over for layer in _read_chain(Path(file), ())]
    for layer in added:
        layer.config.pop("name", None)
    return _validated([*_read_chain(Path(path), ()), *added, _read_overrides(overrides)])


def spec_of_atlas(folder: Path, overrides: Sequence[str] = ()) -> ExperimentSpec:
    """The spec that says no more than where an atlas lies, for looking at it and describing its clips.

    Raises:
        SpecError: an override is wrong; as `load_spec` says it.
    """
    stated = OmegaConf.create({"name": "atlas", "atlas": {"source": "released", "root": str(folder.absolute())}})
    return _validated([_Layer(str(folder), stated, {}), _read_overrides(overrides)])


def _validated(layers: Sequence[_Layer]) -> ExperimentSpec:
    raw = _resolve(layers)
    try:
        spec = ExperimentSpec.model_validate(raw)
    except ValidationError as invalid:
        raise _located(invalid, layers) from None
    trials(spec, lambda path: _locate(path, layers))  # a sweep's wrong axis is found now, not after hours
    return spec


def _read_chain(path: Path, seen: tuple[Path, ...]) -> list[_Layer]:
    """The layers of a file, farthest ancestor first."""
    layer = _read_file(path)
    if path.resolve() in seen:
        raise SpecError(str(path), f"extends itself, by way of {' -> '.join(str(s) for s in seen)}")
    layers: list[_Layer] = []
    for name in _parents(layer):
        parent = path.parent / name
        if not os.path.exists(parent):  # says no, too, to a name that no file can have
            raise SpecError(_at(layer, ("extends",)), f"extends {parent}: no such file", _nearby(parent))
        layers += _read_chain(parent, (*seen, path.resolve()))
    return [*layers, layer]


def _parents(layer: _Layer) -> list[str]:
    """The file names under `extends`, which is taken out of the layer."""
    place = _at(layer, ("extends",))
    try:
        stated = layer.config.pop("extends", None)
        names = [stated] if isinstance(stated, str) else list(stated) if isinstance(stated, ListConfig) else stated
    except OmegaConfBaseException as cause:
        raise SpecError(place, f"extends cannot be resolved: {str(cause).splitlines()[0]}") from None
    for name in [] if names is None else names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise SpecError(place, f"extends holds {str(name)[:80]!r}, which is not a file name", "it names a file, or a list of files")
    return names or []


def _read_file(path: Path) -> _Layer:
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):  # a device has no end, and a pipe perhaps no writer
            raise SpecError(str(path), "is a folder" if path.is_dir() else "is not a file", "name a YAML file")
        if found.st_size > MAX_SPEC_BYTES:
            raise SpecError(str(path), "is larger than 1 MiB, so it is no spec")
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise SpecError(str(path), "a spec is a mapping of keys to values")
        if node is not None and _size(node, {}) > MAX_SPEC_NODES:
            raise SpecError(str(path), f"stands for more than {MAX_SPEC_NODES} values", "it has too many aliases, or one that holds itself")
        config = OmegaConf.create(text) if node is not None else OmegaConf.create({})
    except FileNotFoundError:
        raise SpecError(str(path), "no such file", _nearby(path)) from None
    except UnicodeDecodeError:
        raise SpecError(str(path), "is not a text file in UTF-8") from None
    except OSError as cause:
        raise SpecError(str(path), f"cannot be read: {cause.strerror}") from None
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{path}{line}", f"is not YAML: {getattr(cause, 'problem', None) or cause}") from None
    except (OmegaConfBaseException, ValueError, RecursionError) as cause:
        raise SpecError(str(path), f"cannot be read: {str(cause).splitlines()[0]}") from None
    assert isinstance(config, DictConfig)
    lines: dict[tuple[str, ...], int] = {}
    if node is not None:
        _note_lines(node, (), lines)
    return _Layer(str(path), config, lines)


def _nearby(path: Path) -> str:
    folder = path.parent
    near = get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], n=1, cutoff=0.4) if folder.is_dir() else []
    return f"did you mean {folder / near[0]}?" if near else "shipped specs are in experiments/"


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Nodes below this one with every alias written out; infinite where one holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # met again below itself
        inner = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in inner)
    return sizes[id(node)]


def _note_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, str(key.value))
            lines[child] = key.start_mark.line + 1
            _note_lines(value, child, lines)


def _read_overrides(words: Sequence[str]) -> _Layer:
    for word in words:
        if not OVERRIDE.match(word):
            raise SpecError(COMMAND_LINE, f"'{word}' is not of the form key=value", "for example sft.lr=1e-4")
    try:
        config = OmegaConf.from_dotlist(list(words))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as cause:
        raise SpecError(COMMAND_LINE, f"{' '.join(words)}: {str(cause).splitlines()[0]}") from None
    return _Layer(COMMAND_LINE, config, {})


def _resolve(layers: Sequence[_Layer]) -> dict[str, Any]:
    try:
        merged = OmegaConf.merge(*(layer.config for layer in layers))
        raw = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError, ValueError) as cause:
        key = getattr(cause, "full_key", None) or ""
        path = tuple(str(key).split(".")) if key else ()
        raise SpecError(_locate(path, layers), f"{key or 'the spec'} cannot be resolved: {str(cause).splitlines()[0]}") from None
    return {str(key): value for key, value in raw.items()} if isinstance(raw, dict) else {}


def _at(layer: _Layer, path: tuple[str, ...]) -> str:
    line = layer.lines.get(path)
    return f"{layer.name}:{line}" if line else layer.name


def _locate(path: tuple[str, ...], layers: Sequence[_Layer]) -> str:
    """The file and line, or the command line, that set the key or its nearest stated parent."""
    for depth in range(len(path), 0, -1):
        for layer in reversed(layers):
            if _sets(layer.config, path[:depth]):
                return _at(layer, path[:depth])
    return next((layer.name for layer in reversed(layers) if layer.name != COMMAND_LINE), COMMAND_LINE)


def _sets(config: DictConfig, path: tuple[str, ...]) -> bool:
    node: Any = config
    for key in path:
        if not isinstance(node, DictConfig) or key not in node:
            return False
        node = node._get_node(key)
    return True


def _located(invalid: ValidationError, layers: Sequence[_Layer]) -> SpecError:
    """The first few problems as one SpecError."""
    errors = sorted(invalid.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    problems = [problem(error) for error in errors]  # a key that is misspelt says more than one that is missing
    path, what, way_out = problems[0]
    rest = [f"also {_locate(other, layers)}: {said}" for other, said, _ in problems[1:6]]
    return SpecError(_locate(path, layers), what, "\n  ".join(part for part in (way_out, *rest) if part))

"""Reads specs: from YAML files and `key=value` overrides to a validated `ExperimentSpec`, with errors that name file, line and key.

OmegaConf reads files, merges what they extend and resolves interpolations; pydantic validates the result.
Files of prompts, which a spec names, are read by `load_prompt_file`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec
from hba_ray.specs.experiment import ExperimentSpec, problem
from hba_ray.specs.trials import trials

MAX_SPEC_BYTES = 1 << 20
MAX_SPEC_NODES = 100_000
"""Most keys and values of a file with all aliases written out, since a few lines of YAML can stand for billions."""
MAX_SPEC_FILES = 64
"""Most files that a spec comes from, each counted as often as it is extended: a few files can stand for billions, too."""
MAX_DOTS = 20
"""Most dots in the key of an override; keys of a spec have a few."""
COMMAND_LINE = "command line"
WHAT_EXTENDS_NAMES = "it names a file, or a list of files"
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")
OVERRIDE_OF_A_LIST = re.compile(r"[A-Za-z_][\w.]*(\[\d+\]|\.\d+)[\w.\[\]]*=")

Prompts = TypeVar("Prompts", bound=Spec)


@dataclass(frozen=True)
class _Layer:
    """The keys that one source sets.

    Attributes:
        name: a file, or the command line.
        lines: key path -> line in the file, from 1.
    """

    name: str
    config: DictConfig
    lines: dict[tuple[str, ...], int]


def load_spec(path: str | Path, overrides: Sequence[str] = (), *, over: Sequence[str | Path] = ()) -> ExperimentSpec:
    """The spec in a file, merged with what it extends and with overrides, and validated.

    Args:
        path: YAML file. `extends` in it names one file or several, relative to it, whose keys it takes over; of several files
            the later wins, and the file itself wins over all of them.
        overrides: words `key=value` with dotted keys and values in YAML; they win over all files.
        over: further files, whose keys (but for `name`) win over the spec's.

    Raises:
        SpecError: the spec is not valid; names file, line and key, and the nearest valid key.
    """
    added = [layer for file in over for layer in _read_chain(Path(file))]
    for layer in added:
        layer.config.pop("name", None)
    return _validated([*_read_chain(Path(path)), *added, _read_overrides(overrides)])


def spec_of_atlas(folder: Path, overrides: Sequence[str] = ()) -> ExperimentSpec:
    """A spec with defaults for everything but the folder of an atlas: enough to check an atlas or to extract descriptors.

    Raises:
        SpecError: an override is not valid; see `load_spec`.
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
    if "extends" not in layer.config and not OmegaConf.is_missing(layer.config, "extends"):
        return []
    try:
        stated = layer.config.extends
        names = [stated] if isinstance(stated, str) else list(stated) if isinstance(stated, ListConfig) else stated
    except OmegaConfBaseException as cause:
        raise SpecError(place, f"extends cannot be resolved: {str(cause).splitlines()[0]}", WHAT_EXTENDS_NAMES) from None
    for name in [] if names is None else names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise SpecError(place, f"extends holds {str(name)[:80]!r}, which is not a file name", WHAT_EXTENDS_NAMES)
    del layer.config["extends"]
    return [(name, place) for name in names or []]


def _read_file(path: Path, stated: str) -> _Layer:
    """Reads a YAML file into a layer.

    Args:
        stated: what errors name: the file itself, or the line of another file that extends it.
    """
    text = _read_text(path, stated)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise SpecError(str(path), "a spec is a mapping of keys to values")
        if node is not None and _size(node, {}) > MAX_SPEC_NODES:
            raise SpecError(str(path), f"stands for more than {MAX_SPEC_NODES} values", "it has too many aliases, or one that holds itself")
        config = OmegaConf.create(text) if node is not None else OmegaConf.create({})
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


def _read_text(path: Path, stated: str) -> str:
    """The text of a file. Devices and pipes, which may never end, are refused."""

    def refused(what: str, way_out: str = "") -> SpecError:
        return SpecError(stated, what if stated == str(path) else f"extends {path}: {what}", way_out)

    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):
            raise refused("is a folder" if S_ISDIR(found.st_mode) else "is not a file", "name a YAML file")
        if not found.st_size:  # files of /proc say so, too, and reading the kernel's log would wait for its next line
            raise refused("is empty", "name a YAML file")
        if found.st_size > MAX_SPEC_BYTES:
            raise refused("is larger than 1 MiB, so it is no spec")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refused("no such file", _nearby(path)) from None
    except UnicodeDecodeError:
        raise refused("is not a text file in UTF-8") from None
    except OSError as cause:
        raise refused(f"cannot be read: {cause.strerror}") from None
    except ValueError as cause:  # a zero byte, or half a character, in its name
        raise refused(f"cannot be read: {cause}") from None


def _nearby(path: Path) -> str:
    """A hint at the file that was probably meant."""
    folder = path.parent
    near = get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], n=1, cutoff=0.4) if folder.is_dir() else []
    return f"did you mean {folder / near[0]}?" if near else "shipped specs are in experiments/"


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Number of nodes from this one downwards with every alias written out; infinite where a node holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # met again below itself
        inner = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in inner)
    return sizes[id(node)]


def _note_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    """Adds to `lines` the line of every key below a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, str(key.value))
            lines[child] = key.start_mark.line + 1
            _note_lines(value, child, lines)


def _read_overrides(words: Sequence[str]) -> _Layer:
    """The layer of `key=value` words."""
    config = OmegaConf.create({})
    for word in words:
        if OVERRIDE_OF_A_LIST.match(word):
            raise SpecError(COMMAND_LINE, f"'{word}' sets a part of a list", "give the whole list, for example stages=[sft,bam]")
        if not OVERRIDE.match(word):
            raise SpecError(COMMAND_LINE, f"'{_short(word)}' is not of the form key=value", "for example sft.lr=1e-4")
        if word.partition("=")[0].count(".") > MAX_DOTS:
            raise SpecError(COMMAND_LINE, f"unknown key '{_short(word)}'", "no key of a spec is as deep")
        try:
            config.merge_with_dotlist([word])
        except yaml.YAMLError as cause:
            raise SpecError(COMMAND_LINE, f"{_short(word)}: is not YAML: {getattr(cause, 'problem', None) or cause}") from None
        except (OmegaConfBaseException, ValueError, RecursionError) as cause:
            raise SpecError(COMMAND_LINE, f"{_short(word)}: {str(cause).splitlines()[0]}") from None
    for word in words:
        if word.partition("=")[2].strip() == MISSING:  # OmegaConf would keep what a file says
            raise SpecError(COMMAND_LINE, f"{word}: {MISSING} stands for a value that is still to come", "give the value")
    return _Layer(COMMAND_LINE, config, {})


def _short(word: str) -> str:
    return word if len(word) <= 200 else f"{word[:200]}…"


def _resolve(layers: Sequence[_Layer]) -> dict[str, Any]:
    """The keys of all layers merged, with interpolations resolved."""
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
    """File and line, or the command line, that set a key or, where nothing sets it, the nearest key above it."""
    for depth in range(len(path), 0, -1):
        for layer in reversed(layers):
            if _sets(layer.config, path[:depth]):
                return _at(layer, path[:depth])
    return next((layer.name for layer in reversed(layers) if layer.name != COMMAND_LINE), COMMAND_LINE)


def _sets(config: DictConfig, path: tuple[str, ...]) -> bool:
    """Whether a layer's keys include this one."""
    node: Any = OmegaConf.to_container(config)
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def _located(invalid: ValidationError, layers: Sequence[_Layer]) -> SpecError:
    """One error for all defects of a spec: the place and the way out of the first, and a line for each of the next five."""
    errors = sorted(invalid.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    problems = [problem(error) for error in errors]  # a misspelt key explains a missing one
    path, what, way_out = problems[0]
    rest = [f"also {_locate(other, layers)}: {said}" for other, said, _ in problems[1:6]]
    return SpecError(_locate(path, layers), what, "\n  ".join(part for part in (way_out, *rest) if part))


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
    where = f"{key}={name}"
    source = files("hba_ray") / built_in[name] if name in built_in else Path(name).expanduser()
    way_out = f"give {', '.join(built_in)} or a YAML file in the form of hba_ray/{next(iter(built_in.values()))}"
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as cause:
        raise SpecError(where, f"cannot be read: {cause.strerror}", way_out) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as cause:
        raise SpecError(where, f"is not YAML: {' '.join(str(cause).split())}", way_out) from None
    try:
        return kind.model_validate(raw)
    except ValidationError as cause:
        defects = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}" for error in cause.errors())
        raise SpecError(where, defects, way_out) from None

"""Interpolations: `${sft.epochs}`, the value of another key, and `${oc.env:NAME}` or `${oc.env:NAME,default}`, of the environment.

OmegaConf resolves them. It resolves a value each time that another refers to it, so a few lines, each of which names the one
before twice, would take hours. So what all references come to is measured first, in time that grows with the text alone.
References to secrets stay references (`specs/reading/secrets.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, MissingMandatoryValue, OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser as Grammar
from omegaconf.grammar_parser import parse

from hba_ray.specs.reading.secrets import WHERE_SECRETS_GO, holds_secret, looks_secret, secret_references

MOST_LETTERS = 1 << 20
"""Of all values with references, resolved."""
LETTERS_OF_A_REFERENCE = 100
"""Letters for which following one reference counts, since it takes OmegaConf as long."""
MOST_REFERENCES = 500
LONGEST_TEXT = 10_000
"""Letters of a text with references."""
MOST_HOPS = 20
"""References in a row, each of which leads to the next."""
MOST_BRACKETS = 10
"""References in each other's brackets."""
KNOWN = "a spec knows ${KEY}, ${oc.env:NAME} and ${oc.env:NAME,DEFAULT}"
VARIABLE = re.compile(r"[A-Za-z_]\w*")
_BRACKET = re.compile(r"\$\{|[{}\[\]]")

Path = tuple[str, ...]


class Unresolved(Exception):
    """A value cannot be resolved.

    Attributes:
        path: its key; of a part of a list, with its number.
    """

    def __init__(self, path: Path, what: str, way_out: str = ""):
        super().__init__(path, what, way_out)
        self.path, self.what, self.way_out = path, what, way_out


@dataclass(frozen=True)
class _Key:
    """`${a.b}`, or with `up` dots `${..a.b}`, which counts from that many levels above the value."""

    up: int
    parts: Path


@dataclass(frozen=True)
class _Variable:
    """`${oc.env:NAME}`, at letters `start` to `stop` of a text.

    Attributes:
        is_inner: whether it stands within another reference.
    """

    name: str
    has_default: bool
    start: int
    stop: int
    is_inner: bool


def resolve(values: dict[str, Any], takes_secrets: Callable[[Path], bool] = lambda path: False, *, only: str | None = None) -> Any:
    """The values of a spec with all references resolved, but those to secrets.

    Args:
        takes_secrets: whether the field at a key path may refer to a secret.
        only: a key whose value alone is returned, with that value resolved.

    Raises:
        Unresolved: a reference leads nowhere, in a circle, too far, or to a secret where none is taken.
    """
    texts = {path: text for path, text in leaves(values) if isinstance(text, str) and "${" in text}
    _refuse_many(texts)
    kept = {path: _keep_secrets(path, text, takes_secrets(path)) for path, text in texts.items()}
    for path, text in kept.items():
        values = _with(values, path, text)
    _measure(values, [path for path in kept if only in (None, path[0])])
    try:
        config = OmegaConf.create(values)
        found = config if only is None else OmegaConf.select(config, only, throw_on_missing=True)
        return OmegaConf.to_container(found, resolve=True, throw_on_missing=True) if OmegaConf.is_config(found) else found
    except (OmegaConfBaseException, RecursionError, ValueError) as cause:
        key = str(getattr(cause, "full_key", None) or "")
        path = tuple(re.findall(r"[^.\[\]]+", key))
        way_out = "give the value" if isinstance(cause, MissingMandatoryValue) else KNOWN
        raise Unresolved(path, f"{key or 'the spec'} cannot be resolved: {str(cause).splitlines()[0]}", way_out) from None


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(key path, value) of all that is no mapping and no list."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, value


def _with(values: Any, path: Path, text: str) -> Any:
    """The values with another text at a path."""
    if not path:
        return text
    if isinstance(values, list):
        return [_with(value, path[1:], text) if place == int(path[0]) else value for place, value in enumerate(values)]
    return {**values, path[0]: _with(values[path[0]], path[1:], text)}


def _refuse_many(texts: dict[Path, str]) -> None:
    """Refuses what could not even be parsed in a moment."""
    count = 0
    for path, text in texts.items():
        count += text.count("${")
        if count > MOST_REFERENCES:
            raise Unresolved(path, f"the spec holds more than {MOST_REFERENCES} references", "write some of the values out")
        if len(text) > LONGEST_TEXT:
            what = f"{_name(path)} holds references in a text of {len(text)} letters; {LONGEST_TEXT} are the most"
            raise Unresolved(path, what, "shorten it, or write \\${ where no reference is meant")
        depth = 0
        for found in _BRACKET.finditer(text):
            depth = depth + 1 if found[0] in ("${", "{", "[") else max(0, depth - 1)
            if depth > MOST_BRACKETS:
                raise Unresolved(path, f"{_name(path)} holds references nested deeper than {MOST_BRACKETS} levels", KNOWN)


def _keep_secrets(path: Path, text: str, taken: bool) -> str:
    """The text with references to secrets escaped, so that OmegaConf leaves them as they are."""
    variables = [one for one in _references(path, text) if isinstance(one, _Variable)]
    secret = _secrets(text, variables)
    for one in reversed(variables):
        value = os.environ.get(one.name)
        if not taken and one.name in secret:
            raise Unresolved(
                path,
                f"{_name(path)} refers to the secret {one.name}; its value would be written to disk",
                WHERE_SECRETS_GO,
            )
        is_kept = taken and (not one.has_default if value is None else one.name in secret or holds_secret(value))
        if is_kept and one.is_inner:
            raise Unresolved(path, f"{_name(path)} refers to the secret {one.name} within another reference", "let it stand by itself")
        if is_kept:
            text = f"{text[: one.start]}\\${{oc.env:{one.name}}}{text[one.stop :]}"
    return text


def _secrets(text: str, variables: list[_Variable]) -> set[str]:
    """Those of a text's variables that are secrets, by their names or by their place in an address."""
    plain = text
    for one in reversed([one for one in variables if not one.is_inner]):
        plain = f"{plain[: one.start]}${{oc.env:{one.name}}}{plain[one.stop :]}"
    return {*secret_references(plain), *(one.name for one in variables if looks_secret(one.name))}


def _measure(values: dict[str, Any], texts: Iterable[Path]) -> None:
    """Refuses what would come to more than `MOST_LETTERS`, or leads on and on."""
    sizes: dict[Path, tuple[int, int]] = {}
    under_way: list[Path] = []

    def size(path: Path) -> tuple[int, int]:
        """Letters that the value at a path comes to, and the references in a row that lead there."""
        if path not in sizes:
            if path in under_way:
                raise Unresolved(path, f"{_name(path)} refers to itself", "give one of the values that it refers to")
            under_way.append(path)
            sizes[path] = size_of(path, _at(values, path))
            under_way.pop()
        return sizes[path]

    def size_of(path: Path, value: Any) -> tuple[int, int]:
        if isinstance(value, dict | list):
            keys = value if isinstance(value, dict) else range(len(value))
            inner = [size((*path, str(key))) for key in keys]
        elif isinstance(value, str) and "${" in value:
            inner = [(letters + LETTERS_OF_A_REFERENCE, hops + 1) for letters, hops in map(targets(path), _references(path, value))]
        else:
            inner = []
        letters = sum(one for one, _ in inner) + (1 if isinstance(value, dict | list) else len(str(value)))
        hops = max((hops for _, hops in inner), default=0)
        if letters > MOST_LETTERS and inner:
            raise Unresolved(path, f"{_name(path)} would come to more than {MOST_LETTERS >> 20} MiB of text", "refer to less")
        if hops > MOST_HOPS:
            raise Unresolved(path, f"{_name(path)} leads through more than {MOST_HOPS} references", "refer to the value itself")
        return letters, hops

    def targets(path: Path) -> Callable[[_Key | _Variable], tuple[int, int]]:
        def target(one: _Key | _Variable) -> tuple[int, int]:
            if isinstance(one, _Variable):
                return len(os.environ.get(one.name, "")), 0
            start = path[: len(path) - one.up] if one.up else ()
            return size(_reached(values, start, one.parts))

        return target

    total = 0
    for path in texts:
        total += size(path)[0]
        if total > MOST_LETTERS:
            raise Unresolved(path, f"the spec would come to more than {MOST_LETTERS >> 20} MiB of text", "refer to less")


def _reached(values: Any, start: Path, parts: Path) -> Path:
    """The path that a reference leads to or, where a value on the way is a reference itself or is missing, to that value."""
    path = start
    for part in parts:
        found = _at(values, path)
        inside = part in found if isinstance(found, dict) else isinstance(found, list) and part.isdigit() and int(part) < len(found)
        if not inside:
            return path if isinstance(found, str) and "${" in found else (*path, part)
        path = (*path, part)
    return path


def _at(values: Any, path: Path) -> Any:
    """The value at a path; None where there is none."""
    for part in path:
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict):
            values = values.get(part)
        else:
            return None
    return values


def _references(path: Path, text: str) -> tuple[_Key | _Variable, ...]:
    """The references in a text, in its order.

    Raises:
        Unresolved: one is of a form that a spec does not know.
    """
    try:
        return _parsed(text)
    except (GrammarParseError, RecursionError, ValueError) as cause:
        raise Unresolved(
            path, f"{_name(path)} cannot be resolved: {str(cause).splitlines()[0]}", f"{KNOWN}; \\${{ stands for ${{"
        ) from None


@lru_cache(maxsize=MOST_REFERENCES)
def _parsed(text: str) -> tuple[_Key | _Variable, ...]:
    return tuple(_walk(parse(text), is_inner=False))


def _walk(tree: Any, *, is_inner: bool) -> Iterator[_Key | _Variable]:
    """The references of OmegaConf's parse tree."""
    if isinstance(tree, Grammar.InterpolationNodeContext):
        yield _key(tree)
        return
    if isinstance(tree, Grammar.InterpolationResolverContext):
        yield _variable(tree, is_inner)
        is_inner = True
    for child in getattr(tree, "children", None) or ():
        yield from _walk(child, is_inner=is_inner)


def _key(tree: Any) -> _Key:
    texts = [child.getText() for child in tree.getChildren()]
    parts = [child.getText() for child in tree.getChildren() if isinstance(child, Grammar.ConfigKeyContext)]
    if any("${" in part for part in parts):
        raise ValueError(f"'{tree.getText()[:80]}' names its key by another reference")
    before = texts[1 : texts.index(parts[0])] if parts else texts[1:-1]
    return _Key("".join(before).count("."), tuple(parts))


def _variable(tree: Any, is_inner: bool) -> _Variable:
    children: list[Any] = list(tree.getChildren())
    resolver = next(child.getText() for child in children if isinstance(child, Grammar.ResolverNameContext))
    if resolver != "oc.env":
        raise ValueError(f"'{resolver[:80]}' is no source of values")
    sequence: Any = next((child for child in children if isinstance(child, Grammar.SequenceContext)), None)
    stated = [child.getText() for child in sequence.getChildren()] if sequence else []
    if not 1 <= len(stated) <= 3 or "" in stated:  # a name; or a name, a comma, a default
        raise ValueError(f"oc.env takes a name, or a name and a default, not '{tree.getText()[:80]}'")
    name = stated[0].strip("'\" ")
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"'{name[:80]}' is no name of a variable")
    return _Variable(name, len(stated) > 1, tree.start.start, tree.stop.stop + 1, is_inner)


def _name(path: Path) -> str:
    return ".".join(path)

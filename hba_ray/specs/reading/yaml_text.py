"""Reads YAML as plain values, and writes it: mappings with text as keys, lists, text, numbers, yes and no, null.

PyYAML does the work. Tags of other types are refused, keys are the text as it is written, no key may stand twice, and
whatever Python refuses (`!!bool maybe`, a number of five thousand digits) is an error with its line and column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from hba_ray.specs.reading.secrets import masked

MOST_NODES = 100_000
"""Keys and values of a document with all aliases written out, since a few lines of YAML can stand for billions."""
MOST_LEVELS = 50
"""Mappings and lists in each other."""
LONGEST_NUMBER = 100
"""Letters of a number."""
_TAG = "tag:yaml.org,2002:"
_SCALARS = {"bool": "a yes or no", "int": "a whole number", "float": "a number", "null": "null"}
_KNOWN = {f"{_TAG}{name}" for name in (*_SCALARS, "str", "map", "seq", "merge")}
_NOT_IMPLIED = {f"{_TAG}timestamp", f"{_TAG}value"}
"""What plain text is never taken for: `2024-01-31` and `=` are text."""


class InvalidYaml(Exception):
    """A text is not YAML, or holds what a spec has no use for.

    Attributes:
        line, column: from 1; 0 where they are not known.
    """

    def __init__(self, what: str, mark: yaml.Mark | None = None):
        super().__init__(what)
        self.what = what
        self.line, self.column = (mark.line + 1, mark.column + 1) if mark else (0, 0)

    @property
    def place(self) -> str:
        """`:line:column`, to stand behind the name of a file."""
        return f":{self.line}:{self.column}" if self.line else ""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader for plain values, with errors of its constructors located."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own name for a table that each class has
        first: [(tag, form) for tag, form in forms if tag not in _NOT_IMPLIED]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise InvalidYaml(f"is nested deeper than {MOST_LEVELS} levels", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.levels -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        name = node.tag.removeprefix(_TAG)
        if node.tag not in _KNOWN:
            raise InvalidYaml(f"holds the tag {_short(node.tag.replace(_TAG, '!!'))}, which a spec has no use for", node.start_mark)
        is_number = isinstance(node, yaml.ScalarNode) and name in ("int", "float")
        if is_number and len(node.value) > LONGEST_NUMBER:
            raise InvalidYaml(f"holds a number of {len(node.value)} digits; {LONGEST_NUMBER} are the most", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            raise InvalidYaml(f"holds {_short(str(node.value))!r}, which is not {_SCALARS.get(name, name)}", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, which puts into quotes what `_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):  # YAML 1.2 takes 1e-4 for a number; PyYAML, which follows 1.1, wants 1.0e-4
    _kind.add_implicit_resolver(f"{_TAG}float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def dump_yaml(values: Any) -> str:
    """Plain values as YAML, which `parse_yaml` reads back the same.

    >>> dump_yaml({"a": "1e5", "b": 1e5})
    "a: '1e5'\\nb: 100000.0\\n"
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The value of a YAML document, and the line of each of its key paths, from 1.

    Raises:
        InvalidYaml: it is no YAML, or stands for what a spec has no use for.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        if _size(node, {}) > MOST_NODES:
            raise InvalidYaml(f"stands for more than {MOST_NODES} values: it has too many aliases, or one that holds itself")
        lines: dict[tuple[str, ...], int] = {}
        _note_lines(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as cause:
        raise InvalidYaml(f"is not YAML: {cause.problem or cause.context}", cause.problem_mark or cause.context_mark) from None
    except yaml.YAMLError as cause:
        raise InvalidYaml(f"is not YAML: {' '.join(str(cause).split())}") from None


def has_comment(text: str) -> bool:
    """Whether a part of a YAML text is a comment, which parsing would drop.

    >>> has_comment("/data #final"), has_comment("/data#final"), has_comment("'a #b'")
    (True, False, False)

    Raises:
        InvalidYaml: it is no YAML.
    """
    end = 0
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if "#" in text[end : token.start_mark.index]:
                return True
            end = max(end, token.end_mark.index)
    except yaml.MarkedYAMLError as cause:
        raise InvalidYaml(f"is not YAML: {cause.problem or cause.context}", cause.problem_mark) from None
    except yaml.YAMLError as cause:
        raise InvalidYaml(f"is not YAML: {' '.join(str(cause).split())}") from None
    return "#" in text[end:]


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
    """Adds to `lines` the line of every key below a node, and refuses keys that are no text or stand twice."""
    if isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            lines[*path, str(place)] = value.start_mark.line + 1
            _note_lines(value, (*path, str(place)), lines)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InvalidYaml("holds a key that is no text", key.start_mark)
        if key.tag != f"{_TAG}merge" and key.value in seen:
            raise InvalidYaml(f"holds the key {_short(key.value)!r} twice", key.start_mark)
        seen.add(key.value)
        child = (*path, key.value)
        lines[child] = key.start_mark.line + 1
        _note_lines(value, child, lines)


def _short(text: str) -> str:
    text = masked(text)
    return text if len(text) <= 80 else f"{text[:80]}…"

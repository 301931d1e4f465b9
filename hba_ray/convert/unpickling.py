"""Reads pickles that hold data, and refuses those that hold more.

A pickle is a program: it may name any function and call it. What is read here may name nothing but the constructors of numpy's
arrays, and even these are not called: arrays are rebuilt from their bytes once the pickle is read. Everything else (a class, a
function, an array of objects) is refused before it is touched.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from hba_ray.data.shards import check_is_file
from hba_ray.data.text import visible
from hba_ray.errors import DataError

_PLAIN_TYPE = re.compile(r"[<>|=]?[biufSU]\d+")
_WAY_OUT = "fetch it again from its publishers; it should hold dict, list, str, int, float and arrays of numbers or text only"


class UnreadablePickle(ValueError):
    """A pickle names what is not read, or its parts do not fit together."""


class _Type:
    """Stands for a numpy type while the pickle is read."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not _PLAIN_TYPE.fullmatch(code):
            raise UnreadablePickle("an array of other things than numbers or text")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        order, rest = state[1], state[2:5]
        if any(part is not None for part in rest) or order not in ("<", ">", "|", "="):
            raise UnreadablePickle("an array with fields")
        if order != "|":
            self.code = order + self.code.lstrip("<>|=")

    def made(self) -> np.dtype:
        return np.dtype(self.code)


class _Array:
    """Stands for an array while the pickle is read."""

    def __init__(self, *_: Any):
        self.parts: tuple[Any, Any, Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, raw = state
        self.parts = (shape, kind, by_column, raw)

    def made(self) -> np.ndarray:
        if self.parts is None:
            raise UnreadablePickle("an array without content")
        shape, kind, by_column, raw = self.parts
        if not isinstance(kind, _Type) or not isinstance(raw, (bytes, str)):
            raise UnreadablePickle("an array of objects")
        content = raw if isinstance(raw, bytes) else raw.encode("latin-1")
        return np.frombuffer(content, kind.made()).reshape(shape, order="F" if by_column else "C")


class _Number(_Array):
    """Stands for one of numpy's numbers while the pickle is read."""

    def __init__(self, kind: Any, raw: Any = b""):
        self.parts = ((1,), kind, False, raw)


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.parts = (shape, kind, order == "F", bytes(raw))
    return array


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise UnreadablePickle(f"bytes in the encoding {visible(str(encoding))}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """What Python 3 writes for Python 2 where there are none."""
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.multiarray", "scalar"): _Number for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in ("numpy.core", "numpy._core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise UnreadablePickle(f"{visible(module)}.{visible(name)}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnreadablePickle("a reference to another file")


def read_pickle(path: Path) -> Any:
    """What a pickle holds: dict, list, tuple, str, bytes, int, float, bool, None and numpy arrays of numbers or text.

    One that Python 2 wrote is read with its texts as Latin-1.

    Raises:
        DataError: the file is not there, damaged, or names anything else; nothing of it has been run.
    """
    check_is_file(path)
    try:
        try:
            return _plain(_load(path, "ASCII"))
        except UnicodeDecodeError:
            return _plain(_load(path, "latin1"))
    except UnreadablePickle as cause:
        raise DataError(str(path), f"holds {cause}, which is not read", _WAY_OUT, reason="unsafe pickle") from None
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as cause:
        raise DataError(str(path), f"is no whole pickle: {visible(str(cause))}", _WAY_OUT, reason="corrupt file") from None
    except (RecursionError, MemoryError):
        raise DataError(str(path), "holds containers in containers without end", _WAY_OUT, reason="corrupt file") from None


def _load(path: Path, encoding: str) -> Any:
    with path.open("rb") as file:
        return _Reader(file, encoding=encoding).load()


def _plain(value: Any) -> Any:
    """The value with arrays and numbers in place of what stands for them."""
    if isinstance(value, _Number):
        return value.made()[0].item()
    if isinstance(value, _Array):
        return value.made()
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(inner) for inner in value)
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    raise UnreadablePickle(f"a value of type {type(value).__name__}")

"""Reads the zip files that `torch.save` writes. Nothing of a file is executed, and no bytes in it end the process.

`torch.load(weights_only=True)` calls constructors of torch and numpy with arguments that the file chooses, and damaged ones
have ended the process in numpy's dtype. Here the pickle in a file runs on a machine of few operations, which makes plain values,
tensors and numpy arrays, and checks the size of each against the bytes that are there.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

MALFORMED = (
    OSError,  # zipfile's and the system's
    RuntimeError,  # torch's own, RecursionError and NotImplementedError among them
    ValueError,  # UnicodeDecodeError among them
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What libraries raise for bytes that they do not understand."""
T = TypeVar("T")
_MOST_AXES = 32
_ANEW = "write it anew with a current version of torch: torch.save(torch.load(FILE), FILE)"
_CODES = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {"b1", "f2", "f4", "f8"}
"""Types of numpy's numbers."""
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Name in a pickle -> name of torch's type."""


class TorchFileError(ValueError):
    """A file is none of `torch.save`, or is damaged.

    Attributes:
        way_out: what helps.
    """

    def __init__(self, what: str, way_out: str = "copy it again"):
        super().__init__(what)
        self.way_out = way_out


class ForeignObjectError(TorchFileError):
    """A file holds something else than plain values, tensors and numpy arrays."""

    def __init__(self, name: str):
        super().__init__(f"holds a pickled object, {name[:80]!r}", "only tensors, numpy arrays and plain values are read")


def load_torch_file(file: bytes | Path) -> Any:
    """What `torch.save` wrote: plain values, numpy arrays, and tensors on the CPU without gradients.

    Time and memory are bounded by the size of the file. A file on a disk is mapped into memory, not copied.

    Args:
        file: its content, or a regular file that is there.

    Raises:
        TorchFileError: it was not written by `torch.save` of torch 1.6 or later, is damaged, or holds other objects.
    """
    try:
        if isinstance(file, bytes):
            return _load(io.BytesIO(file), bytearray(file))
        with file.open("rb") as opened:
            return _load(opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))  # open for as long as a tensor needs it
    except TorchFileError:
        raise
    except MALFORMED as cause:
        raise TorchFileError(f"is damaged: {(str(cause) or type(cause).__name__).strip().splitlines()[0]}") from cause


def _load(file: BinaryIO, content: bytearray | mmap.mmap) -> Any:
    if not zipfile.is_zipfile(file):
        raise TorchFileError("is no zip file as torch.save writes them, or was cut short", f"copy it again; or, where it is old, {_ANEW}")
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise TorchFileError("is compressed, as torch.save does not write it", _ANEW)
        if sum(entry.file_size for entry in entries.values()) > len(content):
            raise TorchFileError("is damaged: its parts are longer than the file")
        if damaged := archive.testzip():
            raise TorchFileError(f"is damaged: {damaged[:80]!r} in it has other bytes than its checksum says", f"copy it again; or {_ANEW}")
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise TorchFileError(f"holds {len(pickles)} files data.pkl, not one", "give a file of torch.save")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise TorchFileError("was written on a machine with the other order of bytes", "write it on another machine")
        return _Machine(content, entries, root).run(archive.read(pickles[0]))


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


class _Machine:
    """Runs the operations of a pickle of protocol 2, the one of `torch.save`.

    Args:
        content: of the zip file.
        root: folder in the zip file, with its "/".
    """

    def __init__(self, content: bytearray | mmap.mmap, entries: Mapping[str, zipfile.ZipInfo], root: str):
        self._content, self._entries, self._root = content, entries, root
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        for operation, value, _ in pickletools.genops(pickled):
            if operation.name == "STOP":
                break
            self._do(operation.name, value)
        return self._stack.pop()

    def _do(self, name: str, value: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[name]())
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(value)
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._last(int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = self._marked() if name == "APPENDS" else self._last(1)
                _of(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._marked() if name == "SETITEMS" else self._last(2)
                # Only such keys: to compare tuples of tuples may take for ever, or more of the stack than there is.
                keys = [_of((str, int, float, NoneType), key) for key in items[::2]]
                _of(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[value] = stack[-1]
                if isinstance(stack[-1], _Array):
                    stack[-1].places.append(value)
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[value])
            case "GLOBAL":
                stack.append(_named(value))
            case "REDUCE":
                maker, values = self._last(2)
                stack.append(_of(_Maker, maker).make(*_of(tuple, values)))
            case "BUILD":
                self._build(*self._last(2))
            case "BINPERSID":
                stack.append(self._storage(*_of(tuple, stack.pop())))
            case _:
                raise TorchFileError(f"is damaged, or none of torch.save: its pickle says {name}")

    def _last(self, count: int) -> list[Any]:
        """Takes so many from the stack."""
        taken = self._stack[-count:]
        del self._stack[-count:]
        if len(taken) < count:
            raise IndexError("its pickle takes more than it has given")
        return taken

    def _marked(self) -> list[Any]:
        """Takes all that has come onto the stack since the last mark."""
        place = self._marks.pop()
        taken = self._stack[place:]
        del self._stack[place:]
        return taken

    def _build(self, made: Any, state: Any) -> None:
        """Gives a state to the last that was made."""
        if isinstance(made, _DType):
            made.order = _of(str, state[1])
        elif isinstance(made, _Array):
            places, (_, shape, dtype, by_columns, raw) = made.places, _of(tuple, state)
            flat = np.frombuffer(bytearray(_of(bytes, raw)), _of(_DType, dtype).made())
            made = flat.reshape(_of(tuple, shape), order="F" if by_columns else "C")
            self._memo.update(dict.fromkeys(places, made))
        elif not isinstance(made, dict):  # an OrderedDict's attributes are not needed
            raise TorchFileError(f"is damaged: gives a state to {type(made).__name__}")
        self._stack.append(made)

    def _storage(self, kind: str, dtype: Any, key: str, device: str, count: int) -> _Storage:
        """Where the numbers of a tensor stand in the file."""
        entry = self._entries[f"{self._root}data/{_of(str, key)}"]
        names = struct.unpack("<HH", self._content[entry.header_offset + 26 : entry.header_offset + 30])
        return _Storage(self._content, _of(_Type, dtype).name, entry.header_offset + 30 + sum(names), entry.file_size, _of(int, count))


@dataclass(frozen=True)
class _Maker:
    """A function that a pickle may call."""

    make: Callable[..., Any]


@dataclass(frozen=True)
class _Type:
    """A type of numbers, by its name in torch; or of arrays, whose name is not needed."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers in a file.

    Attributes:
        dtype: name of torch's type.
        start: where they begin.
        size: in bytes.
        count: how many there are by the pickle.
    """

    content: bytearray | mmap.mmap
    dtype: str
    start: int
    size: int
    count: int


@dataclass
class _DType:
    """A type of numpy.

    Attributes:
        code: kind and bytes, such as "f4".
        order: of bytes: "<", ">", or "|" where there is but one.
    """

    code: str
    order: str = "|"

    def made(self) -> np.dtype[Any]:
        if self.code not in _CODES or self.order not in ("<", ">", "|", "="):
            raise ForeignObjectError(f"numpy.dtype {self.order}{self.code}")
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array of numpy that a pickle has begun, until it gives the values.

    Attributes:
        places: where it is remembered.
    """

    places: list[int] = field(default_factory=list)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> torch.Tensor:
    """A tensor on numbers of the file; torch compares its size and strides with theirs."""
    import torch

    given = _of(_Storage, storage)
    dtype: torch.dtype = getattr(torch, given.dtype)
    if len(size) > _MOST_AXES or given.size != given.count * dtype.itemsize or given.start + given.size > len(given.content):
        raise TorchFileError("is damaged: a tensor has other numbers than the file holds")
    content, start = given.content, given.start
    if start % dtype.itemsize:  # as torch does not write it, and some processors do not read it
        content, start = bytearray(content[start : start + given.size]), 0
    flat = torch.frombuffer(content, dtype=dtype, count=given.count, offset=start) if given.count else torch.empty(0, dtype=dtype)
    return flat.as_strided(size, stride, offset)


def _parameter(data: Any, *_: Any) -> torch.Tensor:
    import torch

    return _of(torch.Tensor, data)


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, which protocol 2 writes as text."""
    if encoding != "latin1":
        raise ForeignObjectError(f"text as {encoding}")
    return text.encode(encoding)


def _scalar(dtype: Any, raw: bytes) -> Any:
    return np.frombuffer(raw, _of(_DType, dtype).made(), 1)[0]


_NAMED: Mapping[str, _Maker | _Type] = {
    "collections OrderedDict": _Maker(lambda: {}),
    "torch Size": _Maker(tuple),
    "torch._utils _rebuild_tensor_v2": _Maker(_tensor),
    "torch._utils _rebuild_parameter": _Maker(_parameter),
    **{f"torch {name}": _Type(dtype) for name, dtype in _STORAGES.items()},
    "numpy ndarray": _Type("array"),
    "numpy dtype": _Maker(lambda code, *_: _DType(_of(str, code))),
    **{f"{core}.multiarray _reconstruct": _Maker(lambda *_: _Array()) for core in ("numpy.core", "numpy._core")},
    **{f"{core}.multiarray scalar": _Maker(_scalar) for core in ("numpy.core", "numpy._core")},
    "_codecs encode": _Maker(_encoded),
    "__builtin__ bytes": _Maker(lambda: b""),
}
"""Module and name in a pickle -> what it stands for here."""


def _named(name: str) -> _Maker | _Type:
    if name not in _NAMED:
        raise ForeignObjectError(name.replace(" ", "."))
    return _NAMED[name]


def _of(kind: type[T] | tuple[type[T], ...], value: Any) -> T:
    """The value, if it is of the kind.

    Raises:
        TorchFileError: it is not.
    """
    if not isinstance(value, kind):
        raise TorchFileError(f"is damaged: {type(value).__name__} stands where it does not belong")
    return value

"""Damages the folder of a checkpoint as accidents and attackers do. Everything depends on the generator's seed alone."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Damage = Callable[[Path, Random, Path], None]
"""Changes a file. The last argument is a file that nothing may ever make: what an attack would write, if it were executed."""


class _Writes:
    """An object whose pickle writes a file when it is loaded as pickle means it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.marker}",)


def damage(folder: Path, random: Random, marker: Path) -> str:
    """Damages one file of a folder, and says which and how."""
    file = random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    own = {".json": _JSON, ".safetensors": _SAFETENSORS}.get(file.suffix, _PICKLES)
    kind = random.choice([*_ANY_FILE, *own, *own])
    kind(file, random, marker)
    return f"{file.name}: {kind.__name__.strip('_')}"


def _cut(file: Path, random: Random, marker: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: random.randrange(len(data) + 1)])


def _flip(file: Path, random: Random, marker: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(random.choice((1, 4, 64))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)


def _noise(file: Path, random: Random, marker: Path) -> None:
    file.write_bytes(random.randbytes(random.randrange(2000)))


def _folder(file: Path, random: Random, marker: Path) -> None:
    file.unlink()
    file.mkdir()


def _loop(file: Path, random: Random, marker: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _pipe(file: Path, random: Random, marker: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _gone(file: Path, random: Random, marker: Path) -> None:
    file.unlink()


def _odd(random: Random) -> Any:
    """A JSON value that nobody would expect at its place."""
    huge = random.choice((10**12, -1, 0, 2**63, 1.5, 1e308))
    return random.choice((None, True, huge, "", "\ud800", "l2", [], [[]], {}, {"a": []}, ["video", "video"], [{}], "x" * 5000))


def _swap_value(file: Path, random: Random, marker: Path) -> None:
    said = json.loads(file.read_text())
    place = said
    while isinstance(place, dict) and place:
        key = random.choice(sorted(place))
        if not isinstance(place[key], dict) or random.random() < 0.5:
            place[key] = _odd(random)
            break
        place = place[key]
    file.write_text(json.dumps(said))


def _drop_key(file: Path, random: Random, marker: Path) -> None:
    said = json.loads(file.read_text())
    said.pop(random.choice(sorted(said)))
    file.write_text(json.dumps(said))


def _odd_json(file: Path, random: Random, marker: Path) -> None:
    deep = "[" * 100_000
    file.write_text(
        random.choice((deep, '{"a":' * 100_000, "9" * 5000, '{"a": NaN}', "null", '"\\ud800"', '{"\\ud800": 1}', " " * (2 << 20)))
    )


def _header(file: Path, random: Random, marker: Path) -> None:
    """Another header of safetensors: other types, shapes and places, or another length than it has."""
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = random.choice(sorted(key for key in header if key != "__metadata__"))
    field = random.choice(("dtype", "shape", "data_offsets", "length", "name", "whole"))
    if field == "dtype":
        header[name]["dtype"] = random.choice(("I64", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "F64", "U16", "XX", 7))
    elif field == "shape":
        header[name]["shape"] = random.choice(([], [10**12], [-1], [2**63], ["a"], [0], header[name]["shape"][::-1]))
    elif field == "data_offsets":
        header[name]["data_offsets"] = random.choice(([0, 0], [5, 1], [0, 10**15], [-4, 4], [], "x"))
    elif field == "name":
        header[random.choice(("", "heads.x.weight", "heads.0.weight.more", "\x00", "head.weight"))] = header.pop(name)
    elif field == "whole":
        header = random.choice(({}, [], {"a": {}}, None))
    text = json.dumps(header).encode()
    length = random.choice((0, 2**40, 2**63, len(text) - 1)) if field == "length" else len(text)
    file.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])


def entries(file: Path | io.BytesIO) -> dict[str, bytes]:
    """The files in a zip file."""
    with zipfile.ZipFile(file) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def zipped(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of them."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return made.getvalue()


def _pickle_of(value: Any) -> bytes:
    made = io.BytesIO()
    pickle.Pickler(made, protocol=2).dump(value)
    return made.getvalue()


def _other_pickle(file: Path, random: Random, marker: Path) -> None:
    """Another pickle in place of the one that describes the tensors; some would execute a program."""
    parts = entries(file)
    name = next(entry for entry in parts if entry.endswith("data.pkl"))
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    values = (
        _Writes(marker),
        {"a": _Writes(marker)},
        [1, 2],
        {1: 2},
        {"heads.0.weight": 3},
        None,
        deep,
        OrderedDict(a="b"),
        bytearray(10),
        {},
    )
    made = random.choice(
        [_pickle_of(value) for value in values] + [b"\x80\x02.", b"c__builtin__\neval\n(S'1'\ntR.", b"\x80\x02}q\x00X\xff\xff\xff\x7fa."]
    )
    file.write_bytes(zipped(parts | {name: made}))


def _damaged_pickle(file: Path, random: Random, marker: Path) -> None:
    parts = entries(file)
    name = next(entry for entry in parts if entry.endswith("data.pkl"))
    data = bytearray(parts[name])
    for _ in range(random.choice((1, 3))):
        data[random.randrange(len(data))] = random.randrange(256)
    file.write_bytes(zipped(parts | {name: bytes(data)}))


def _bare_pickle(file: Path, random: Random, marker: Path) -> None:
    file.write_bytes(_pickle_of(random.choice((_Writes(marker), {"a": 1}))))


def _bomb(file: Path, random: Random, marker: Path) -> None:
    """A few kilobytes that would become 64 megabytes."""
    parts = entries(file)
    name = next(entry for entry in parts if entry.endswith("data.pkl"))
    file.write_bytes(zipped(parts | {name: parts[name] + bytes(64 << 20)}, zipfile.ZIP_DEFLATED))


def _without_storage(file: Path, random: Random, marker: Path) -> None:
    parts = entries(file)
    name = random.choice(sorted(parts))
    parts.pop(name) if random.random() < 0.5 else parts.update({name: parts[name][:-4]})
    file.write_bytes(zipped(parts))


_ANY_FILE: list[Damage] = [_cut, _flip, _noise, _folder, _loop, _pipe, _gone]
_JSON: list[Damage] = [_swap_value, _swap_value, _drop_key, _odd_json]
_SAFETENSORS: list[Damage] = [_header]
_PICKLES: list[Damage] = [_other_pickle, _damaged_pickle, _bare_pickle, _bomb, _without_storage]

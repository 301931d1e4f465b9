"""What can happen to the folder of a finished step: files that are gone, cut, flipped, swapped, or valid JSON of another shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from hba_ray.store.folders import LOCK

SHAPES = (
    b"", b"{}", b"[]", b"null", b"7", b'"text"', b"[" * 100_000, b'{"a": 1e999}', b'{"files": []}', b'{"files": {"a": 1}}',
    b'{"version": "x"}', b'{"drops": {"a": 5}}', b"\xff\xfe\x00", b"PAR1PAR1",
)  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    """A change of one file.

    Attributes:
        kind: what is done to it.
        where: which of the files, as a share of them all in the order of their names.
        at: where in the file, as a share of its size.
        shape: what it holds instead.
    """

    kind: str
    where: float
    at: float
    shape: bytes

    def files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)

    def do(self, folder: Path) -> Path | None:
        """Damages a file of a step; returns it, or None where its bytes are what they were."""
        files = self.files(folder)
        file = files[min(int(self.where * len(files)), len(files) - 1)]
        before = file.read_bytes()
        DOING[self.kind](self, file, before)
        return None if file.is_file() and file.read_bytes() == before else file


def _flip(one: Damaged, file: Path, before: bytes) -> None:
    at = min(int(one.at * len(before)), len(before) - 1)
    file.write_bytes(before[:at] + bytes(byte ^ 0x15 for byte in before[at : at + 64]) + before[at + 64 :])


def _flip_one(one: Damaged, file: Path, before: bytes) -> None:
    at = min(int(one.at * len(before)), len(before) - 1)
    file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])


def _swap_types(one: Damaged, file: Path, before: bytes) -> None:
    """Gives a value of a JSON object another type; other files get another shape."""
    facts = json.loads(before) if file.suffix == ".json" else None
    if not isinstance(facts, dict) or not facts:
        file.write_bytes(one.shape)
        return
    key = sorted(facts)[min(int(one.at * len(facts)), len(facts) - 1)]
    value = facts[key]
    facts[key] = [value] if not isinstance(value, list) else "text"
    file.write_text(json.dumps(facts))


def _swap_files(one: Damaged, file: Path, before: bytes) -> None:
    """Puts another file of the step in its place."""
    others = [path for path in sorted(file.parent.iterdir()) if path.is_file() and path not in (file, file.with_name(LOCK))]
    if others:
        shutil.copyfile(others[min(int(one.at * len(others)), len(others) - 1)], file)


def _become_folder(one: Damaged, file: Path, before: bytes) -> None:
    file.unlink()
    file.mkdir()


def _loop(one: Damaged, file: Path, before: bytes) -> None:
    file.unlink()
    file.symlink_to(file)


DOING: dict[str, Callable[[Damaged, Path, bytes], object]] = {
    "gone": lambda one, file, before: file.unlink(),
    "cut": lambda one, file, before: file.write_bytes(before[: int(one.at * len(before))]),
    "longer": lambda one, file, before: file.write_bytes(before + one.shape),
    "64 bytes flipped": _flip,
    "a bit flipped": _flip_one,
    "another shape": lambda one, file, before: file.write_bytes(one.shape),
    "another type": _swap_types,
    "another file": _swap_files,
    "a folder": _become_folder,
    "a loop of links": _loop,
}
SHARES = st.floats(0, 1, exclude_max=True)


def damaged_steps() -> st.SearchStrategy[Damaged]:
    """All of these, to any file of a step."""
    return st.builds(Damaged, st.sampled_from(sorted(DOING)), SHARES, SHARES, st.sampled_from(SHAPES))

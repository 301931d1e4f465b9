"""Weights and tables are known by all their bytes, which are read once; clips by size and time of change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from hba_ray.store.files import GONE, MEMORY, file_digest, file_digests, folder_digests, stamp, stamps

BYTES = 3 << 20
"""Of a file: more than is read at once."""


def written(path: Path, place: int = 0, letter: bytes = b"x") -> Path:
    """A file of zeros but for one letter."""
    content = bytearray(BYTES)
    content[place : place + 1] = letter
    path.write_bytes(content)
    return path


class Reader:
    """Opens files, and counts how often."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def __call__(self, path: Path) -> BinaryIO:
        self.opened.append(path.name)
        return path.open("rb")


def digests(reader: Reader, paths: list[Path], memory: Path, recent_seconds: float = 0.0) -> list[str]:
    return file_digests(paths, memory=memory, recent_seconds=recent_seconds, opener=reader)


@pytest.mark.parametrize("name", ["model.safetensors", "train-00000-of-00001.parquet", "train.jsonl"])
@pytest.mark.parametrize("place", [0, BYTES // 2, BYTES - 1])
def test_two_files_that_differ_in_one_byte_differ(tmp_path: Path, name: str, place: int):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    assert file_digest(written(one / name, place)) != file_digest(written(other / name, place, b"y"))
    assert file_digest(one / name) == file_digest(written(other / name, place)), "the place of a file does not count"


def test_a_folder_is_known_by_its_files_in_order(tmp_path: Path):
    for name in ("one", "other", "longer"):
        (tmp_path / name).write_bytes(bytes(5 + len(name)))
    (tmp_path / "folder").mkdir()
    found = folder_digests(tmp_path)
    assert [name for name, _ in found] == ["longer", "one", "other"] and len({digest for _, digest in found}) == 3


def test_a_file_is_read_once_wherever_it_is_moved_or_linked(tmp_path: Path):
    reader, file = Reader(), written(tmp_path / "model.safetensors")
    (first,) = digests(reader, [file], tmp_path)
    (tmp_path / "link").symlink_to(file)
    assert digests(reader, [file, tmp_path / "link"], tmp_path) == [first, first]
    assert reader.opened == ["model.safetensors"]


def test_an_edit_in_the_middle_that_keeps_size_and_time_is_noticed(tmp_path: Path):
    reader, file = Reader(), written(tmp_path / "model.safetensors")
    os.utime(file, ns=(0, 10**9))
    before = digests(reader, [file], tmp_path)
    with file.open("r+b") as content:
        content.seek(BYTES // 2)
        content.write(b"y")
    os.utime(file, ns=(0, 10**9))
    assert digests(reader, [file], tmp_path) != before


def test_a_file_that_was_only_just_written_is_read_again(tmp_path: Path):
    reader, file = Reader(), written(tmp_path / "model.safetensors")
    assert digests(reader, [file], tmp_path, 60.0) == digests(reader, [file], tmp_path, 60.0)
    assert len(reader.opened) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda line: line[: len(line) // 2], lambda line: b"[1, 2]\n", lambda line: line.replace(b"[", b'["x", '), lambda line: b"\xff\n"],
)
def test_a_damaged_line_is_no_digest_and_harms_no_other(tmp_path: Path, damage):
    reader, one, other = Reader(), written(tmp_path / "one"), written(tmp_path / "other", letter=b"y")
    before = digests(reader, [one], tmp_path)
    memory = tmp_path / MEMORY
    memory.write_bytes(damage(memory.read_bytes()))
    before += digests(reader, [other], tmp_path)
    assert digests(reader, [one, other], tmp_path) == before
    assert reader.opened == ["one", "other", "one"]


def test_a_folder_that_is_not_there_remembers_nothing_and_is_not_made(tmp_path: Path):
    reader, file = Reader(), written(tmp_path / "file")
    digests(reader, [file], tmp_path / "runs")
    assert not (tmp_path / "runs").exists() and reader.opened == ["file"]


def test_a_clip_is_known_by_size_and_time_of_change(tmp_path: Path):
    clips = [tmp_path / f"{number}.wav" for number in range(40)]
    for clip in clips:
        clip.write_bytes(b"sound")
    before = stamps(clips)
    assert before == [stamp(clip) for clip in clips]
    os.utime(clips[3], ns=(1, 1))
    clips[7].unlink()
    after = stamps(clips)
    assert [place for place in range(40) if after[place] != before[place]] == [3, 7] and after[7] == GONE
    assert stamps([]) == []

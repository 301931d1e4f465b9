"""What is noticed of a file without reading all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hba_ray.store.files import EDGE_BYTES, GONE, file_digest, folder_digests, stamp, stamps


def written(path: Path, place: int, letter: bytes = b"x") -> Path:
    """A file of five edges, all zeros but for one letter."""
    content = bytearray(5 * EDGE_BYTES)
    content[place : place + 1] = letter
    path.write_bytes(content)
    os.utime(path, ns=(0, hash((place, letter)) % 10**9))  # on a coarse clock, two writes have one time
    return path


MIDDLE = 2 * EDGE_BYTES


@pytest.mark.parametrize("place", [0, EDGE_BYTES - 1, 4 * EDGE_BYTES, 5 * EDGE_BYTES - 1])
def test_a_change_at_either_end_is_noticed(tmp_path: Path, place: int):
    file = tmp_path / "shard.parquet"
    assert file_digest(written(file, place)) != file_digest(written(file, place, b"y"))


@pytest.mark.parametrize(
    ("name", "is_noticed"), [("train.jsonl", True), ("TABLE.CSV", True), ("config.json", True), ("shard.parquet", False)]
)
def test_an_edit_in_the_middle_is_noticed_in_tables_of_text(tmp_path: Path, name: str, is_noticed: bool):
    file = tmp_path / name
    assert (file_digest(written(file, MIDDLE)) != file_digest(written(file, MIDDLE, b"y"))) == is_noticed
    assert file_digest(written(file, MIDDLE), whole=True) != file_digest(written(file, MIDDLE, b"y"), whole=True)


def test_the_size_counts_and_the_place_does_not(tmp_path: Path):
    one, other, longer = (tmp_path / name for name in ("one", "other", "longer"))
    for file, size in ((one, 3 * EDGE_BYTES), (other, 3 * EDGE_BYTES), (longer, 4 * EDGE_BYTES)):
        file.write_bytes(bytes(size))
    assert file_digest(one) == file_digest(other) != file_digest(longer)
    assert [name for name, _ in folder_digests(tmp_path)] == ["longer", "one", "other"]


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

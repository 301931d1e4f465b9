"""The keys of an atlas's clips are kept, and made again where what was kept is damaged or no longer true."""

from pathlib import Path

import numpy as np
import pytest

from hba_ray.descriptors.keys import KeyStore
from tests.helpers.indices import index_of


@pytest.mark.parametrize("damage", [lambda held: held[:-20], lambda held: b"", lambda held: held[:4] + bytes(len(held) - 50) + held[-46:]])
def test_damaged_keys_are_made_again(odd_atlas: Path, tmp_path: Path, damage):
    index = index_of(odd_atlas)
    store = KeyStore.of(tmp_path / "store", index)
    (chunk,) = store.chunks(np.arange(len(index.table)))
    made = store.make(index, chunk)
    assert store.load(chunk, bad_rows=True) == made
    (file,) = store.folder.glob("*.parquet")
    file.write_bytes(damage(file.read_bytes()))
    assert store.load(chunk, bad_rows=True) is None
    store.make(index, chunk)
    assert store.load(chunk, bad_rows=True) == made


def test_keys_of_a_file_that_has_changed_are_not_used(odd_atlas: Path, tmp_path: Path):
    index = index_of(odd_atlas)
    store = KeyStore.of(tmp_path / "store", index)
    (chunk,) = store.chunks(np.arange(len(index.table)))
    store.make(index, chunk)
    changed = next(odd_atlas.rglob("nod.mp4"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert store.load(chunk, bad_rows=True) is None

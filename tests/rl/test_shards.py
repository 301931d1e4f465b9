from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hba_ray.errors import CheckpointError
from hba_ray.rl.shards import TensorFiles, gather, pieces, wholes
from tests.helpers.sharded import peak_of_merging, write_sharded


def test_merging_takes_less_memory_than_one_and_a_half_shards(tmp_path: Path):
    """In a process of its own, on a checkpoint of 320 MB by four workers; a memory of both whole would be 320 MB and more."""
    tensors = {f"thinker.{i}": (torch.full((1000, 8000), float(i)), 0) for i in range(10)}
    largest = write_sharded(tmp_path / "actor", tensors, world=4)
    (tmp_path / "out").mkdir()
    assert peak_of_merging(tmp_path / "actor", tmp_path / "out") < 1.5 * largest
    made = {name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert made.keys() == tensors.keys() and all(torch.equal(made[name], whole) for name, (whole, _) in tensors.items())


@pytest.mark.parametrize("file_bytes", [10**9, 300])
def test_pieces_come_to_their_places_however_they_are_cut(tmp_path: Path, file_bytes: int):
    generator = torch.Generator().manual_seed(0)
    shapes = {"rows": ((7, 4), 0), "columns": ((4, 6, 3), 1), "last": ((3, 5), 1), "few": ((2, 3), 0)}
    shapes |= {"everywhere": ((5,), None), "one": ((), None)}
    tensors = {name: (torch.randn(shape, generator=generator), cut) for name, (shape, cut) in shapes.items()}
    tensors["half"] = (torch.randn(9, 2, generator=generator).bfloat16(), 0)
    write_sharded(tmp_path / "actor", tensors, world=3)
    gathered, out = gather(tmp_path / "actor"), tmp_path / "out"
    out.mkdir()
    files = TensorFiles(out, wholes(tmp_path / "actor"), file_bytes=file_bytes)
    for piece in pieces(tmp_path / "actor"):
        files.put(piece)
    written = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name, (whole, _) in tensors.items():
        assert torch.equal(gathered[name], whole) and torch.equal(written[name], whole), name
        assert written[name].dtype == whole.dtype
    index = out / "model.safetensors.index.json"
    assert index.exists() == (file_bytes == 300)
    if index.exists():
        assert json.loads(index.read_text())["weight_map"].keys() == tensors.keys()


def test_shards_that_do_not_make_up_the_tensor_are_refused(tmp_path: Path):
    write_sharded(tmp_path / "actor", {"a": (torch.zeros(6, 2), 0)}, world=3)
    write_sharded(tmp_path / "other", {"a": (torch.zeros(3, 2), 0)}, world=3)
    write_sharded(tmp_path / "third", {"b": (torch.zeros(6, 2), 0)}, world=3)
    last = "model_world_size_3_rank_2.pt"
    (tmp_path / "other" / last).replace(tmp_path / "actor" / last)
    with pytest.raises(CheckpointError, match="has 5 of the 6 rows of a"):
        gather(tmp_path / "actor")
    (tmp_path / "third" / last).replace(tmp_path / "actor" / last)
    with pytest.raises(CheckpointError, match="workers 0 and 2 differ, first in a"):
        gather(tmp_path / "actor")
    (tmp_path / "actor" / last).write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match=r"rank_2\.pt: is missing or damaged"):
        gather(tmp_path / "actor")

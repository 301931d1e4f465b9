"""Makes checkpoints as verl's FSDP2 workers write them, in one process: each worker's piece of every tensor is a file of DTensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed import fake_pg  # noqa: F401, its import registers the backend "fake"


def write_sharded(folder: Path, tensors: Mapping[str, tuple[Tensor, int | None]], world: int) -> int:
    """Writes the shards of a checkpoint.

    Args:
        tensors: by name, each with the dimension along which workers hold pieces; None where each holds all of it.

    Returns:
        Bytes of the largest shard.
    """
    folder.mkdir(parents=True)
    for rank in range(world):
        dist.init_process_group("fake", rank=rank, world_size=world, store=dist.HashStore())
        try:
            mesh = init_device_mesh("cpu", (world,))
            shard = {}
            for name, (whole, cut) in tensors.items():
                pieces = (*whole.chunk(world, cut), *[whole.narrow(cut, 0, 0)] * world) if cut is not None else [whole] * world
                placements = [Replicate() if cut is None else Shard(cut)]
                shape = {"shape": whole.shape, "stride": whole.stride()}
                shard[name] = DTensor.from_local(pieces[rank].clone(), mesh, placements, run_check=False, **shape)
            torch.save(shard, folder / f"model_world_size_{world}_rank_{rank}.pt")
        finally:
            dist.destroy_process_group()
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
    return max(file.stat().st_size for file in folder.glob("*.pt"))

"""Makes checkpoints as verl's FSDP2 workers write them, in one process: each worker's piece of every tensor is a file of DTensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard


def write_sharded(folder: Path, tensors: Mapping[str, tuple[Tensor, int | None]], world: int) -> int:
    """Writes the shards of a checkpoint.

    Args:
        tensors: by name, each with the dimension along which workers hold pieces; None where each holds all of it.

    Returns:
        Bytes of the largest shard.
    """
    folder.mkdir(parents=True)
    for rank in range(world):
        # A mesh without a process group: this process may have one of its own, which it keeps (`join_process_group`).
        mesh = DeviceMesh("cpu", list(range(world)), _init_backend=False, _rank=rank)
        shard = {}
        for name, (whole, cut) in tensors.items():
            pieces = (*whole.chunk(world, cut), *[whole.narrow(cut, 0, 0)] * world) if cut is not None else [whole] * world
            placements = [Replicate() if cut is None else Shard(cut)]
            shape = {"shape": whole.shape, "stride": whole.stride()}
            shard[name] = DTensor.from_local(pieces[rank].clone(), mesh, placements, run_check=False, **shape)
        torch.save(shard, folder / f"model_world_size_{world}_rank_{rank}.pt")
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
    return max(file.stat().st_size for file in folder.glob("*.pt"))

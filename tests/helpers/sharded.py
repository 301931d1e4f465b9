"""Makes checkpoints as verl's FSDP2 workers write them, in one process: each worker's piece of every tensor is a file of DTensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

_MERGE = """
import re, sys
from pathlib import Path
import torch.distributed.tensor  # which the shards would import, and it is not they that are measured
from hba_ray.rl import shards

def peak() -> int:
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before, checkpoint, out = peak(), Path(sys.argv[1]), Path(sys.argv[2])
files = shards.TensorFiles(out, shards.wholes(checkpoint), file_bytes=200_000_000)
for piece in shards.pieces(checkpoint):
    files.put(piece)
    del piece
print(peak() - before)
"""


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


def peak_of_merging(checkpoint: Path, out: Path) -> int:
    """Bytes of memory that a process takes at most, beyond what it has at its start, to write the whole tensors of a checkpoint."""
    done = subprocess.run([sys.executable, "-c", _MERGE, str(checkpoint), str(out)], capture_output=True, text=True, check=True)
    return int(done.stdout)

"""The weights of verl's sharded checkpoints made whole, with no more than one worker's shard in memory at a time.

A checkpoint of FSDP2 (verl 0.9.1) has one file for each worker, `model_world_size_W_rank_R.pt`, with that worker's piece of every
tensor. The pieces are copied to their places in safetensors files that have their final size from the start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from hba_ray.errors import CheckpointError
from hba_ray.models.tensors import UNREADABLE

FSDP_CONFIG = "fsdp_config.json"
"""Beside the shards; it says how many there are."""
FILE_BYTES = 5_000_000_000
"""Largest size of a file of weights, as transformers and the hub have it."""

_OTHER_CHECKPOINT = "use an earlier checkpoint"
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""dtype -> its name in a safetensors header."""


@dataclass(frozen=True)
class Whole:
    """What is known of a tensor before it is there.

    Attributes:
        cut: dimension along which workers hold pieces of it; None where each holds all of it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    cut: int | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, and where it belongs: from `start` on along the dimension `cut`."""

    name: str
    part: Tensor
    cut: int = 0
    start: int = 0


def world_size(folder: Path) -> int:
    """The number of workers whose shards a folder holds.

    Raises:
        CheckpointError: it does not say.
    """
    try:
        return int(json.loads((folder / FSDP_CONFIG).read_text())["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(str(folder / FSDP_CONFIG), f"is missing or damaged: {cause}", _OTHER_CHECKPOINT) from cause


def wholes(folder: Path) -> dict[str, Whole]:
    """The tensors of a checkpoint by name, as the first shard describes them.

    Raises:
        CheckpointError: the shard is missing, damaged, or not cut along one dimension of one mesh.
    """
    return {name: _whole(folder, name, tensor) for name, tensor in _shard(folder, 0).items()}


def pieces(folder: Path) -> Iterator[Piece]:
    """The pieces of all tensors, worker by worker. Who keeps one keeps its shard in memory.

    Raises:
        CheckpointError: as `wholes`, of any shard; or the shards do not make up the tensors that the first one describes.
    """
    described = wholes(folder)
    reached = dict.fromkeys(described, 0)
    for rank in range(world_size(folder)):
        yield from _of_worker(folder, rank, described, reached)
    for name, whole in described.items():
        if whole.cut is not None and reached[name] != whole.shape[whole.cut]:
            what = f"has {reached[name]} of the {whole.shape[whole.cut]} rows of {name}"
            raise CheckpointError(str(folder), what, _OTHER_CHECKPOINT)


def gather(folder: Path) -> dict[str, Tensor]:
    """Whole tensors in memory, for checkpoints that are small.

    Raises:
        CheckpointError: as `pieces`.
    """
    made = {name: torch.empty(whole.shape, dtype=whole.dtype) for name, whole in wholes(folder).items()}
    for piece in pieces(folder):
        _put(piece, made[piece.name])
    return made


class TensorFiles:
    """Safetensors files of a model, and the index of several, whose tensors are put in piece by piece.

    Args:
        folder: exists and holds no weights.
        tensors: all that the files will hold.
        file_bytes: largest size of a file.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Whole], *, file_bytes: int = FILE_BYTES):
        self.tensors = tensors
        self.places: dict[str, tuple[Path, int]] = {}
        empty = {name: torch.empty(whole.shape, dtype=whole.dtype, device="meta") for name, whole in tensors.items()}
        split = split_torch_state_dict_into_shards(empty, max_shard_size=file_bytes)
        for file, names in split.filename_to_tensors.items():
            self._reserve(folder / file, sorted(names, key=lambda name: -tensors[name].dtype.itemsize))  # keeps each aligned
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def put(self, piece: Piece) -> None:
        """Copies a piece to its place."""
        whole, (file, offset) = self.tensors[piece.name], self.places[piece.name]
        stored = np.memmap(file, np.uint8, "r+", offset, (_bytes(whole),))
        _put(piece, torch.from_numpy(stored).view(whole.dtype).view(whole.shape))
        stored.flush()

    def _reserve(self, file: Path, names: list[str]) -> None:
        """Writes the header of a file, and gives the file its size."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            whole, start = self.tensors[name], end
            end += _bytes(whole)
            header[name] = {"dtype": _NAMES[whole.dtype], "shape": list(whole.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
        self.places |= {name: (file, 8 + len(text) + header[name]["data_offsets"][0]) for name in names}


def _put(piece: Piece, whole: Tensor) -> None:
    if whole.dim():
        whole = whole.narrow(piece.cut, piece.start, piece.part.shape[piece.cut])
    whole.copy_(piece.part)


def _bytes(whole: Whole) -> int:
    return int(np.prod(whole.shape, dtype=np.int64)) * whole.dtype.itemsize


def _of_worker(folder: Path, rank: int, described: Mapping[str, Whole], reached: dict[str, int]) -> Iterator[Piece]:
    """The pieces of one worker; those that every worker holds whole come from the first.

    Args:
        reached: name -> how much of the tensor earlier workers held, along the dimension of its cut; counted on.
    """
    shard = _shard(folder, rank)
    if differing := sorted(shard.keys() ^ described.keys()):
        raise CheckpointError(str(folder), f"the shards of workers 0 and {rank} differ, first in {differing[0]}", _OTHER_CHECKPOINT)
    for name, whole in described.items():
        part = shard[name] if whole.cut is None else shard[name].to_local()
        if whole.cut is not None:
            yield Piece(name, part, whole.cut, reached[name])
            reached[name] += part.shape[whole.cut]
        elif rank == 0:
            yield Piece(name, _local(part))


def _whole(folder: Path, name: str, tensor: Tensor) -> Whole:
    from torch.distributed.tensor import DTensor

    if tensor.dtype not in _NAMES:
        raise CheckpointError(str(folder), f"{name} is of {tensor.dtype}", "weights are floating-point numbers")
    cuts = [getattr(placement, "dim", 0) for placement in tensor.placements if placement.is_shard()] if isinstance(tensor, DTensor) else []
    if len(cuts) > 1:
        raise CheckpointError(str(folder), f"{name} is cut along {len(cuts)} dimensions", "train with fsdp2 alone")
    return Whole(tuple(tensor.shape), tensor.dtype, cuts[0] if cuts else None)


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard(folder: Path, rank: int) -> dict[str, Any]:
    """The tensors of one worker, mapped from their file: what is not looked at is not read."""
    file = folder / f"model_world_size_{world_size(folder)}_rank_{rank}.pt"
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)  # warns of a mesh without processes: there are none here
    try:
        shard = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    except UNREADABLE as cause:
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        raise CheckpointError(str(file), f"is missing or damaged: {reason}", _OTHER_CHECKPOINT) from cause
    if not isinstance(shard, dict):
        raise CheckpointError(str(file), "holds no tensors by name", _OTHER_CHECKPOINT)
    return shard

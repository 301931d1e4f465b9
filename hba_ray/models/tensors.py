"""Reads files of tensors: safetensors, and those that `torch.save` writes. Whatever a file holds, nothing of it is executed.

A file that is damaged, or made to do harm, ends in a `CheckpointError`, in a time and memory that its size bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hba_ray.data.torch_files import MALFORMED, TorchFileError, load_torch_file
from hba_ray.errors import CheckpointError

MOST_NAMES = 100_000
"""The whole Qwen2.5-Omni-7B has some 2 000 tensors."""
UNREADABLE = (SafetensorError, *MALFORMED)
"""What the readers of torch and safetensors raise for bytes that they do not understand."""


def read_tensors(path: Path, *, way_out: str) -> dict[str, Tensor]:
    """The tensors of a file by name; floating-point numbers, on the CPU.

    Args:
        path: `.safetensors`, or else a zip file of `torch.save`, of which nothing is executed.
        way_out: of the errors.

    Raises:
        CheckpointError: it is missing, no regular file, damaged, or holds something else than such tensors.
    """
    if not path.is_file():
        raise CheckpointError(str(path), "is missing or no file", way_out)
    try:
        given = load_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    except TorchFileError as cause:
        raise CheckpointError(str(path), str(cause), f"{cause.way_out}; or {way_out}") from cause
    except UNREADABLE as cause:
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        raise CheckpointError(str(path), f"is damaged: {reason}", way_out) from cause
    if not isinstance(given, Mapping) or len(given) > MOST_NAMES:
        raise CheckpointError(str(path), "is damaged: it holds no tensors by name", way_out)
    for name, tensor in given.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(str(path), f"is damaged: {str(name)[:80]!r} is no tensor", way_out)
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point():
            raise CheckpointError(str(path), f"is damaged: {name[:80]!r} is no tensor of floating-point numbers in memory", way_out)
    return dict(given)

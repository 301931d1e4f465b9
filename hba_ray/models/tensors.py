"""Reads files of tensors: safetensors, and the zip files that `torch.save` writes. Whatever a file holds, nothing of it is executed.

A file that is damaged, or made to do harm, ends in a `CheckpointError`, in a time and memory that its size bounds.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hba_ray.errors import CheckpointError

MOST_NAMES = 100_000
"""The whole Qwen2.5-Omni-7B has some 2 000 tensors."""
UNREADABLE = (
    OSError,  # zipfile's and the system's
    RuntimeError,  # torch's own, RecursionError and NotImplementedError among them
    ValueError,  # UnicodeDecodeError among them
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)
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
        given = load_file(path) if path.suffix == ".safetensors" else _read_zip(path)
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


def _read_zip(path: Path) -> Any:
    """What `torch.save` wrote. Its files are stored without compression, so their size bounds what reading them takes."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise zipfile.BadZipFile(f"{packed[0][:80]!r} in it is compressed, as torch does not write it")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)

"""Files of tensors, safetensors and those that `torch.save` writes, and the folders that hold them.

Whatever a file holds, nothing of it is executed; one that is damaged, or made to do harm, ends in a `CheckpointError`, in a time and
memory that its size bounds. A folder is written whole or not at all.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that replaces `folder` when the block ends without an error, and is removed otherwise.

    Raises:
        OSError: the block could not write; safetensors' own error for it becomes that of the system.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
    draft.mkdir()
    try:
        yield draft
        _replace(folder, draft)
    except SafetensorError as cause:
        said = re.search(r"\(os error (\d+)\)", str(cause))
        if said is None:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1])), str(folder)) from cause
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _replace(folder: Path, draft: Path) -> None:
    """Renames `draft` to `folder`, and removes a former folder, which another process may create at any time."""
    former = draft.with_name(f"{draft.name}.former")
    while True:
        try:
            os.rename(draft, folder)
            return
        except OSError as cause:
            if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):
            os.rename(folder, former)
            shutil.rmtree(former)

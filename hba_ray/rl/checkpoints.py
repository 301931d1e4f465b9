"""Folders in and out of verl: from a thinker to the full layout that verl and vLLM start from, and from FSDP's shards back.

Both folders are in Qwen2.5-Omni's full layout without speech: weights `thinker.*`, `enable_audio_output`
false. transformers and vLLM load them, and so does `models.backbone.load_backbone`.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hba_ray.errors import CheckpointError
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.models.checkpoints import load_model
from hba_ray.models.export import export_thinker, merge_lora
from hba_ray.specs import ExperimentSpec
from hba_ray.training.sft import build_model

_LATEST = "latest_checkpointed_iteration.txt"
"""verl writes it last, so what it names is whole."""
_SHARDS = "fsdp_config.json"
_START_OVER = "delete the step's folder to train from the start"


def write_start(spec: ExperimentSpec, backbone: str, sft: Path | None, folder: Path, *, dtype: torch.dtype) -> None:
    """The folder that a GRPO run starts from.

    Args:
        backbone: folder or hub id of the backbone, in either layout.
        sft: folder of an SFT checkpoint, whose weights, LoRA merged, take the place of the backbone's; its heads stay behind.
        dtype: in which the weights are written; LoRA is merged in fp32.

    Raises:
        CheckpointError: either of them cannot be used.
    """
    if sft is None:
        thinker = load_backbone(backbone, dtype=dtype)
    else:
        model = build_model(spec, backbone, bf16=False)
        load_model(model, sft)
        thinker = merge_lora(model, where=str(sft)).to(dtype)  # type: ignore[arg-type]
    export_thinker(thinker, load_processor(backbone), folder)


def write_trained(checkpoint: Path, start: Path, folder: Path) -> None:
    """The trained model of a checkpoint `global_step_N`, in the precision that verl trained it in.

    verl's own merger casts to bf16, after which greedy text can differ from what was sampled in training.

    Args:
        start: folder that the run started from; lends configuration and processor.

    Raises:
        CheckpointError: a shard is missing or damaged, or the shards are of another model.
    """
    tensors = gather(checkpoint / "actor")
    thinker = load_backbone(str(start), dtype=next(iter(tensors.values())).dtype)
    own = {f"thinker.{name}": tensor for name, tensor in thinker.state_dict().items()}
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(str(checkpoint), f"holds other weights than {start}, first: {differing[0]}", "delete the step's folder")
    thinker.load_state_dict({name.removeprefix("thinker."): tensor for name, tensor in tensors.items()})
    export_thinker(thinker, load_processor(str(start)), folder)


def gather(folder: Path) -> dict[str, Tensor]:
    """Whole tensors from FSDP2's shards (`model_world_size_W_rank_R.pt`, verl 0.9.1).

    Raises:
        CheckpointError: a shard is missing or damaged, or not cut along one dimension of one mesh.
    """
    from torch.distributed.tensor import DTensor

    try:
        world = int(json.loads((folder / _SHARDS).read_text())["world_size"])
        shards = [_load(folder / f"model_world_size_{world}_rank_{rank}.pt") for rank in range(world)]
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as cause:
        raise CheckpointError(str(folder), f"is missing or damaged: {str(cause).splitlines()[0]}", "use an earlier checkpoint") from cause
    whole: dict[str, Tensor] = {}
    for name, first in shards[0].items():
        if not isinstance(first, DTensor):
            whole[name] = first
            continue
        placements = [placement for placement in first.placements if placement.is_shard()]
        if len(placements) > 1:
            raise CheckpointError(str(folder), f"{name} is cut along {len(placements)} dimensions", "train with fsdp2 alone")
        parts = [shard[name].to_local() for shard in shards]
        whole[name] = torch.cat(parts, placements[0].dim) if placements else parts[0]  # type: ignore[attr-defined]
    return whole


def _load(path: Path) -> dict[str, Any]:
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)  # warns of a mesh without processes: there are none here
    return torch.load(path, map_location="cpu", weights_only=False)


def check_workers(checkpoint: Path, workers: int) -> None:
    """Refuses to go on from a checkpoint `global_step_N` whose shards are those of another number of workers.

    Raises:
        CheckpointError: they are; or the checkpoint does not say how many there were.
    """
    folder = checkpoint / "actor"
    try:
        world = int(json.loads((folder / _SHARDS).read_text())["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(str(folder / _SHARDS), f"is missing or damaged: {cause}", _START_OVER) from None
    if world != workers:
        what = f"was written with compute.workers={world}, and is now {workers}"
        raise CheckpointError(str(checkpoint), what, f"run with that again, or {_START_OVER}")


def latest_step(folder: Path) -> int:
    """Step of the last whole checkpoint below `folder`; 0 where there is none."""
    file = folder / _LATEST
    if not file.exists():
        return 0
    text = file.read_text().strip()
    if not re.fullmatch(r"\d+", text) or not (folder / f"global_step_{text}" / "actor").is_dir():
        raise CheckpointError(str(file), f"names step {text[:40]!r}, which is not there", _START_OVER)
    return int(text)

"""Folders in and out of verl: from a thinker to the full layout that verl and vLLM start from, and from FSDP's shards back.

Both folders are in Qwen2.5-Omni's full layout without speech: weights `thinker.*`, `enable_audio_output`
false. transformers and vLLM load them, and so does `models.backbone.load_backbone`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from hba_ray.errors import CheckpointError
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.models.checkpoints import load_model
from hba_ray.models.export import export_thinker, merge_lora
from hba_ray.models.tensors import new_folder
from hba_ray.rl import shards
from hba_ray.rl.shards import Piece, Whole
from hba_ray.specs import ExperimentSpec
from hba_ray.training.sft import build_model

_LATEST = "latest_checkpointed_iteration.txt"
"""verl writes it last, so what it names is whole."""
_LORA = "lora_train_meta.json"
"""verl writes it beside the shards of a run that trains LoRA, which hold nothing else."""
_OF_PEFT, _LORA_A, _LORA_B = "base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"
"""What peft adds to the names of weights."""
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
    """The trained model of a checkpoint `global_step_N`, in the precision that verl trained it in; LoRA is merged.

    No more than one worker's shard is in memory at a time, or one tensor where LoRA was trained. verl's own merger holds the whole
    model, and casts to bf16, after which greedy text can differ from what was sampled in training.

    Args:
        start: folder that the run started from; lends configuration and processor, and the weights that LoRA is merged into.

    Raises:
        CheckpointError: a shard is missing or damaged, or the shards are of another model.
    """
    actor = checkpoint / "actor"
    if lora := (actor / _LORA).exists():
        tensors = {name: Whole(shape, torch.float32) for name, shape in _stored(start).items()}
    else:
        tensors = shards.wholes(actor)
        own = _weights_of(start)
        differing = sorted(own.keys() ^ {name for name, whole in tensors.items() if own.get(name) == whole.shape})
        if differing:
            raise CheckpointError(str(checkpoint), f"holds other weights than {start}, first: {differing[0]}", "delete the step's folder")
    with new_folder(folder) as draft:
        for file in start.iterdir():
            if not file.name.startswith("model"):
                shutil.copyfile(file, draft / file.name)
        config: Any = Qwen2_5OmniConfig.from_pretrained(start)
        config.dtype = config.thinker_config.dtype = next(iter(tensors.values())).dtype
        config.save_pretrained(draft)
        files = shards.TensorFiles(draft, tensors)
        for piece in _with_lora(start, actor) if lora else shards.pieces(actor):
            files.put(piece)
            del piece  # or its shard would stay until the first piece of the next


def _weights_of(start: Path) -> dict[str, tuple[int, ...]]:
    """The weights of a folder in full layout by name, with their shapes; a tensor that two names stand for is there twice."""
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig.from_pretrained(start))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def largest_weight(start: Path) -> int:
    """Bytes of the largest weight of a folder in full layout, in fp32, in which verl sends it to vLLM."""
    return 4 * max(math.prod(shape) for shape in _stored(start).values())


def _stored(start: Path) -> dict[str, tuple[int, ...]]:
    """The weights in the files of a folder in full layout by name, with their shapes."""
    found = {}
    for file in _files_of(start):
        with safe_open(file, "pt") as stored:
            found |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118, it is no mapping
    return found


def _files_of(start: Path) -> list[Path]:
    return sorted(start.glob("model*.safetensors"))


def _with_lora(start: Path, actor: Path) -> Iterator[Piece]:
    """The weights of the start one by one, with a checkpoint's low-rank updates added in fp32.

    Raises:
        CheckpointError: the checkpoint is damaged, or has an update of a layer that the start lacks.
    """
    facts = json.loads((actor / _LORA).read_text())
    updates = {name.removeprefix(_OF_PEFT): tensor.float() for name, tensor in shards.gather(actor).items()}
    left = {name.removesuffix(_LORA_B) for name in updates if name.endswith(_LORA_B)}
    for file in _files_of(start):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118, it is no mapping
                layer, weight = name.removesuffix(".weight"), stored.get_tensor(name).float()
                if layer in left:
                    left.remove(layer)
                    weight += facts["lora_alpha"] / facts["r"] * (updates[layer + _LORA_B] @ updates[layer + _LORA_A])
                yield Piece(name, weight)
    if left:
        raise CheckpointError(str(actor), f"updates {min(left)}, which {start} lacks", "delete the step's folder")


def check_workers(checkpoint: Path, workers: int) -> None:
    """Refuses to go on from a checkpoint `global_step_N` whose shards are those of another number of workers.

    Raises:
        CheckpointError: they are; or the checkpoint does not say how many there were.
    """
    world = shards.world_size(checkpoint / "actor")
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

"""Exports a trained model in the released layout, which transformers and vLLM load without this package.

The folder holds the thinker with LoRA merged, under the names of Qwen/Qwen2.5-Omni-7B (`thinker.*`) and without a talker,
and its processor. Beside them, in files that those libraries ignore, are the classifier heads and the adapters, if any:
adapters change h^(L-1) inside the decoder, for which those libraries have no layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from hba_ray.errors import CheckpointError
from hba_ray.models.bam import Bam
from hba_ray.models.checkpoints import load_adapters
from hba_ray.models.manifests import read_manifest
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.tensors import new_folder, read_tensors

HEADS, HEADS_MANIFEST = "heads.safetensors", "heads.json"
"""The files of the classifier heads beside an exported model."""
EXPORTED = "give a folder that `hba export` wrote"
ADAPTERS = "adapters"
"""The folder of adapters beside an exported model; it holds a folder for each dataset."""


def export_thinker(
    thinker: Qwen2_5OmniThinkerForConditionalGeneration,
    processor: Qwen2_5OmniProcessor,
    folder: Path,
    *,
    heads: OmniSapiens | None = None,
    identity: str | None = None,
) -> None:
    """Writes a thinker in the full Omni layout, whole or not at all.

    Args:
        thinker: without LoRA layers; see `merge_lora`.
        folder: created, or replaced where it exists.
        heads: the model whose classifier heads are written beside it.
        identity: `model_identity` of the checkpoint of those heads, by which adapters name it.

    Raises:
        CheckpointError: the thinker still has LoRA layers, or a weight that is sharded.
    """
    astray = [name for name, weight in thinker.named_parameters() if ".lora_" in name or not weight.numel()]
    if astray:
        raise CheckpointError(str(folder), f"{astray[0]} cannot be exported", "merge LoRA and gather sharded weights first")
    described = {key: value for key, value in thinker.config.to_dict().items() if key != "_name_or_path"}  # where it lay, not what it is
    config = Qwen2_5OmniConfig(thinker_config=described, enable_audio_output=False)
    with torch.device("meta"):
        full = Qwen2_5OmniForConditionalGeneration(config)
    full.thinker = thinker
    full.config.dtype = thinker.dtype
    with new_folder(folder) as draft:
        full.save_pretrained(draft)
        processor.save_pretrained(draft)
        torch.save({}, draft / "spk_dict.pt")  # transformers asks for the voices of a talker even where there is none
        if heads is not None:
            _save_heads(heads, draft, identity)


def export_model(
    model: OmniSapiens,
    processor: Qwen2_5OmniProcessor,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    identity: str | None = None,
) -> None:
    """Writes a trained model: its thinker as `export_thinker` does, and its heads. LoRA is merged in `model` itself.

    Args:
        dtype: in which the thinker is written, after LoRA is merged.
        identity: `model_identity` of the model's checkpoint, by which adapters name it.

    Raises:
        CheckpointError: merging gives numbers that are not finite, or a weight is sharded.
    """
    thinker = merge_lora(model, where=str(folder)).to(dtype)  # type: ignore[arg-type]
    export_thinker(thinker, processor, folder, heads=model, identity=identity)


def merge_lora(model: OmniSapiens, *, where: str) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """Adds LoRA to the weights of the model's thinker, which has no LoRA layers afterwards, and returns it.

    Raises:
        CheckpointError: merging gives numbers that are not finite.
    """
    if isinstance(model.backbone, PeftModel):
        try:
            model.backbone = cast(Any, model.backbone).merge_and_unload(safe_merge=True)
        except ValueError as cause:  # peft's way to report NaN
            raise CheckpointError(where, f"LoRA cannot be merged: {cause}", "use another checkpoint") from cause
    return model.thinker


def load_heads(folder: Path) -> tuple[Mapping[str, Tensor], tuple[tuple[str, str], ...]]:
    """The heads beside an exported model: `heads.{i}.weight` and `.bias` by name, and each row's (task, class).

    Raises:
        CheckpointError: missing or damaged.
    """
    manifest = read_manifest(folder, HEADS_MANIFEST)
    try:
        classes = tuple((str(task), str(label)) for task, label in manifest["classes"])
    except (ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(str(folder), f"holds no classifier heads: {cause}", EXPORTED) from cause
    return read_tensors(folder / HEADS, way_out=EXPORTED), classes


def load_exported_adapters(folder: Path, dataset: str) -> Bam:
    """The adapters of a dataset beside an exported model.

    Raises:
        CheckpointError: missing, damaged, or trained on another SFT model than the exported one.
    """
    manifest = read_manifest(folder, HEADS_MANIFEST)
    base, hidden = manifest.get("checkpoint"), manifest.get("hidden")
    if not isinstance(base, str) or not isinstance(hidden, int):
        raise CheckpointError(str(folder / HEADS_MANIFEST), "is damaged: it does not name its checkpoint", EXPORTED)
    return load_adapters(folder / ADAPTERS / dataset, base=base, hidden=hidden)[0]


def _save_heads(model: OmniSapiens, folder: Path, identity: str | None) -> None:
    tensors = {f"heads.{name}": tensor.detach().float().cpu().contiguous() for name, tensor in model.heads.state_dict().items()}
    save_file(tensors, folder / HEADS)
    manifest = {
        "reads": "masked mean over the prompt of the hidden states before the last decoder layer",
        "hidden": model.hidden,
        "checkpoint": identity,
        "classes": [list(pair) for pair in model.classes],
    }
    (folder / HEADS_MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

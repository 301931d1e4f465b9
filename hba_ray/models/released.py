"""Reads checkpoints that the released training code writes; derived from that code, tested on checkpoints in its layout.

    pytorch_model_fsdp.bin     or model.safetensors: `backbone.*` and `heads.{i}.*`, with LoRA apart (PEFT's names) or merged
    pytorch_model_fsdp_1.bin   or model_1.safetensors, and so on: adapters, in the order of `model_order` in meta.json

Names of tensors may contain `module` and `_fsdp_wrapped_module`, which are removed. LoRA's alpha is not stored: the model
has to be built with the released 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hba_ray.data.tasks import CLASS_TASKS, DATASETS
from hba_ray.errors import CheckpointError
from hba_ray.models.bam import Bam
from hba_ray.models.checkpoints import copy_tensors, refuse_names, trained_tensors
from hba_ray.models.manifests import read_manifest
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.tensors import read_tensors

_STREAMS = {"video": "pose", "audio": "acoustic"}
_WRAPPERS = {"module", "_fsdp_wrapped_module"}
"""Name parts that distributed wrappers put into state dicts."""
_LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class ReleasedReport:
    """What was loaded of a released state dict, and what was not.

    Attributes:
        loaded: number of tensors copied.
        unused: names that the model does not have, such as those of a descriptor adapter.
        kept: backbone weights that the state dict lacks, so that the model keeps its own.
        changed: frozen weights that the state dict changed; a checkpoint of the model would not hold them.
    """

    loaded: int
    unused: tuple[str, ...]
    kept: tuple[str, ...]
    changed: tuple[str, ...]


def read_released(folder: Path, number: int = 0) -> dict[str, Tensor]:
    """Reads the state dict of a released folder's model (0) or of one of its adapters (1, 2), without the names of wrappers.

    Raises:
        CheckpointError: not there, or damaged.
    """
    suffix = f"_{number}" if number else ""
    tensors, pickled = folder / f"model{suffix}.safetensors", folder / f"pytorch_model_fsdp{suffix}.bin"
    if not tensors.is_file() and not pickled.is_file():
        raise CheckpointError(str(folder), f"holds neither {tensors.name} nor {pickled.name}", "give the folder of a released checkpoint")
    return plain_names(read_tensors(tensors if tensors.is_file() else pickled, way_out="give the folder of a released checkpoint"))


def plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the names of wrappers."""
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): tensor for name, tensor in state_dict.items()}


def load_released(model: OmniSapiens, state_dict: Mapping[str, Tensor], *, where: str = "released state dict") -> ReleasedReport:
    """Copies a released state dict into `model`, or nothing of it.

    One with LoRA fits a model with LoRA of scope "all", a merged one a model without LoRA.

    Raises:
        CheckpointError: head or LoRA tensors are missing, have another shape, or do not exist in the model.
    """
    given = plain_names(state_dict)
    own = dict(model.state_dict(keep_vars=True))
    unused = sorted(given.keys() - own.keys())
    kept = sorted(own.keys() - given.keys())
    astray = [f"no place for {name}" for name in unused if _is_essential(name)]
    astray += [f"{name} is missing" for name in kept if _is_essential(name)]
    if astray:
        what = f"{len(astray)} LoRA or head tensors do not fit, first: {astray[0]}"
        way_out = "with model.train=lora, model.lora.scope=all and the released rank; a merged one with model.train=all"
        raise CheckpointError(where, what, f"build the model {way_out}")
    used = {name: tensor for name, tensor in given.items() if name in own}
    trained = trained_tensors(model)
    frozen = [name for name in used if name not in trained and used[name].shape == own[name].shape]
    changed = [name for name in frozen if not torch.equal(used[name].to(own[name].dtype), own[name].cpu())]
    copy_tensors(where, own, used)
    return ReleasedReport(len(used), tuple(unused), tuple(kept), tuple(changed))


def _is_essential(name: str) -> bool:
    return name.startswith("heads.") or ".lora_" in name


def load_released_adapters(bam: Bam, folder: Path) -> None:
    """Copies released BAM adapters into `bam`: those of all its streams, or none.

    Adapters are in files of their own, or in the first file under `video_adapter` and `audio_adapter`.

    Raises:
        CheckpointError: the folder's adapters are not those of `bam`'s streams, or have another shape.
    """
    order = _model_order(folder)
    given: dict[str, Tensor] = {}
    for number, kind in enumerate(order):
        if kind in _STREAMS:
            given |= {f"adapters.{_STREAMS[kind]}.{name}": tensor for name, tensor in read_released(folder, number).items()}
    if not given:
        for name, tensor in read_released(folder).items():
            for kind, stream in _STREAMS.items():
                if f".{kind}_adapter." in f".{name}":
                    given[f"adapters.{stream}.{name.rpartition(f'{kind}_adapter.')[2]}"] = tensor
    own = {name: tensor for name, tensor in bam.state_dict(keep_vars=True).items() if name.startswith("adapters.")}
    refuse_names(str(folder), own, given)
    copy_tensors(str(folder), own, given)


def _model_order(folder: Path) -> list[str]:
    """The kinds of the models in a released folder, in the order of its files.

    Raises:
        CheckpointError: meta.json is missing or damaged, or says something else.
    """
    order = read_manifest(folder, "meta.json").get("model_order", [])
    if not isinstance(order, list) or not all(isinstance(kind, str) for kind in order) or len(set(order)) != len(order):
        what = "is damaged: model_order is no list of names that differ"
        raise CheckpointError(str(folder / "meta.json"), what, "give the folder of a released checkpoint")
    return order


def load_released_head(bam: Bam, folder: Path, dataset: str, base: Mapping[str, Tensor]) -> None:
    """Copies the head that a dataset's adapters were trained with, if the first file holds it.

    Args:
        base: trained tensors of the SFT model, by name; those that the first file holds too must be equal, except for heads.

    Raises:
        CheckpointError: the adapters were trained on another model, or the head has another shape.
    """
    given = read_released(folder)
    for name, tensor in base.items():
        if name in given and not _is_head(name) and not _equal(given[name], tensor):
            what = f"its adapters were trained on another model than the SFT model: {name} differs"
            raise CheckpointError(str(folder), what, "give the folder of that model as sft.checkpoint")
    if bam.head is None:
        return
    task = DATASETS[dataset].task
    slot = next((number for number, one in enumerate(CLASS_TASKS) if one.id == task.id), None)
    ends = {"weight": _LM_HEAD} if slot is None else {part: f"heads.{slot}.{part}" for part in ("weight", "bias")}
    found = {part: tensor for part, end in ends.items() for name, tensor in given.items() if name == end or name.endswith(f".{end}")}
    if found:
        copy_tensors(str(folder), bam.head.state_dict(keep_vars=True), found)


def _equal(given: Tensor, tensor: Tensor) -> bool:
    return given.shape == tensor.shape and torch.equal(given.to(tensor.dtype), tensor)


def _is_head(name: str) -> bool:
    return name.startswith("heads.") or name.endswith(_LM_HEAD)

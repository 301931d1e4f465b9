"""Checkpoints of trained models and adapters. They are written whole or not at all, and load only into the model they fit.

A model's checkpoint is a folder of `model.safetensors` (trained tensors by name) and `model.json` (the model they belong
to). BAM's is `adapters.safetensors`, `head.safetensors` and `adapters.json`: it holds no tensor of the SFT model, but the
identity of the one it was trained on. Those of the released code are read by `released`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from pydantic import BaseModel, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hba_ray.data.tasks import BENCHMARK_HEADS, WITH_SPLIT_SURPRISE
from hba_ray.errors import CheckpointError
from hba_ray.models.bam import Bam, Head
from hba_ray.models.manifests import read_manifest
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.settings import write_settings
from hba_ray.models.tensors import UNREADABLE, new_folder, read_tensors
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import fingerprint
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.store.files import file_digest, folder_digests

FORMAT = 1
_USUAL_CLASSES = (BENCHMARK_HEADS.classes, WITH_SPLIT_SURPRISE.classes)
"""Classes of models without tasks of a user's own; others are listed in the manifest."""
"""Version of the layout; a reader refuses any other."""
TRAIN_ADAPTERS = "train these adapters again"
_TENSORS, _MANIFEST = "model.safetensors", "model.json"
_ADAPTERS, _HEAD, _ADAPTER_MANIFEST = "adapters.safetensors", "head.safetensors", "adapters.json"


def save_model(model: OmniSapiens, folder: Path, meta: Mapping[str, Any], *, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Writes the trained tensors (LoRA or all weights, and the heads) and the description of the model they belong to.

    Args:
        folder: created, or replaced where it exists.
        meta: the caller's own JSON values, such as the step.
        tensors: the trained tensors by name, for a model whose own are sharded (ZeRO-3).

    Raises:
        CheckpointError: a tensor is sharded, or `tensors` has other names than the trained ones.
    """
    own = trained_tensors(model)
    tensors = {name: weight.detach() for name, weight in own.items()} if tensors is None else tensors
    refuse_names(str(folder), own, tensors)
    empty = [name for name, tensor in tensors.items() if not tensor.numel()]
    if empty:
        raise CheckpointError(str(folder), f"{len(empty)} tensors are sharded, first: {empty[0]}", "gather them and pass tensors=")
    tensors = model.for_states_as_they_are(tensors)
    name = model.thinker.config.name_or_path or ""
    backbone = Path(name).name if Path(name).is_absolute() else name  # a checkpoint may be moved, and its backbone too
    manifest = {"format": FORMAT, **_description(model), "backbone": backbone, "meta": dict(meta)}
    with new_folder(folder) as draft:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft / _TENSORS)
        (draft / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def load_model(model: OmniSapiens, folder: Path) -> dict[str, Any]:
    """Copies a checkpoint into a `model` that was built from the same spec; one that does not fit changes nothing.

    Call it before freezing weights: it expects the tensors that the model trains.

    Returns:
        The checkpoint's `model.json`, with the caller's values under "meta".

    Raises:
        CheckpointError: missing, damaged, or of another model; names what differs.
    """
    manifest = read_manifest(folder, _MANIFEST)
    expected = {"format": FORMAT, **_description(model)}
    differing = [f"{key} is {manifest.get(key)!r}, the model's {value!r}" for key, value in expected.items() if manifest.get(key) != value]
    if differing:
        raise CheckpointError(str(folder), "; ".join(differing), "build the model from the spec that the checkpoint was trained with")
    tensors = read_tensors(folder / _TENSORS, way_out="use another checkpoint")
    own = trained_tensors(model)
    refuse_names(str(folder), own, tensors)
    copy_tensors(str(folder), own, tensors)
    return manifest


def model_identity(backbone: str, folder: Path, *, memory: Path | None = None) -> str:
    """Names an SFT model by content: every byte of the backbone's files, or its hub id, and every byte that was trained.

    Args:
        memory: folder that remembers digests, so that weights are read once; see `store.files`.

    Raises:
        CheckpointError: `folder` is no checkpoint.
    """
    manifest = read_manifest(folder, _MANIFEST)
    tensors = folder / _TENSORS
    if not tensors.is_file():
        raise CheckpointError(str(tensors), "is missing", "use another checkpoint")
    root = Path(backbone)
    return fingerprint(
        {
            "backbone": folder_digests(root, memory=memory) if root.is_dir() else backbone,
            "model": {key: value for key, value in manifest.items() if key not in ("meta", "backbone")},
            "tensors": file_digest(tensors, memory=memory),
        }
    )


def load_class_heads(folder: Path) -> tuple[Tensor, Tensor, tuple[tuple[str, str], ...]]:
    """Reads the classifier heads of a checkpoint alone: weight [25, H] and bias [25] in fp32, and each row's (task, class).

    Raises:
        CheckpointError: missing, damaged, or of another set of classes.
    """
    manifest, where = read_manifest(folder, _MANIFEST), folder / _TENSORS
    if not where.is_file():
        raise CheckpointError(str(where), "is missing or no file", "use another checkpoint")
    weights, biases = [], []
    try:
        with safe_open(where, "pt") as file:
            names = set(file.keys())
            while f"heads.{len(weights)}.weight" in names:
                weights.append(file.get_tensor(f"heads.{len(weights)}.weight").float())
                biases.append(file.get_tensor(f"heads.{len(biases)}.bias").float())
        weight_KH, bias_K = torch.cat(weights), torch.cat(biases)
    except UNREADABLE as cause:
        raise CheckpointError(str(where), f"is damaged: {cause}", "use another checkpoint") from cause
    stated = manifest.get("own_classes")
    classes = WITH_SPLIT_SURPRISE.classes[: len(bias_K)] if stated is None else tuple((task, label) for task, label in stated)
    if weight_KH.dim() != 2 or weight_KH.shape[:1] != bias_K.shape or manifest.get("classes") != fingerprint(classes):
        raise CheckpointError(str(folder), f"holds heads of {len(bias_K)} classes that this version does not know", "train it again")
    return weight_KH, bias_K, classes


def save_adapters(bam: Bam, folder: Path, *, base: str, dataset: str, meta: Mapping[str, Any], spec: ExperimentSpec | None = None) -> None:
    """Writes a dataset's adapters, and its head where it has one.

    Args:
        base: `model_identity` of the SFT model that they were trained on.
        meta: the caller's own JSON values.
        spec: whose settings are written beside them; see `models.settings`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bam.state_dict().items()}
    manifest = {
        "format": FORMAT,
        "base": base,
        "hidden": bam.hidden_size,
        "dataset": dataset,
        "bam": bam.spec.identity(),
        "widths": bam.widths,
        "head": None if bam.head is None else {"rows": bam.head.out_features, "bias": bam.head.bias is not None},
        "meta": dict(meta),
    }
    with new_folder(folder) as draft:
        save_file({name: tensor for name, tensor in tensors.items() if name.startswith("adapters.")}, draft / _ADAPTERS)
        if bam.head is not None:
            save_file({name: tensor for name, tensor in tensors.items() if name.startswith("head.")}, draft / _HEAD)
        if spec is not None:
            write_settings(draft, spec, adapters=True)
        (draft / _ADAPTER_MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


class _HeadSaid(BaseModel):
    rows: int = Field(ge=1)
    bias: bool


class _AdaptersSaid(BaseModel):
    """What `adapters.json` says of the modules that the tensors belong to."""

    bam: BamSpec
    widths: dict[str, int]
    head: _HeadSaid | None

    def check_sizes(self, where: str, tensors: Mapping[str, Tensor], hidden: int) -> None:
        """Compares what is said with the tensors, before modules of these sizes are made.

        Raises:
            CheckpointError: a size differs, or a tensor is missing.
        """
        said = {f"adapters.{stream}.mlp.0.weight": (self.bam.hidden_of(stream), width) for stream, width in self.widths.items()}
        said |= {"head.weight": (self.head.rows, hidden)} if self.head else {}
        wrong = [name for name, size in said.items() if name not in tensors or tuple(tensors[name].shape) != size]
        if wrong or not self.widths:
            what = f"is damaged: {wrong[0]} is missing or not of the size that is said" if wrong else "is damaged: it names no stream"
            raise CheckpointError(where, what, TRAIN_ADAPTERS)


def load_adapters(folder: Path, *, base: str, hidden: int) -> tuple[Bam, dict[str, Any]]:
    """Loads the adapters of a folder, and their `adapters.json`.

    Args:
        base: `model_identity` of the SFT model that they are to be used on.
        hidden: H of that model.

    Raises:
        CheckpointError: missing, damaged, or trained on another SFT model.
    """
    manifest = read_manifest(folder, _ADAPTER_MANIFEST)
    expected = {"format": FORMAT, "hidden": hidden, "base": base}
    differing = [f"{key} is {manifest.get(key)!r}, the model's {value!r}" for key, value in expected.items() if manifest.get(key) != value]
    if differing:
        raise CheckpointError(
            str(folder), "is of another SFT model: " + "; ".join(differing), "use that model, or train adapters for this one"
        )
    try:
        said = _AdaptersSaid.model_validate(manifest)
    except ValidationError as cause:
        error = cause.errors()[0]
        what = f"is damaged: {'.'.join(map(str, error['loc']))}: {error['msg']}"
        raise CheckpointError(str(folder / _ADAPTER_MANIFEST), what, TRAIN_ADAPTERS) from cause
    tensors = read_tensors(folder / _ADAPTERS, way_out=TRAIN_ADAPTERS)
    tensors |= read_tensors(folder / _HEAD, way_out=TRAIN_ADAPTERS) if said.head else {}
    said.check_sizes(str(folder), tensors, hidden)
    head = Head(hidden, said.head.rows, bias=said.head.bias) if said.head else None
    bam = Bam(said.bam, said.widths, hidden, head)
    own = bam.state_dict(keep_vars=True)
    refuse_names(str(folder), own, tensors)
    copy_tensors(str(folder), own, tensors)
    return bam.eval(), manifest


def trained_tensors(model: OmniSapiens) -> dict[str, Tensor]:
    """The tensors that a checkpoint of the model holds, by name: those that are trained."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _description(model: OmniSapiens) -> dict[str, Any]:
    """What must be equal in two models that share checkpoints, as JSON values."""
    lora = None
    if isinstance(model.backbone, PeftModel):
        config = model.backbone.peft_config["default"]
        assert isinstance(config, LoraConfig)
        layers = config.target_modules
        lora = {
            "rank": config.r,
            "alpha": config.lora_alpha,
            "layers": layers if isinstance(layers, str) else sorted(layers or ()),
        }
    lm_head = cast(nn.Linear, model.thinker.lm_head).weight
    everything = any(weight.requires_grad and weight is not lm_head for weight in model.backbone.parameters())
    train = "lora" if lora else "all" if everything else "heads"
    return {
        "hidden": model.hidden,
        "layers": len(cast(nn.ModuleList, model.thinker.model.layers)),
        "train": f"{train} and lm_head" if train != "all" and lm_head.requires_grad else train,
        "lora": lora,
        "classes": fingerprint(model.classes),
        **({} if model.classes in _USUAL_CLASSES else {"own_classes": [list(pair) for pair in model.classes]}),
    }


def refuse_names(where: str, own: Iterable[str], given: Iterable[str]) -> None:
    """Compares the names of a model's tensors with those of a checkpoint.

    Raises:
        CheckpointError: the names are not the same.
    """
    missing, unexpected = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unexpected:
        first = f"missing {missing[0]}" if missing else f"unexpected {unexpected[0]}"
        what = f"{len(missing)} tensors are missing and {len(unexpected)} unexpected, first: {first}"
        raise CheckpointError(where, what, "build the model from the spec that the checkpoint was trained with")


def copy_tensors(where: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copies all tensors of `given` into those of the same name in `own`, or none.

    Raises:
        CheckpointError: a shape differs.
    """
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(where, f"{name} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}", "it is of another model")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)

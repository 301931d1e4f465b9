"""The `model` section: the backbone, what of it is trained, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hba_ray.errors import CheckpointError
from hba_ray.specs.base import Added, Seed, Spec


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
    """Hub id or local folder of a Qwen2.5-Omni model, whole or its thinker alone; or `tiny`."""
    tiny: TinySpec = TinySpec()
    """The model that `backbone: tiny` stands for."""
    train: Literal["lora", "all", "heads"] = "lora"
    """What supervised training changes: `lora`, low-rank updates and the classifier heads; `all`, every weight; `heads`, the
    classifier heads alone."""
    lora: LoraSpec = LoraSpec()
    """The low-rank updates."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of weights and activations; `auto` is bf16 on a GPU and fp32 on a CPU."""
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
        raise CheckpointError(where, f"no such folder: {name}", "give the folder of a model, a hub id such as owner/name, or tiny")
    return None

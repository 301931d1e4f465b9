"""The `model` section: the backbone, what of it is trained, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hba_ray.errors import CheckpointError
from hba_ray.specs.base import Seed, Spec


class TinySpec(Spec):
    """A randomly initialised Qwen2.5-Omni thinker, for machines without a GPU and without weights."""

    hidden: int = Field(default=128, ge=32)
    """Width H of the language model."""
    layers: int = Field(default=2, ge=2)
    """Decoder layers L; at least two, since the heads read layer L-1."""
    heads: int = Field(default=2, ge=1)
    """Attention heads; `hidden / heads` must be 32 or 64, the widths vLLM's CPU attention knows."""
    vocabulary: int = Field(default=1024, ge=512)
    """Tokens, byte-pair merges of the atlas's own training text included."""
    seed: Seed = 0
    """Seed of the weights."""

    @model_validator(mode="after")
    def _head_width(self) -> TinySpec:
        if self.hidden % self.heads or self.hidden // self.heads not in (32, 64):
            raise ValueError(f"hidden / heads is {self.hidden / self.heads:g}; make it 32 or 64")
        return self


class LoraSpec(Spec):
    """Low-rank adaptation of the backbone's linear layers (paper appendix C.2)."""

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64.0, gt=0)
    """Scaling factor; the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    scope: Literal["llm", "all"] = "llm"
    """`llm`: language layers only. `all`: also the layers of the audio and vision towers that the
    seven names happen to match, as in the released checkpoints."""


class ModelSpec(Spec):
    """The backbone and what of it is trained."""

    backbone: str = "Qwen/Qwen2.5-Omni-7B"
    """Hub id or local folder of a Qwen2.5-Omni model (full or thinker layout), or `tiny`."""
    tiny: TinySpec = TinySpec()
    train: Literal["lora", "all", "heads"] = "lora"
    """`lora`: adapters and heads; `all`: every weight; `heads`: the classifier heads only."""
    lora: LoraSpec = LoraSpec()
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    media_to_backbone: bool = True
    """Feed audio and video to the backbone. The released SFT code does not (placeholders only)."""


def model_folder(name: str, where: str) -> Path | None:
    """The folder that a model's name means; None for a hub id.

    Args:
        where: names it in the error, for example the key of the spec.

    Raises:
        CheckpointError: it is no hub id, and no folder that is there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise CheckpointError(where, f"no such folder: {name}", "give the folder of a model, a hub id such as owner/name, or tiny")
    return None

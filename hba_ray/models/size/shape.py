"""The shape of a Qwen2.5-Omni thinker, from the numbers of its config, and how many weights that makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hba_ray.errors import CheckpointError
from hba_ray.specs.sections.model import TinySpec

LANGUAGE_LINEARS = 7
"""Linear layers of a decoder layer, which LoRA adapts: q, k, v, o, gate, up and down."""


@dataclass(frozen=True)
class Text:
    """The language model.

    Attributes:
        hidden, inner: widths of the residual stream and of the feed-forward block.
        keys: width of all key heads together, and of all value heads.
        tied: whether lm_head is the table of embeddings.
    """

    hidden: int
    layers: int
    keys: int
    inner: int
    vocabulary: int
    tied: bool = False

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the seven linear layers of a decoder layer."""
        own, keys, inner = self.hidden, self.keys, self.inner
        return (own, own), (own, keys), (own, keys), (own, own), (own, inner), (own, inner), (inner, own)

    @property
    def in_linears(self) -> int:
        """Weights of the linear layers of all decoder layers, which work on every token: the N of 2 N operations a token."""
        return self.layers * sum(map(prod, self.linears))

    @property
    def in_head(self) -> int:
        """Weights of lm_head, where it is no other tensor."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights but lm_head's: embeddings, decoder layers with the biases of q, k and v, and norms."""
        biases_and_norms = self.hidden + 2 * self.keys + 2 * self.hidden
        return self.vocabulary * self.hidden + self.in_linears + self.layers * biases_and_norms + self.hidden


@dataclass(frozen=True)
class Audio:
    """The audio tower, Whisper's encoder, with a projection to the language model."""

    width: int
    layers: int
    inner: int
    mel_bins: int
    outputs: int

    @property
    def weights(self) -> int:
        width, inner = self.width, self.inner
        attention = 4 * width * width + 3 * width  # keys have no bias
        layer = attention + 2 * width * inner + inner + width + 4 * width
        convolutions = 3 * self.mel_bins * width + width + 3 * width * width + width
        ends = 2 * self.outputs + 2 * width + width * self.outputs + self.outputs  # two marks, a norm, the projection
        return convolutions + self.layers * layer + ends


@dataclass(frozen=True)
class Vision:
    """The vision tower, with its merger of two by two patches to one token of the language model.

    Attributes:
        patch: numbers of a patch: colours x frames x height x width.
        merged: patches that become one token.
    """

    width: int
    layers: int
    inner: int
    patch: int
    merged: int
    outputs: int

    @property
    def weights(self) -> int:
        width, inner, wide = self.width, self.inner, self.merged * self.width
        layer = 4 * (width * width + width) + 2 * (width * inner + inner) + inner * width + width + 2 * width
        merger = width + wide * wide + wide + wide * self.outputs + self.outputs
        return self.patch * width + self.layers * layer + merger


@dataclass(frozen=True)
class Shape:
    """A thinker: language model and both towers."""

    text: Text
    audio: Audio
    vision: Vision

    @property
    def weights(self) -> int:
        return self.text.weights + self.text.in_head + self.audio.weights + self.vision.weights

    @property
    def in_towers(self) -> int:
        """Weights of both towers."""
        return self.audio.weights + self.vision.weights


def tiny_shape(spec: TinySpec) -> Shape:
    """The shape of the tiny model (models/tiny.py), which has fewer tokens where its training texts are few."""
    heads = spec.heads // 2 if spec.heads % 2 == 0 else 1
    return Shape(
        Text(spec.hidden, spec.layers, spec.hidden // spec.heads * heads, 2 * spec.hidden, spec.vocabulary),
        Audio(width=32, layers=2, inner=64, mel_bins=128, outputs=spec.hidden),
        Vision(width=32, layers=2, inner=64, patch=3 * 2 * 14 * 14, merged=4, outputs=spec.hidden),
    )


def shape_in(config: Mapping[str, Any], where: str) -> Shape:
    """The shape of a thinker's config, or of a whole model's.

    Args:
        config: content of config.json, in thinker layout or in the full layout.
        where: it comes from, for the error.

    Raises:
        CheckpointError: it lacks a number, so it is no config of a Qwen2.5-Omni.
    """
    thinker = config.get("thinker_config", config)
    try:
        text, audio, vision = (thinker[name] for name in ("text_config", "audio_config", "vision_config"))
        head = text["hidden_size"] // text["num_attention_heads"]
        return Shape(
            Text(
                text["hidden_size"],
                text["num_hidden_layers"],
                head * text["num_key_value_heads"],
                text["intermediate_size"],
                text["vocab_size"],
                bool(text.get("tie_word_embeddings", False)),
            ),
            Audio(audio["d_model"], audio["encoder_layers"], audio["encoder_ffn_dim"], audio["num_mel_bins"], audio["output_dim"]),
            Vision(
                vision["hidden_size"],
                vision["depth"],
                vision["intermediate_size"],
                vision.get("in_channels", 3) * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2,
                vision.get("spatial_merge_size", 2) ** 2,
                vision["out_hidden_size"],
            ),
        )
    except (KeyError, TypeError, ZeroDivisionError) as cause:
        raise CheckpointError(
            where, f"is not the config of a Qwen2.5-Omni: {cause} is missing", "give a whole Qwen2.5-Omni model"
        ) from None


def shape_of_folder(folder: Path) -> Shape:
    """The shape of the model in a folder.

    Raises:
        CheckpointError: its config.json is not there, damaged, or of another model.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as cause:
        raise CheckpointError(str(file), f"cannot be read: {cause}", "give the folder of a whole Qwen2.5-Omni model") from None
    return shape_in(config if isinstance(config, dict) else {}, str(file))

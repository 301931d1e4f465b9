"""Reads pretrained models that a small Qwen2.5-Omni is composed of, under the names that its thinker has for the same weights.

    language model   Llama or Qwen2, as a hub id, a folder of transformers or a GGUF file
    speech encoder   Whisper, as a hub id, a folder of transformers or a model.bin of CTranslate2

A Qwen2.5-Omni thinker's language model is Qwen2 with rotary positions for time, height and width; on text the three are
equal, so a Llama of the same sizes with zero biases gives the same logits. Its audio tower is Whisper's encoder, which
pools its states before the last layer norm and projects them to the language model's width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, WhisperModel

from hba_ray.descriptors.ctranslate2 import HEAD, read_whisper
from hba_ray.errors import CheckpointError

_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
_LANGUAGE_TYPES = ("llama", "qwen2")
_WAY_OUT = "give a Llama or Qwen2 model, for example HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class LanguageModel:
    """A pretrained language model.

    Attributes:
        config: of transformers, of type `llama` or `qwen2`.
        weights: name in a thinker (`model...`, `lm_head.weight`) -> tensor, in float32.
    """

    config: Any
    weights: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class SpeechEncoder:
    """A pretrained Whisper encoder.

    Attributes:
        mel_bins, width, layers, heads, inner: sizes; `inner` is the width between the two layers of a feed-forward block.
        positions: vectors of positions, one for 20 ms: 1500 stand for Whisper's window of 30 seconds.
        weights: name in an audio tower of Qwen2.5-Omni -> tensor, in float32.
    """

    mel_bins: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    weights: dict[str, torch.Tensor]


def read_language(source: str | Path) -> LanguageModel:
    """The language model of a hub id, a folder or a GGUF file.

    Raises:
        CheckpointError: not there, damaged, or of a kind whose weights a thinker has no place for.
    """
    place = Path(source)
    if place.suffix == ".bin":
        what = "is a model.bin of CTranslate2, which holds Whisper and no language model"
        raise CheckpointError(str(source), what, "give it as model.small.speech, and a GGUF file or a hub id as model.small.language")
    gguf = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
    name = str(place.parent if gguf else source)
    try:
        config = AutoConfig.from_pretrained(name, **gguf)
        _check_language(config, str(source))
        if gguf:
            _check_gguf(place)
        tokenizer = AutoTokenizer.from_pretrained(name, **gguf)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **gguf)
    except _LOADING_ERRORS as cause:
        raise _unusable(source, "a language model", cause) from cause
    weights = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return LanguageModel(config, weights, tokenizer)


def _check_language(config: Any, where: str) -> None:
    """Refuses models that compute what a thinker's language model does not."""
    if config.model_type not in _LANGUAGE_TYPES:
        raise CheckpointError(where, f"is of type '{config.model_type}', not one of {', '.join(_LANGUAGE_TYPES)}", _WAY_OUT)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters or {}
    defect = None
    if config.hidden_act != "silu":
        defect = f"has the activation {config.hidden_act}, not silu"
    elif width * config.num_attention_heads != config.hidden_size:
        defect = f"has heads of {width}, which do not add up to its hidden size {config.hidden_size}"
    elif rope.get("rope_type", "default") != "default":
        defect = f"scales its rotary positions ({rope['rope_type']})"
    elif config.model_type == "llama" and (config.attention_bias or config.mlp_bias):
        defect = "is a Llama with biases"
    if defect:
        raise CheckpointError(where, defect, _WAY_OUT)


def _check_gguf(file: Path) -> None:
    """Refuses rotary positions that are scaled: transformers reads a GGUF file without them."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    stated = {name.partition(".rope.")[2]: field.contents() for name, field in reader.fields.items() if ".rope.scal" in name}
    scales = stated and stated.get("scaling.type") != "none"
    if scales or any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        raise CheckpointError(str(file), "scales its rotary positions", _WAY_OUT)


def read_speech(source: str | Path) -> SpeechEncoder:
    """The speech encoder of a hub id, a folder of transformers or a model.bin of CTranslate2.

    Raises:
        CheckpointError: not there, damaged, or no Whisper.
    """
    if Path(source).suffix == ".bin":
        return _from_ctranslate2(Path(source))
    if Path(source).suffix == ".gguf":
        way_out = "give it as model.small.language, and a model.bin of CTranslate2 or a hub id as model.small.speech"
        raise CheckpointError(str(source), "is a GGUF file, which holds a language model and no Whisper", way_out)
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "whisper":
            raise CheckpointError(
                str(source), f"is of type '{kind}', not whisper", "give a Whisper model, for example openai/whisper-tiny.en"
            )
        model = WhisperModel.from_pretrained(source, dtype=torch.float32)
    except _LOADING_ERRORS as cause:
        raise _unusable(source, "Whisper", cause) from cause
    weights = {key: tensor.detach() for key, tensor in model.get_encoder().state_dict().items()}
    return _encoder(weights, model.config.encoder_attention_heads, str(source))


def _encoder(whisper: dict[str, torch.Tensor], heads: int, where: str) -> SpeechEncoder:
    """A speech encoder from weights under the names that transformers' Whisper has for them."""
    positions = whisper.pop("embed_positions.weight")
    count, width = positions.shape
    if not torch.allclose(positions, sinusoids(count, width), atol=2e-3):  # half precision keeps three digits
        raise CheckpointError(where, "has learned vectors of positions", "give a Whisper encoder, whose positions are sines and cosines")
    weights = {re.sub(r"^layer_norm\.", "ln_post.", key): tensor for key, tensor in whisper.items()}
    layers = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers."))
    inner, mel_bins = weights["layers.0.fc1.weight"].shape[0], weights["conv1.weight"].shape[1]
    return SpeechEncoder(mel_bins, width, layers, heads, inner, count, weights)


def sinusoids(count: int, width: int) -> torch.Tensor:
    """Whisper's vectors of positions [count, width]: sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(count)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


_LAYER = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
"""A part of a layer of the encoder in openai-whisper -> in transformers."""


def _from_ctranslate2(file: Path) -> SpeechEncoder:
    """The encoder of a Whisper in CTranslate2's layout.

    Raises:
        CheckpointError: it cannot be read, is quantised to integers, or is no Whisper.
    """
    whisper: dict[str, torch.Tensor] = {}
    for name, array in read_whisper(file).items():
        side, _, inside = name.partition(".")
        if side != "encoder":
            continue
        layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", inside)
        name = f"layers.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}" if layer else inside
        whisper["embed_positions.weight" if name == "positional_embedding" else name] = torch.from_numpy(array)
    return _encoder(whisper, len(whisper["conv1.weight"]) // HEAD, str(file))


def _unusable(source: str | Path, kind: str, cause: BaseException) -> CheckpointError:
    reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
    if Path(source).exists():
        return CheckpointError(str(source), f"cannot be loaded as {kind}: {reason}", "copy or download it again")
    way_out = "check the id and the network (HF_HUB_OFFLINE must not be set), or give a local folder or file"
    return CheckpointError(str(source), f"cannot be fetched from the hub: {reason}", way_out)

"""The backbone: loads a Qwen2.5-Omni thinker and its processor, and makes the parts trainable that the spec names."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.models.attention import implementation, join_windows
from hba_ray.specs.sections.model import Attention, LoraSpec, ModelSpec, model_folder

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that LoRA adapts, by the last part of their name (paper appendix C.2)."""
LANGUAGE_LAYERS = r"(?:.*\.)?model\.layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"
"""Full names of those layers in the language model alone. The bare suffixes also match layers of both towers."""

_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What transformers raises for a folder that is missing, incomplete, damaged or of another model."""
_MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")
_VISION_MARKS = {"vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"}


def load_backbone(folder_or_id: str, *, dtype: torch.dtype, attention: Attention = "sdpa") -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The thinker of a Qwen2.5-Omni model, in eval mode, on the CPU.

    Args:
        folder_or_id: local folder or hub id, in thinker layout or in the full layout of
            Qwen/Qwen2.5-Omni-7B, whose talker is left out.
        dtype: of all weights.
        attention: what computes it, as `model.attention` says.

    Raises:
        CheckpointError: not there, not reachable, damaged, incomplete or of another model.
        EnvironmentMissing: the package that `attention` needs is not installed.
    """
    folder_or_id, chosen = _found(folder_or_id), implementation(attention, dtype)
    try:
        _check_kind(folder_or_id)
        loaded = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder_or_id, dtype=dtype, attn_implementation=chosen, output_loading_info=True
        )
    except ImportError as cause:
        way_out = "install flash-attn on a machine with a GPU, or set model.attention=auto"
        raise EnvironmentMissing("model.attention", f"'{attention}' cannot be used: {_first_line(cause)}", way_out) from cause
    except _LOADING_ERRORS as cause:
        raise _unusable(folder_or_id, cause) from cause
    thinker, loading = cast("tuple[Qwen2_5OmniThinkerForConditionalGeneration, dict[str, Any]]", loaded)
    missing = sorted(loading["missing_keys"])
    wrong = sorted(str(key) for key in loading["mismatched_keys"])
    if missing or wrong:
        what = f"{len(missing)} weights of the thinker are missing and {len(wrong)} have another shape, first: {(missing + wrong)[0]}"
        raise CheckpointError(folder_or_id, what, "give a complete Qwen2.5-Omni checkpoint")
    _name_vision_marks(thinker, folder_or_id)
    join_windows(thinker)
    # The spec alone says how to decode; settings in files beside the weights are ignored.
    thinker.generation_config = GenerationConfig()
    return thinker


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may round the factors of fp32 products to TF32 in this process; torch alone would let convolutions do so."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def load_processor(folder_or_id: str) -> Qwen2_5OmniProcessor:
    """Tokenizer, chat template, audio and vision preprocessing of a Qwen2.5-Omni model.

    Raises:
        CheckpointError: not there, not reachable or damaged.
    """
    folder_or_id = _found(folder_or_id)
    try:
        return Qwen2_5OmniProcessor.from_pretrained(folder_or_id)
    except (*_LOADING_ERRORS, AttributeError) as cause:
        raise _unusable(folder_or_id, cause) from cause


@lru_cache(maxsize=8)
def context_length(folder_or_id: str) -> int:
    """The longest sequence, in tokens, that the language model takes.

    Raises:
        CheckpointError: not there, not reachable, damaged or of another model.
    """
    folder_or_id = _found(folder_or_id)
    try:
        _check_kind(folder_or_id)
        config = AutoConfig.from_pretrained(folder_or_id).get_text_config()
    except _LOADING_ERRORS as cause:
        raise _unusable(folder_or_id, cause) from cause
    return int(config.max_position_embeddings)


def apply_training(thinker: Qwen2_5OmniThinkerForConditionalGeneration, spec: ModelSpec, *, gradient_checkpointing: bool) -> nn.Module:
    """Makes the weights trainable that `spec.train` names, and freezes the others.

    Args:
        gradient_checkpointing: recompute activations of all layers in the backward pass.

    Returns:
        The thinker itself, or a `peft.PeftModel` around it where `spec.train` is "lora".
    """
    if gradient_checkpointing:
        thinker.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    thinker.requires_grad_(spec.train == "all")
    if spec.train == "all":
        # Only the talker reads these two vectors, so no loss has a gradient for them.
        thinker.audio_tower.audio_bos_eos_token.requires_grad_(False)
    if spec.train == "lora":
        return get_peft_model(thinker, lora_config(spec.lora))  # type: ignore[arg-type]
    return thinker


def lora_config(spec: LoraSpec) -> LoraConfig:
    """The section `model.lora` as a configuration of peft."""
    layers = LANGUAGE_LAYERS if spec.scope == "llm" else list(LORA_LAYERS)
    return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=layers, bias="none")  # type: ignore[arg-type]


def _found(folder_or_id: str) -> str:
    """The folder's path, or the hub id as it is.

    Raises:
        CheckpointError: the folder is not there, holds no config.json, or holds a JSON file that cannot be read.
    """
    folder = model_folder(folder_or_id, "the backbone")
    if folder is None:
        return folder_or_id
    if not (folder / "config.json").is_file():
        raise CheckpointError(folder_or_id, "holds no config.json", "give the folder of a Qwen2.5-Omni model")
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as cause:
            raise CheckpointError(str(path), f"is damaged: {cause}", "copy or download it again") from cause
    return str(folder)


def _check_kind(folder_or_id: str) -> None:
    """Refuses the config of another kind of model, for which transformers would only warn and build a default 7B model.

    Raises:
        CheckpointError: the config is of another kind of model.
    """
    kind = PreTrainedConfig.get_config_dict(folder_or_id)[0].get("model_type")
    if kind not in _MODEL_TYPES:
        raise CheckpointError(
            folder_or_id, f"is a model of type '{kind}', not one of {', '.join(_MODEL_TYPES)}", "give a Qwen2.5-Omni model"
        )


def _unusable(folder_or_id: str, cause: BaseException) -> CheckpointError:
    reason = _first_line(cause)
    if Path(folder_or_id).is_dir():
        return CheckpointError(folder_or_id, f"cannot be loaded as Qwen2.5-Omni: {reason}", "copy or download it again")
    way_out = "check the id and the network (HF_HUB_OFFLINE must not be set), or give a local folder"
    return CheckpointError(folder_or_id, f"cannot be fetched from the hub: {reason}", way_out)


def _first_line(cause: BaseException) -> str:
    return (str(cause) or type(cause).__name__).strip().splitlines()[0]


def _name_vision_marks(thinker: Qwen2_5OmniThinkerForConditionalGeneration, folder_or_id: str) -> None:
    """Adds to the config the ids of the vision marks, which its class does not declare but rotary positions are built from."""
    absent = [key for key in _VISION_MARKS if getattr(thinker.config, key, None) is None]
    if absent:
        tokenizer = load_processor(folder_or_id).tokenizer
        for key in absent:
            setattr(thinker.config, key, tokenizer.convert_tokens_to_ids(_VISION_MARKS[key]))

"""A randomly initialised thinker of the released size, and micro-batches for it, made where they are used: no files, no tokenizer.

Letters: B rows, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.data.feed.batches import IGNORED, MicroBatch
from hba_ray.models.attention import implementation, join_windows
from hba_ray.models.size.published import OMNI_7B
from hba_ray.specs.sections.model import Attention
from tests.helpers.sizes import parts_of

LAYER_WEIGHTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MERGE, PATCH_VALUES = 2, 3 * 2 * 14 * 14
"""Patches that one token joins on a side, and numbers of a patch."""


@dataclass(frozen=True)
class Size:
    """What is measured, and how often.

    Attributes:
        text, audio, vision: sizes of the three parts, as arguments of their classes.
        words, mels, patches: text tokens, mel frames and [time, height, width] of the patches of a row.
        micro_batches: rows of a micro-batch, ascending; the last ones may not fit.
        step_rows: rows of an optimiser step.
        repeats: timed steps or passes of a figure.
        told_rows: rows of paper Table 13.
        state_rows: rows of the sweep on stored states.
        actor_layers, response: layers of the actor's copy, and tokens of a response.
    """

    text: dict[str, Any]
    audio: dict[str, Any]
    vision: dict[str, Any]
    words: int = 150
    mels: int = 1000
    patches: tuple[int, int, int] = (2, 20, 36)
    micro_batches: tuple[int, ...] = (2, 4, 8, 16)
    step_rows: int = 16
    repeats: int = 6
    told_rows: int = 500
    state_rows: int = 4096
    actor_layers: int = 8
    response: int = 350
    new_tokens: int = 64


REAL = Size(**parts_of(OMNI_7B))
TINY = Size(
    text={
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    },
    audio={"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32, "output_dim": 64},
    vision={
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1], "out_hidden_size": 64,
    },
    words=12, mels=60, patches=(1, 4, 6), micro_batches=(1, 2), step_rows=2, repeats=2, told_rows=4, state_rows=32, actor_layers=2,
    response=6, new_tokens=4,
)  # fmt: skip


def config_of(size: Size, **text: Any) -> Any:
    """The thinker's configuration; the last ids of the vocabulary are its special tokens."""
    last = size.text["vocab_size"]
    names = ("audio_token_index", "image_token_index", "video_token_index", "audio_start_token_id", "audio_end_token_id")
    ids = {name: last - place for place, name in enumerate((*names, "vision_start_token_id", "vision_end_token_id"), start=1)}
    parts = {"text_config": {"tie_word_embeddings": False, "pad_token_id": 0, **size.text, **text}}
    parts |= {"audio_config": size.audio, "vision_config": size.vision}
    return Qwen2_5OmniThinkerConfig(**parts, tie_word_embeddings=False, **ids)


def thinker_of(config: Any, dtype: torch.dtype, device: str, attention: Attention = "auto", *, joined: bool = True) -> Any:
    """A thinker with random weights, made on the device.

    Args:
        joined: whether towers that run SDPA attend by batches of windows.
    """
    chosen, before = implementation(attention, dtype), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            thinker = Qwen2_5OmniThinkerForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    thinker.set_attn_implementation(chosen)
    if joined:
        join_windows(thinker)
    return thinker.eval()


def micro_batch(size: Size, config: Any, rows: int, *, audio: bool = True, video: bool = True, answers: bool = False) -> MicroBatch:
    """Rows of equal length with noise in their clips; half of them are class rows, unless all have open answers.

    Args:
        answers: every row has an open answer of 16 tokens, at its end.
    """
    generator = torch.Generator().manual_seed(rows)
    frames, height, width = size.patches
    seen = [config.vision_start_token_id, *[config.video_token_index] * (frames * height * width // MERGE**2), config.vision_end_token_id]
    heard = ((size.mels - 1) // 2 + 1 - 2) // 2 + 1
    sounds = [config.audio_start_token_id, *[config.audio_token_index] * heard, config.audio_end_token_id]
    words_BS = torch.randint(1, config.audio_token_index - 16, (rows, size.words), generator=generator)
    clips = torch.tensor([*(seen if video else []), *(sounds if audio else [])], dtype=torch.long).expand(rows, -1)
    ids_BS = torch.cat([words_BS[:, :2], clips, words_BS[:, 2:]], dim=1)
    inputs: dict[str, Any] = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
    if audio:
        inputs["input_features"] = torch.randn(rows, config.audio_config.num_mel_bins, size.mels, generator=generator)
        inputs["feature_attention_mask"] = torch.ones(rows, size.mels, dtype=torch.long)
    if video:
        inputs["pixel_values_videos"] = torch.randn(rows * frames * height * width, PATCH_VALUES, generator=generator)
        inputs["video_grid_thw"] = torch.tensor([size.patches] * rows)
        inputs["video_second_per_grid"] = torch.ones(rows)
    is_class_B = torch.zeros(rows, dtype=torch.bool) if answers else torch.arange(rows) % 2 == 0
    labels_BS = torch.full_like(ids_BS, IGNORED)
    told = min(16, size.words - 3)
    labels_BS[~is_class_B, -told:] = ids_BS[~is_class_B, -told:]
    return MicroBatch(
        inputs=inputs,
        class_index=torch.where(is_class_B, 0, IGNORED),
        task_slot=torch.where(is_class_B, 0, -1),
        answer_labels=labels_BS,
        weight=torch.ones(rows),
        real_tokens=ids_BS.numel(),
        padded_tokens=ids_BS.numel(),
    )


def layer_weights(model: nn.Module) -> int:
    """N, the weights of the linear layers of the language model, those of LoRA left out."""
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if "model.layers." in name and "lora_" not in name and name.endswith("weight") and any(part in name for part in LAYER_WEIGHTS)
    )

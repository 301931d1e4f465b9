"""Builds a tiny Qwen2.5-Omni thinker with random weights, and its processor, for tests and laptops.

Classes, files and special tokens are those of the released model, so its folder loads as a released one does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from hba_ray.models.checkpoints import new_folder
from hba_ray.specs.model import TinySpec

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
"""The special tokens, in the released order. There they have the ids 151643 to 151656; here they are the last ids."""
_PAD, _END_OF_TURN = "<|endoftext|>", "<|im_end|>"
_MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
"""The names by which `Qwen2_5OmniProcessor` finds the media tokens."""

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system turn that the released template adds to a conversation without one."""

CHAT_TEMPLATE = """\
{%- macro part(item) -%}
{%- set kind = item.type | default('text') -%}
{%- if kind == 'text' -%}{{ item.text }}
{%- elif kind == 'audio' -%}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- elif kind in ('image', 'video') -%}<|vision_bos|><|{{ kind | upper }}|><|vision_eos|>
{%- else -%}{{ raise_exception('content of unknown type: ' ~ kind) }}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\n%s<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}{%- for item in message.content -%}{{- part(item) -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".replace("%s", DEFAULT_SYSTEM)

_LM_HEAD_STD = 0.3
"""With the usual 0.02 logits of a frozen lm_head stay below about 1.3, so that the answer loss could not fall under LoRA."""


def build_tiny(spec: TinySpec, folder: Path, texts: Iterable[str], *, audio_seconds: float = 10.0) -> None:
    """Writes a random thinker and its processor into `folder`, whole or not at all.

    The same spec and texts give bit-identical weights and tokenizer. lm_head has one row per token; there are fewer tokens
    than `spec.vocabulary` where the texts are too few to learn so many.

    Args:
        folder: created, or replaced where it exists.
        texts: training text of the tokenizer; other text is tokenised too, in the worst case byte by byte.
        audio_seconds: longest audio the feature extractor takes, rounded up to whole seconds.
    """
    processor = _processor(_tokenizer(spec.vocabulary, texts), math.ceil(audio_seconds))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(_config(spec, processor.tokenizer))
        with torch.no_grad():
            thinker.lm_head.weight.normal_(std=_LM_HEAD_STD)
    with new_folder(folder) as draft:
        thinker.save_pretrained(draft)
        processor.save_pretrained(draft)


def _tokenizer(vocabulary: int, texts: Iterable[str]) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer whose special tokens are its last ids, in the released order."""
    # Normaliser, pre-tokenizer and decoder are those of an empty tokenizer of the same class.
    family = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer, trained.decoder = family.normalizer, family.pre_tokenizer, family.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_with_frame(texts), trainer)
    model = json.loads(trained.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    # Special tokens are put into the vocabulary first, so that adding them to the tokenizer keeps these ids.
    ids.update({token: len(ids) + place for place, token in enumerate(SPECIAL_TOKENS)})
    tokenizer = Qwen2Tokenizer(
        vocab=ids,
        merges=[tuple(merge) for merge in model["merges"]],  # type: ignore[arg-type]
        eos_token=_END_OF_TURN,
        pad_token=_PAD,
        unk_token=None,  # type: ignore[arg-type]
        extra_special_tokens=_MEDIA_TOKENS,
        model_max_length=32768,
    )
    others = [token for token in SPECIAL_TOKENS if token not in (_PAD, _END_OF_TURN, *_MEDIA_TOKENS.values())]
    tokenizer.add_special_tokens({"extra_special_tokens": others}, replace_extra_special_tokens=False)
    return tokenizer


def _with_frame(texts: Iterable[str]) -> Iterator[str]:
    """The texts, each with the words that a conversation puts around it, so that these words become tokens."""
    for text in texts:
        yield f"system\n{DEFAULT_SYSTEM}\nuser\n"
        yield text
        yield "assistant\n"


def _processor(tokenizer: Qwen2Tokenizer, seconds: int) -> Qwen2_5OmniProcessor:
    # Numbers of the released processor, but for the length of the audio window.
    patches: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12_845_056}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        video_processor=Qwen2VLVideoProcessor(**patches),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=128, sampling_rate=16_000, hop_length=160, n_fft=400, chunk_length=seconds, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def _config(spec: TinySpec, tokenizer: Qwen2Tokenizer) -> Qwen2_5OmniThinkerConfig:
    half = spec.hidden // spec.heads // 2
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": spec.hidden,
        "intermediate_size": 2 * spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.heads // 2 if spec.heads % 2 == 0 else 1,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        # Time, height and width share half a head as 2 : 3 : 3, the released model's [16, 24, 24].
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8]},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    audio = {
        "num_mel_bins": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "max_source_positions": 1500,
        "n_window": 100,
        "output_dim": spec.hidden,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "out_hidden_size": spec.hidden,
    }
    names = {
        "audio_token_index": "<|AUDIO|>",
        "image_token_index": "<|IMAGE|>",
        "video_token_index": "<|VIDEO|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
        "vision_start_token_id": "<|vision_bos|>",
        "vision_end_token_id": "<|vision_eos|>",
    }
    token_ids: dict[str, Any] = {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}
    user = tokenizer("user")["input_ids"][0]
    return Qwen2_5OmniThinkerConfig(
        text_config=text, audio_config=audio, vision_config=vision, user_token_id=user, tie_word_embeddings=False, **token_ids
    )

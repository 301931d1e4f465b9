"""What a Qwen2.5-Omni that is built here, tiny or small, shares with the released one: special tokens, chat template, processor, and
the parts of its configuration that do not depend on its size.

Names, order and roles are those of the released model, so a folder with such files loads as a released one does.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

PAD, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END_OF_TURN,
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
"""The special tokens, in the released order. There they have the ids 151643 to 151656."""
MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
"""The names by which `Qwen2_5OmniProcessor` finds the media tokens."""
_CONFIG_TOKENS = {
    "audio_token_index": "<|AUDIO|>",
    "image_token_index": "<|IMAGE|>",
    "video_token_index": "<|VIDEO|>",
    "audio_start_token_id": "<|audio_bos|>",
    "audio_end_token_id": "<|audio_eos|>",
    "vision_start_token_id": "<|vision_bos|>",
    "vision_end_token_id": "<|vision_eos|>",
}
"""Arguments of `Qwen2_5OmniThinkerConfig` -> tokens whose ids they are."""

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


def qwen2_tokenizer(ids: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    """The released kind of tokenizer.

    Args:
        ids: the vocabulary with the special tokens in it, so that adding them to the tokenizer keeps their ids.
        merges: pairs of tokens that become one, the first to be merged first.
    """
    tokenizer = Qwen2Tokenizer(
        vocab=ids,
        merges=merges,  # type: ignore[arg-type]
        eos_token=END_OF_TURN,
        pad_token=PAD,
        unk_token=None,  # type: ignore[arg-type]
        extra_special_tokens=MEDIA_TOKENS,
        model_max_length=32768,
    )
    add_special_tokens(tokenizer)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the special tokens that have no role by which the tokenizer was told of them."""
    others = [token for token in SPECIAL_TOKENS if token not in (PAD, END_OF_TURN, *MEDIA_TOKENS.values())]
    tokenizer.add_special_tokens({"extra_special_tokens": others}, replace_extra_special_tokens=False)


def omni_processor(tokenizer: PreTrainedTokenizerBase, *, seconds: int, mel_bins: int) -> Qwen2_5OmniProcessor:
    """A processor around a tokenizer that has the special tokens.

    Args:
        seconds: longest audio that the feature extractor takes.
        mel_bins: of the spectrum that the audio tower reads; the released tower reads 128.
    """
    # Numbers of the released processor, but for the length of the audio window and the mel bins.
    patches: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12_845_056}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        video_processor=Qwen2VLVideoProcessor(**patches),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=mel_bins, sampling_rate=16_000, hop_length=160, n_fft=400, chunk_length=seconds, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def thinker_config(
    tokenizer: PreTrainedTokenizerBase, *, text: dict[str, Any], audio: dict[str, Any], vision_width: int, rope_theta: float
) -> Qwen2_5OmniThinkerConfig:
    """The configuration of a thinker with a small vision tower of two layers.

    Args:
        text: sizes of the language model, as arguments of `Qwen2_5OmniTextConfig`.
        audio: the audio tower, as arguments of `Qwen2_5OmniAudioEncoderConfig`.
        vision_width: hidden size of the vision tower.
        rope_theta: base of the language model's rotary positions.
    """
    hidden = text["hidden_size"]
    half = hidden // text["num_attention_heads"] // 2
    # Time, height and width share half a head as 2 : 3 : 3, the released model's [16, 24, 24].
    sections = [half // 4, half * 3 // 8, half - half // 4 - half * 3 // 8]
    language = {
        **text,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta, "mrope_section": sections},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": vision_width,
        "intermediate_size": 2 * vision_width,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "out_hidden_size": hidden,
    }
    ids: dict[str, Any] = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _CONFIG_TOKENS.items()}
    return Qwen2_5OmniThinkerConfig(
        text_config=language,
        audio_config={**audio, "output_dim": hidden},
        vision_config=vision,
        user_token_id=tokenizer("user")["input_ids"][0],
        tie_word_embeddings=False,
        **ids,
    )

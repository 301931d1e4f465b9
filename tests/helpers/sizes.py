"""Configs of transformers for shapes of models."""

from typing import Any

from transformers import Qwen2_5OmniThinkerConfig

from hba_ray.models.size.estimates import RowSize
from hba_ray.models.size.shape import Shape


def parts_of(shape: Shape) -> dict[str, dict[str, Any]]:
    """The arguments for the three parts of a thinker; heads of the language model are 128 wide, as in the released sizes."""
    text, audio, vision = shape.text, shape.audio, shape.vision
    return {
        "text": {
            "hidden_size": text.hidden,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.hidden // 128,
            "num_key_value_heads": text.keys // 128,
            "intermediate_size": text.inner,
            "vocab_size": text.vocabulary,
            "tie_word_embeddings": text.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "audio": {
            "d_model": audio.width,
            "encoder_layers": audio.layers,
            "encoder_ffn_dim": audio.inner,
            "num_mel_bins": audio.mel_bins,
            "output_dim": audio.outputs,
        },
        "vision": {
            "hidden_size": vision.width,
            "depth": vision.layers,
            "intermediate_size": vision.inner,
            "out_hidden_size": vision.outputs,
        },
    }


def config_of(shape: Shape) -> Qwen2_5OmniThinkerConfig:
    """A thinker's config."""
    parts = {f"{name}_config": arguments for name, arguments in parts_of(shape).items()}
    config = Qwen2_5OmniThinkerConfig(**parts, tie_word_embeddings=shape.text.tied)
    config.vision_start_token_id, config.vision_end_token_id = 151_652, 151_653  # which its class does not declare
    return config


def row_of(tokens: int, audio: int = 0, patches: int = 0) -> RowSize:
    return RowSize(tokens, audio, patches)

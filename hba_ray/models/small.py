"""Composes a small Qwen2.5-Omni thinker, with real weights, of a pretrained language model and a Whisper encoder.

    language model, token embeddings, lm_head   from the language model; the marks of media get the mean of all embeddings
    audio tower                                 from the Whisper encoder, in windows as long as Whisper's own
    projection of the audio tower               random, of the embeddings' scale: supervised training has to learn it
    vision tower                                small and random: likewise

Classes, files and special tokens are those of the released model, so its folder loads as a released one does.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast, Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.errors import CheckpointError
from hba_ray.models.layout import END_OF_TURN, MEDIA_TOKENS, PAD, add_special_tokens, omni_processor, thinker_config
from hba_ray.models.sources import LanguageModel, SpeechEncoder, read_language, read_speech
from hba_ray.models.tensors import new_folder

_RANDOM = ("visual.", "audio_tower.proj.", "audio_tower.audio_bos_eos_token.")
"""Weights that no source has."""
_NO_BIAS = (".q_proj.bias", ".k_proj.bias", ".v_proj.bias")
"""Biases of a thinker's attention that a Llama lacks; they are 0."""


def build_small(language: str | Path, speech: str | Path, folder: Path, *, seed: int = 0, audio_seconds: float = 10.0) -> None:
    """Writes a thinker and its processor into `folder`, whole or not at all, in float32.

    Args:
        language: hub id, folder or GGUF file of a language model; see `models.sources`.
        speech: hub id, folder or CTranslate2 file of a Whisper.
        folder: created, or replaced where it exists.
        seed: of the weights that no source has.
        audio_seconds: longest audio the feature extractor takes, rounded up to whole seconds.

    Raises:
        CheckpointError: a source is not there, damaged, or of a kind whose weights a thinker has no place for.
    """
    words, sound = read_language(language), read_speech(speech)
    tokenizer = _tokenizer(words)
    config = _config(words, sound, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(config)
        _fill(thinker, words, sound, str(language))
    processor = omni_processor(tokenizer, seconds=math.ceil(audio_seconds), mel_bins=sound.mel_bins)
    with new_folder(folder) as draft:
        thinker.save_pretrained(draft)
        processor.save_pretrained(draft)


def _tokenizer(words: LanguageModel) -> PreTrainedTokenizerFast:
    """The language model's tokenizer, with the special tokens that it lacks as its last ids."""
    backend = Tokenizer.from_str(words.tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        extra_special_tokens=MEDIA_TOKENS,
        model_max_length=words.config.max_position_embeddings,
    )
    add_special_tokens(tokenizer)
    return tokenizer


def _config(words: LanguageModel, sound: SpeechEncoder, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniThinkerConfig:
    source = words.config
    text = {
        "vocab_size": max(source.vocab_size, len(tokenizer)),
        "hidden_size": source.hidden_size,
        "intermediate_size": source.intermediate_size,
        "num_hidden_layers": source.num_hidden_layers,
        "num_attention_heads": source.num_attention_heads,
        "num_key_value_heads": source.num_key_value_heads,
        "rms_norm_eps": source.rms_norm_eps,
        "max_position_embeddings": source.max_position_embeddings,
    }
    audio = {
        "num_mel_bins": sound.mel_bins,
        "encoder_layers": sound.layers,
        "encoder_attention_heads": sound.heads,
        "encoder_ffn_dim": sound.inner,
        "d_model": sound.width,
        "max_source_positions": sound.positions,
        "n_window": sound.positions,  # a window is 2 n_window spectra long: Whisper's 30 seconds
    }
    return thinker_config(tokenizer, text=text, audio=audio, vision_width=64, rope_theta=source.rope_parameters["rope_theta"])


@torch.no_grad()
def _fill(thinker: Qwen2_5OmniThinkerForConditionalGeneration, words: LanguageModel, sound: SpeechEncoder, where: str) -> None:
    """Puts the weights of the sources into a thinker; those that no source has keep random values.

    Raises:
        CheckpointError: the sources lack a weight, or have one that the thinker has no place for.
    """
    rows = thinker.lm_head.out_features
    weights = {key: _grown(tensor, rows) if "embed_tokens" in key or "lm_head" in key else tensor for key, tensor in words.weights.items()}
    weights |= {f"audio_tower.{key}": tensor for key, tensor in sound.weights.items()}
    left = thinker.load_state_dict(weights, strict=False)
    biases = [key for key in left.missing_keys if key.endswith(_NO_BIAS)]
    lacking = [key for key in left.missing_keys if key not in biases and not key.startswith(_RANDOM)]
    if lacking or left.unexpected_keys:
        what = f"lacks {lacking[0]}" if lacking else f"has {left.unexpected_keys[0]}, for which a thinker has no place"
        raise CheckpointError(where, what, "give a Llama or Qwen2 model and a Whisper")
    state = thinker.state_dict()
    for key in biases:
        state[key].zero_()
    scale = weights["model.embed_tokens.weight"].square().mean().sqrt() / sound.weights["ln_post.weight"].square().sum().sqrt()
    thinker.audio_tower.proj.weight.normal_(std=float(scale))
    thinker.audio_tower.proj.bias.zero_()


def _grown(table_VH: torch.Tensor, rows: int) -> torch.Tensor:
    """A table of tokens with more rows, which are the mean of the others."""
    return torch.cat([table_VH, table_VH.mean(0, keepdim=True).expand(rows - len(table_VH), -1)])

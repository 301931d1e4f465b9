"""Builds a tiny Qwen2.5-Omni thinker with random weights, and its processor, for tests and laptops.

Classes, files and special tokens are those of the released model, so its folder loads as a released one does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration, Qwen2Tokenizer

from hba_ray.models.layout import (
    DEFAULT_SYSTEM,
    SPECIAL_TOKENS,
    omni_processor,
    qwen2_tokenizer,
    thinker_config,
)
from hba_ray.models.tensors import new_folder
from hba_ray.specs.sections.model import TinySpec

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
    processor = omni_processor(_tokenizer(spec.vocabulary, texts), seconds=math.ceil(audio_seconds), mel_bins=128)
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
    return qwen2_tokenizer(ids, [tuple(merge) for merge in model["merges"]])


def _with_frame(texts: Iterable[str]) -> Iterator[str]:
    """The texts, each with the words that a conversation puts around it, so that these words become tokens."""
    for text in texts:
        yield f"system\n{DEFAULT_SYSTEM}\nuser\n"
        yield text
        yield "assistant\n"


def _config(spec: TinySpec, tokenizer: Qwen2Tokenizer) -> Qwen2_5OmniThinkerConfig:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": spec.hidden,
        "intermediate_size": 2 * spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.heads // 2 if spec.heads % 2 == 0 else 1,
        "max_position_embeddings": 32768,
    }
    audio = {
        "num_mel_bins": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "max_source_positions": 1500,
        "n_window": 100,
    }
    return thinker_config(tokenizer, text=text, audio=audio, vision_width=32, rope_theta=1e6)

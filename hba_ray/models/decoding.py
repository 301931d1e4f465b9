"""Answers of a thinker, token by token, with a key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.errors import DataError


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        temperature: of the sampling; 0 takes the most probable token.
        top_p: share of the probability that sampling draws from.
        seed: of the sampling; a batch drawn again with it gives the same answers.
    """

    max_new_tokens: int
    eos_token_id: int
    pad_token_id: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def to_transformers(self) -> GenerationConfig:
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        return GenerationConfig(
            **({"do_sample": False} | sampling),
            max_new_tokens=self.max_new_tokens,
            num_beams=1,
            use_cache=True,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
        )


@torch.no_grad()
def decode(thinker: Qwen2_5OmniThinkerForConditionalGeneration, inputs: Mapping[str, Tensor], decoding: Decoding) -> list[Tensor]:
    """Continues prompts.

    Args:
        thinker: in eval mode.
        inputs: prompts that end with the generation prompt, padded on the LEFT.

    Returns:
        Token ids of each row's answer, without the end token and what follows it.

    Raises:
        DataError: a row is padded on the right, where it would be continued after its padding.
    """
    if not bool(inputs["attention_mask"][:, -1].all()):
        raise DataError("generate", "a prompt is padded on the right", "pad prompts for generation on the left", reason="right padding")
    devices = [thinker.device] if thinker.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=decoding.temperature > 0):
        if decoding.temperature > 0:
            torch.manual_seed(decoding.seed)
        sequences_BS = cast(Any, thinker).generate(**inputs, generation_config=decoding.to_transformers())
    answers_BN = sequences_BS[:, inputs["input_ids"].shape[1] :]
    ended_BN = (answers_BN == decoding.eos_token_id).cumsum(dim=1) > 0
    return [answer[~ended] for answer, ended in zip(answers_BN, ended_BN, strict=True)]

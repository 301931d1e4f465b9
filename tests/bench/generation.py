"""Speed of decoding with a key-value cache, against a loop that computes the whole prefix again for each token."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.models.omni import Decoding, decode
from hba_ray.models.tiny import build_tiny
from hba_ray.specs.sections.model import TinySpec

TOKENS, ROWS = 512, 2
MODEL = TinySpec(hidden=256, layers=4, heads=4, vocabulary=512)
PROMPTS = ("Which emotion does the speaker convey?", "What does the person in the video do, and why?", "Is it meant?", "Who waves?")


def measure() -> Iterator[dict[str, float | str]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build_tiny(MODEL, Path(folder) / "model", PROMPTS)
        thinker = load_backbone(str(Path(folder) / "model"), dtype=torch.float32)
        tokenizer = load_processor(str(Path(folder) / "model")).tokenizer
    prompts = tokenizer(list(PROMPTS[:ROWS]), padding=True, padding_side="left", return_tensors="pt")
    inputs = {name: prompts[name] for name in ("input_ids", "attention_mask")}
    never = len(tokenizer)  # no token ends a row early
    decoding = Decoding(TOKENS, eos_token_id=never, pad_token_id=tokenizer.pad_token_id)
    decode(thinker, inputs, Decoding(8, eos_token_id=never, pad_token_id=tokenizer.pad_token_id))  # warm-up

    started = time.perf_counter()
    with_cache = torch.stack(decode(thinker, inputs, decoding))
    cached_seconds = time.perf_counter() - started
    yield {"tokens a second": with_cache.numel() / cached_seconds}
    started = time.perf_counter()
    again = _prefix_again(thinker, inputs)
    loop_seconds = time.perf_counter() - started
    yield {
        "tokens a second, prefix computed again": again.numel() / loop_seconds,
        "speed-up": loop_seconds / cached_seconds,
        "speed-up, goal": ">= 10",
        "same text": str(torch.equal(with_cache, again)),
    }


@torch.no_grad()
def _prefix_again(thinker: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The greedy continuation, without a cache."""
    ids_BS, mask_BS = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(TOKENS):
        next_B = thinker(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits[:, -1].argmax(-1)
        ids_BS = torch.cat([ids_BS, next_B[:, None]], dim=1)
        mask_BS = torch.cat([mask_BS, torch.ones_like(next_B[:, None])], dim=1)
    return ids_BS[:, inputs["input_ids"].shape[1] :]

"""One row through a random Qwen2.5-Omni, by the code of the toy, and the memory that it takes; run as a program for the size of 3B."""

import json
import resource
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.models.backbone import apply_training
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.size.estimates import GIB, Processes, activation_bytes, training_memory
from hba_ray.models.size.published import OMNI_3B
from hba_ray.models.size.shape import Audio, Shape, Text, Vision
from hba_ray.specs.sections.model import ModelSpec
from tests.helpers.sizes import config_of, row_of

WORDS, AUDIO_SECONDS, FRAMES, GRID = 60, 4, 2, (8, 8)
"""Of the row: words beside its clips, seconds of sound, frames, and patches of a frame."""
SMALL = Shape(
    Text(hidden=256, layers=6, keys=128, inner=1024, vocabulary=152_000),
    Audio(width=160, layers=2, inner=256, mel_bins=128, outputs=256),
    Vision(width=128, layers=2, inner=256, patch=1176, merged=4, outputs=256),
)


def build(shape: Shape, model: ModelSpec, dtype: torch.dtype) -> OmniSapiens:
    """A model with random weights, which are made on the meta device first and then once in memory."""
    config = config_of(shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(config)
    thinker = thinker.to_empty(device="cpu")
    torch.set_default_dtype(before)
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            weight.fill_(1.0) if "norm" in name or "ln_" in name else weight.normal_(std=0.02)
        restore_buffers(thinker)
    return OmniSapiens(apply_training(thinker, model, gradient_checkpointing=False), shape.text.hidden)


def restore_buffers(thinker: Any) -> None:
    """Fills the tables of positions, which `to_empty` leaves as memory was found."""
    for module in thinker.modules():
        for name, buffer in module.named_buffers(recurse=False):
            fresh = torch.linspace(1.0, 0.001, buffer.numel()).reshape(buffer.shape)
            setattr(module, name, fresh.to(buffer.dtype))


def one_row(thinker: Any, *, clips: bool) -> dict[str, torch.Tensor]:
    """Inputs of a row: words, and, if it has clips, a sound and a video."""
    config = thinker.config
    words = torch.randint(10, 1000, (WORDS,))
    if not clips:
        return {"input_ids": words[None], "attention_mask": torch.ones(1, WORDS, dtype=torch.long)}
    sounds, seen = AUDIO_SECONDS * 25, FRAMES // 2 * GRID[0] * GRID[1] // 4
    ids = torch.cat(
        [
            words[: WORDS // 2],
            torch.tensor([config.vision_start_token_id]),
            torch.full((seen,), config.video_token_id),
            torch.tensor([config.vision_end_token_id, config.audio_start_token_id]),
            torch.full((sounds,), config.audio_token_id),
            torch.tensor([config.audio_end_token_id]),
            words[WORDS // 2 :],
        ]
    )
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "input_features": torch.randn(1, 128, 100 * AUDIO_SECONDS),
        "feature_attention_mask": torch.ones(1, 100 * AUDIO_SECONDS, dtype=torch.long),
        "pixel_values_videos": torch.randn(FRAMES // 2 * GRID[0] * GRID[1], 1176),
        "video_grid_thw": torch.tensor([[FRAMES // 2, *GRID]]),
        "video_second_per_grid": torch.tensor([1.0]),
    }


def forward(model: OmniSapiens, inputs: dict[str, torch.Tensor]) -> Any:
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = 7
    one = torch.ones(1)
    return model(inputs, torch.tensor([0]), torch.tensor([0]), labels, one)


@contextmanager
def counted_storages():
    """Collects the storages that the backward pass would read: their bytes, by address."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def kept_by(model: ModelSpec) -> tuple[int, float]:
    """(bytes that a small model keeps of a row of words, the same as estimated), in fp32."""
    torch.manual_seed(0)
    built = build(SMALL, model, torch.float32).train()
    own = {weight.untyped_storage().data_ptr() for weight in built.parameters()}
    with counted_storages() as kept:
        out = forward(built, one_row(built.thinker, clips=False))
    vocabulary = 4 * 4 * SMALL.text.vocabulary  # logits of the answer's four tokens, which plans leave out
    found = sum(size for address, size in kept.items() if address not in own)
    del out
    return found - vocabulary, activation_bytes(SMALL, model, row_of(WORDS), Processes(bf16=False, gpu=False))


def resident() -> int:
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * resource.getpagesize()


def main(ceiling: float) -> None:
    """Prints the measured and the estimated bytes as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (int((ceiling + 1) * GIB),) * 2)
    model, peak = ModelSpec.model_validate({"train": "lora"}), 0
    before = resident()
    built = build(OMNI_3B, model, torch.bfloat16).to(torch.bfloat16).train()
    weights = resident() - before
    inputs = one_row(built.thinker, clips=True)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, resident())
            time.sleep(0.05)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    own = {weight.untyped_storage().data_ptr() for weight in built.parameters()}
    with counted_storages() as counted:
        out = forward(built, inputs)
    kept = sum(size for address, size in counted.items() if address not in own)
    held = resident() - before
    ended.set()
    watcher.join()
    row = row_of(inputs["input_ids"].shape[1], 50 * AUDIO_SECONDS, len(inputs["pixel_values_videos"]))
    told = training_memory(OMNI_3B, model, row, Processes(gpu=False))
    found = {
        "weights": {"measured": weights, "estimated": told.weights},
        "kept": {"measured": kept, "estimated": told.activations},
        "held": {"measured": held, "estimated": told.weights + told.activations},
        "peak": {"measured": max(peak, resident())},
        "tokens": row.tokens,
        "finite": bool(torch.isfinite(out.class_loss_sum) and torch.isfinite(out.answer_loss_sum)),
        "dtype": str(built.thinker.dtype),
        "classes": out.class_logits_B25.shape[1],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))

"""A tiny random Whisper checkpoint."""

from pathlib import Path

import torch


def checkpoint(file: Path, seed: int = 0) -> Path:
    """Random weights in Whisper's own layout, with the vocabulary of the multilingual models."""
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(seed)
    size = ModelDimensions(
        n_mels=80, n_audio_ctx=1500, n_audio_state=16, n_audio_head=2, n_audio_layer=1,
        n_vocab=51865, n_text_ctx=24, n_text_state=16, n_text_head=2, n_text_layer=1,
    )  # fmt: skip
    weights = {name: 0.05 * torch.randn(weight.shape) for name, weight in Whisper(size).state_dict().items()}
    torch.save({"dims": vars(size), "model_state_dict": weights}, file)
    return file

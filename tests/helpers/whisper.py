"""Whisper models for tests: a tiny random checkpoint, and a file of CTranslate2."""

import struct
from pathlib import Path

import numpy as np
import torch


def checkpoint(file: Path, seed: int = 0, state: int = 16) -> Path:
    """Random weights in Whisper's own layout, with the vocabulary of the multilingual models; `state` is their width."""
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(seed)
    size = ModelDimensions(
        n_mels=80, n_audio_ctx=1500, n_audio_state=state, n_audio_head=max(state // 64, 1), n_audio_layer=1,
        n_vocab=51865, n_text_ctx=24, n_text_state=state, n_text_head=max(state // 64, 1), n_text_layer=1,
    )  # fmt: skip
    weights = {name: 0.05 * torch.randn(weight.shape) for name, weight in Whisper(size).state_dict().items()}
    torch.save({"dims": vars(size), "model_state_dict": weights}, file)
    return file


NAMES = {
    "encoder.positional_embedding": "encoder/position_encodings/encodings",
    "decoder.positional_embedding": "decoder/position_encodings/encodings",
    "decoder.token_embedding.weight": "decoder/embeddings/weight",
    "encoder.ln_post": "encoder/layer_norm",
    "decoder.ln": "decoder/layer_norm",
}
LAYERS = {
    "attn_ln": "self_attention/layer_norm",
    "attn.out": "self_attention/linear_1",
    "cross_attn_ln": "attention/layer_norm",
    "cross_attn.query": "attention/linear_0",
    "cross_attn.out": "attention/linear_2",
    "mlp_ln": "ffn/layer_norm",
    "mlp.0": "ffn/linear_0",
    "mlp.2": "ffn/linear_1",
}
FUSED = {"self_attention/linear_0": ("attn", ("query", "key", "value")), "attention/linear_1": ("cross_attn", ("key", "value"))}


def write_ctranslate2(file: Path, weights: dict[str, torch.Tensor], kind: type[np.floating] = np.float32) -> None:
    """Writes weights of openai-whisper as CTranslate2 does: projections of the same states in one, gamma and beta for layer norms."""
    variables: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        place, _, last = name.rpartition(".")
        side, _, inside = place.partition(".")
        if name in NAMES:
            variables[NAMES[name]] = tensor
        elif place in NAMES:
            variables[f"{NAMES[place]}/{'gamma' if last == 'weight' else 'beta'}"] = tensor
        elif not inside.startswith("blocks."):
            variables[f"{side}/{inside}/{last}"] = tensor
        elif (part := inside.split(".", 2)[2]) in LAYERS:
            norm = {"weight": "gamma", "bias": "beta"}[last] if part.endswith("_ln") else last
            variables[f"{side}/layer_{inside.split('.')[1]}/{LAYERS[part]}/{norm}"] = tensor
    for block in sorted({".".join(name.split(".")[:3]) for name in weights if ".blocks." in name}):
        side, _, number = block.split(".")
        for target, (module, projections) in FUSED.items():
            if f"{block}.{module}.key.weight" in weights:
                names = [f"{block}.{module}.{projection}" for projection in projections]
                there = f"{side}/layer_{number}/{target}"
                variables[f"{there}/weight"] = torch.cat([weights[f"{name}.weight"] for name in names])
                zeros = torch.zeros(len(weights[f"{names[-1]}.bias"]))
                variables[f"{there}/bias"] = torch.cat([weights.get(f"{name}.bias", zeros) for name in names])

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, tensor in variables.items():
        data = tensor.numpy().astype(kind).tobytes()
        sizes = struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        content += text(name) + sizes + struct.pack("<BI", {np.float32: 0, np.float16: 4}[kind], len(data)) + data
    file.write_bytes(content)

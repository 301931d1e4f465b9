"""Reads a Whisper from a model.bin of CTranslate2, and gives its weights the names that openai-whisper has for them.

The file is a flat list: version, name of the specification, its revision, count; then name, rank, sizes, type and bytes of
each variable.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hba_ray.errors import CheckpointError

_TYPES = {0: np.float32, 4: np.float16}
"""Code of a type in the file -> the type, where its numbers need no scale."""
_OLDEST = 4
"""The first version of the file in which a variable names its type and its size in bytes."""
HEAD = 64
"""Width of the heads of every Whisper."""
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_FIXED = {
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
}
_OUTSIDE = {"encoder/layer_norm": "encoder.ln_post", "decoder/layer_norm": "decoder.ln"}
_BLOCKS = {"self_attention": "attn", "attention": "cross_attn"}
_FEED_FORWARD = {"layer_norm": "mlp_ln", "linear_0": "mlp.0", "linear_1": "mlp.2"}
_PROJECTIONS = {
    ("self_attention", "linear_0"): ("query", "key", "value"),
    ("self_attention", "linear_1"): ("out",),
    ("attention", "linear_0"): ("query",),
    ("attention", "linear_1"): ("key", "value"),
    ("attention", "linear_2"): ("out",),
}
"""Projections that one variable holds, one above the other."""


def read_whisper(file: Path) -> dict[str, np.ndarray]:
    """The weights of a Whisper, in float32, under openai-whisper's names.

    Raises:
        CheckpointError: it cannot be read, is quantised to integers, or is no Whisper.
    """
    weights = {}
    for name, array in _read(file).items():
        for target, part in _named(name, array):
            weights[target] = part.astype(np.float32)
    if not {"encoder.conv1.weight", "encoder.positional_embedding", "encoder.blocks.0.mlp.0.weight"} <= weights.keys():
        what = "holds no Whisper encoder in half or single precision"
        raise CheckpointError(str(file), what, "give one that is not quantised to integers")
    return weights


def dimensions(weights: dict[str, np.ndarray]) -> dict[str, int]:
    """The sizes of a whole Whisper under the names of openai-whisper's `ModelDimensions`.

    Raises:
        KeyError: the weights are those of an encoder alone.
    """
    audio, text = weights["encoder.positional_embedding"], weights["decoder.positional_embedding"]
    sizes = {"n_mels": weights["encoder.conv1.weight"].shape[1], "n_vocab": len(weights["decoder.token_embedding.weight"])}
    for side, name, positions in (("encoder", "audio", audio), ("decoder", "text", text)):
        layers = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith(f"{side}.blocks."))
        context, state = positions.shape
        sizes |= {f"n_{name}_ctx": context, f"n_{name}_state": state, f"n_{name}_head": state // HEAD, f"n_{name}_layer": layers}
    return sizes


def _named(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The weights that a variable holds; none where it belongs to no Whisper."""
    if name in _FIXED:
        yield _FIXED[name], array
        return
    place, _, last = name.rpartition("/")
    side, _, inside = place.partition("/")
    kind, parts = _KINDS.get(last), inside.split("/")
    if kind is None or side not in ("encoder", "decoder"):
        return
    if place in _OUTSIDE:
        yield f"{_OUTSIDE[place]}.{kind}", array
    elif parts[0] in ("conv1", "conv2"):
        yield f"{side}.{parts[0]}.{kind}", array
    elif len(parts) == 3 and parts[0].startswith("layer_"):
        block, (_, module, layer) = f"{side}.blocks.{parts[0].removeprefix('layer_')}", parts
        if module == "ffn" and layer in _FEED_FORWARD:
            yield f"{block}.{_FEED_FORWARD[layer]}.{kind}", array
        elif module in _BLOCKS and layer == "layer_norm":
            yield f"{block}.{_BLOCKS[module]}_ln.{kind}", array
        elif (projections := _PROJECTIONS.get((module, layer))) is not None:
            for projection, part in zip(projections, np.split(array, len(projections)), strict=True):
                if (projection, kind) != ("key", "bias"):  # Whisper's keys have none; the file holds zeros
                    yield f"{block}.{_BLOCKS[module]}.{projection}.{kind}", part


def _read(file: Path) -> dict[str, np.ndarray]:
    """The variables of a file by name; those of other types than float16 and float32 are left out."""
    try:
        with file.open("rb") as stream:
            return dict(_variables(stream, str(file)))
    except (OSError, struct.error, ValueError, UnicodeDecodeError) as cause:
        what = f"cannot be read as a model of CTranslate2: {cause}"
        raise CheckpointError(str(file), what, "give a model.bin of version 4 or newer") from cause


def _variables(stream: BinaryIO, where: str) -> Iterator[tuple[str, np.ndarray]]:
    version = _number(stream, "I")
    if not _OLDEST <= version < 100:
        raise CheckpointError(where, f"has version {version} of the file, or is none", "convert the model with a newer CTranslate2")
    _text(stream)  # name of the specification
    _number(stream, "I")  # its revision
    for _ in range(_number(stream, "I")):
        name = _text(stream)
        sizes = [_number(stream, "I") for _ in range(_number(stream, "B"))]
        kind, length = _number(stream, "B"), _number(stream, "I")
        content = stream.read(length)
        if len(content) < length:
            raise ValueError(f"'{name}' has {len(content)} of {length} bytes")
        if kind in _TYPES:
            yield name, np.frombuffer(content, _TYPES[kind]).reshape(sizes)


def _number(stream: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))[0]


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "H")).rstrip(b"\0").decode()

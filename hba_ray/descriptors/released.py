"""Reads the descriptors that the released atlas ships as `.pt` files, and pools them as our own are pooled.

`ext_video_feats` hold `pose [T, 33, 3], face [T, 478, 3], left_hand [T, 21, 3], right_hand [T, 21, 3]`; where no face was
found in the whole clip, `face` has 468 zero points. `ext_audio_feats` hold `features [1, 6373]`. Only tensors and numpy
arrays are read; files with other pickled objects are refused.

Shapes: T frames, P points, D values.
"""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hba_ray.descriptors.pooling import pad_points, pooled
from hba_ray.descriptors.pose import PARTS
from hba_ray.errors import BadMedia
from hba_ray.specs.descriptors import FUNCTIONALS


class ReleasedExtractor:
    """Reads and pools one kind of released file.

    Args:
        stream: "pose" for `ext_video_feats`, "acoustic" for `ext_audio_feats`.
    """

    def __init__(self, stream: Literal["pose", "acoustic"]):
        self._pool = _pool_pose if stream == "pose" else _pool_acoustic

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
        """The columns of a row of the stream's table.

        Raises:
            BadMedia: it is no `.pt` file, or holds other objects than arrays, or other keys or shapes.
        """
        return self._pool(load_released(clip, where=where), where)


def load_released(clip: bytes | Path, *, where: str) -> dict[str, Any]:
    """The dictionary in a `.pt` file, with tensors as numpy arrays. No code from the file is run.

    Raises:
        BadMedia: it is no `.pt` file, or holds other objects than tensors and arrays.
    """
    import torch

    file = io.BytesIO(clip) if isinstance(clip, bytes) else clip
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        what = "the descriptor file holds a pickled object, or is damaged"
        raise BadMedia(where, what, "only tensors and numpy arrays are read", reason="unsafe descriptors") from cause
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as cause:
        raise BadMedia(where, f"the descriptor file cannot be read: {cause}", reason="corrupt descriptors") from cause
    if not isinstance(loaded, dict):
        raise BadMedia(where, f"the descriptor file holds {type(loaded).__name__}, not a dictionary", reason="corrupt descriptors")
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in loaded.items()}


def _numpy_globals() -> list[Any]:
    """The functions and classes that a pickled array of numbers refers to; none of them runs code from the file."""
    makers: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]  # _reconstruct and scalar, which numpy keeps private
    kinds = [type(np.dtype(code)) for code in "?bhilBHILefd"]
    named = [(made, f"{core}.multiarray.{made.__name__}") for made in makers for core in ("numpy.core", "numpy._core")]
    return [*named, (codecs.encode, "_codecs.encode"), np.ndarray, np.dtype, *kinds]


def _pool_pose(loaded: dict[str, Any], where: str) -> dict[str, Any]:
    parts = [_array(loaded, name, where, ndim=3) for name in PARTS]
    frames = len(parts[0])
    for (name, count), part_TP3 in zip(PARTS.items(), parts, strict=True):
        if len(part_TP3) != frames or not frames or part_TP3.shape[1] > count or part_TP3.shape[2] != 3:
            what = f"'{name}' is {list(part_TP3.shape)}, not [{frames or 'T'}, {count}, 3]"
            raise BadMedia(where, what, reason="descriptor shape")
    points_TP3 = np.concatenate([pad_points(part, count) for part, count in zip(parts, PARTS.values(), strict=True)], axis=1)
    return {
        "frames": frames,
        **pooled(points_TP3.reshape(frames, -1)),
        "detected": np.array([part.any(axis=(1, 2)).mean() for part in parts], np.float32),
    }


def _pool_acoustic(loaded: dict[str, Any], where: str) -> dict[str, Any]:
    features_1D = np.atleast_2d(_array(loaded, "features", where))
    if features_1D.shape != (1, FUNCTIONALS):
        raise BadMedia(where, f"'features' is {list(features_1D.shape)}, not [1, {FUNCTIONALS}]", reason="descriptor shape")
    return {"frames": 1, "functionals": features_1D[0]}


def _array(loaded: dict[str, Any], name: str, where: str, ndim: int | None = None) -> np.ndarray:
    value = loaded.get(name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or (ndim and value.ndim != ndim):
        raise BadMedia(where, f"'{name}' is no array of numbers" + (f" with {ndim} axes" if ndim else ""), reason="descriptor shape")
    array = value.astype(np.float32)
    if not np.isfinite(array).all():
        raise BadMedia(where, f"'{name}' holds values that are not finite", reason="corrupt descriptors")
    return array

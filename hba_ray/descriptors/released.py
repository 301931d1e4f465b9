"""Reads the descriptors that the released atlas ships as `.pt` files, and pools them as our own are pooled.

`ext_video_feats` hold `pose [T, 33, 3], face [T, 478, 3], left_hand [T, 21, 3], right_hand [T, 21, 3]`; where no face was
found in the whole clip, `face` has 468 zero points. `ext_audio_feats` hold `features [1, 6373]`. Only tensors and numpy
arrays are read; files with other pickled objects are refused. A file of any content gives its values or a BadMedia.

Shapes: T frames, P points, D values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from hba_ray.data.torch_files import ForeignObjectError, TorchFileError, load_torch_file
from hba_ray.descriptors.pooling import pad_points, pooled
from hba_ray.descriptors.pose import PARTS
from hba_ray.errors import BadMedia
from hba_ray.specs.sections.descriptors import FUNCTIONALS

MOST_VALUES = 1 << 28
"""Values of an array that is read: a gigabyte of float32, the landmarks of more than an hour."""
MOST_BYTES = 1 << 31
"""Bytes of a file."""
_EGEMAPS = {88: "eGeMAPS functionals", 62: "GeMAPS functionals", 25: "eGeMAPS low-level descriptors", 65: "ComParE low-level descriptors"}
"""openSMILE's other sets of features, by their width."""


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
        BadMedia: it is not there, is no `.pt` file, holds other objects than tensors and arrays, or more than MOST_BYTES.
    """
    if isinstance(clip, Path) and not clip.is_file():
        raise BadMedia(where, f"there is no descriptor file {clip.name!r}", reason="missing file")
    size = len(clip) if isinstance(clip, bytes) else clip.stat().st_size
    if size > MOST_BYTES:
        raise BadMedia(where, f"the descriptor file holds {size >> 20} MiB, more than {MOST_BYTES >> 20}", reason="corrupt descriptors")
    try:
        loaded = load_torch_file(clip)
    except TorchFileError as cause:
        reason = "unsafe descriptors" if isinstance(cause, ForeignObjectError) else "corrupt descriptors"
        raise BadMedia(where, f"the descriptor file {cause}", cause.way_out, reason=reason) from cause
    if not isinstance(loaded, dict):
        raise BadMedia(where, f"the descriptor file holds {type(loaded).__name__}, not a dictionary", reason="corrupt descriptors")
    return {name: _as_array(name, value, where) for name, value in loaded.items()}


def _as_array(name: str, value: Any, where: str) -> Any:
    """A tensor as numpy has it, and as float32 where numpy lacks its type, as it lacks bfloat16; another value as it is.

    Raises:
        BadMedia: it says that it has more than MOST_VALUES values; a few bytes can say so.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() > MOST_VALUES:
        what = f"'{name}' is a tensor of {value.numel()} values, more than {MOST_VALUES}"
        raise BadMedia(where, what, reason="corrupt descriptors")
    known = not value.is_floating_point() or value.dtype in (torch.float16, torch.float32, torch.float64)
    return (value if known else value.to(torch.float32)).numpy()


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
        what, other = f"'features' is {list(features_1D.shape)}, not [1, {FUNCTIONALS}]", _EGEMAPS.get(features_1D.shape[-1])
        way_out = f"this is the width of openSMILE's {other}; extract ComParE_2016 functionals" if other else ""
        raise BadMedia(where, what, way_out, reason="descriptor shape")
    return {"frames": 1, "functionals": features_1D[0]}


def _array(loaded: dict[str, Any], name: str, where: str, ndim: int | None = None) -> np.ndarray:
    value = loaded.get(name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or (ndim and value.ndim != ndim):
        raise BadMedia(where, f"'{name}' is no array of numbers" + (f" with {ndim} axes" if ndim else ""), reason="descriptor shape")
    with np.errstate(over="ignore"):
        array = value.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        place = np.unravel_index(int(finite.argmin()), array.shape)
        what = f"'{name}' holds values that are not finite: {value[place]} at {[int(index) for index in place]}"
        raise BadMedia(where, what, "extract this file again", reason="corrupt descriptors")
    return array

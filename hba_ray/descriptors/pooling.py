"""Pools descriptors over time into one vector a clip, and normalises vectors. Pure functions of numpy arrays.

Sums are taken in float64 and in blocks, so an array in memory and one in a file give the same result, and memory does not
grow with the length of the clip.

Shapes: T frames, D values of a frame or vector, B clips, P points, C coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_ROWS, _COLUMNS = 256, 128


def mean_std(frames_TD: np.ndarray) -> np.ndarray:
    """Mean and population standard deviation over time, float32 [2 D] (paper section 3.6).

    >>> mean_std(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [2.0, 5.0, 1.0, 0.0]
    """
    blocks = [slice(start, start + _ROWS) for start in range(0, len(_frames(frames_TD)), _ROWS)]
    mean_D = sum(frames_TD[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(frames_TD)
    squares_D = sum(np.square(frames_TD[block] - mean_D).sum(axis=0) for block in blocks)
    return np.concatenate([mean_D, np.sqrt(squares_D / len(frames_TD))]).astype(np.float32)


def quartiles(frames_TD: np.ndarray) -> np.ndarray:
    """First quartile, median and third quartile over time, linearly interpolated, float32 [3 D].

    >>> quartiles(np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    width = _frames(frames_TD).shape[1]
    blocks = [np.asarray(frames_TD[:, start : start + _COLUMNS], np.float64) for start in range(0, width, _COLUMNS)]
    return np.concatenate([np.quantile(block, (0.25, 0.5, 0.75), axis=0) for block in blocks], axis=1).astype(np.float32).ravel()


POOLINGS = {"mean_std": mean_std, "quartiles": quartiles}


def pooled(frames_TD: np.ndarray) -> dict[str, np.ndarray]:
    """The result of every pooling by name. All are stored, a few KB a clip, so that another pooling needs no new extraction."""
    return {name: pool(frames_TD) for name, pool in POOLINGS.items()}


def pad_points(points_TPC: np.ndarray, points: int) -> np.ndarray:
    """Fills up with zero points, [T, points, C].

    This has to come before pooling: a pooled vector holds all means before all deviations, so points that are missing in the
    middle would shift everything behind them.

    Raises:
        ValueError: there are more points than `points`.
    """
    missing = points - points_TPC.shape[1]
    return np.pad(points_TPC, ((0, 0), (0, missing), (0, 0))) if missing else points_TPC


def l2(matrix_BD: np.ndarray) -> np.ndarray:
    """Each vector divided by its length; a zero vector stays zero."""
    lengths_B1 = np.linalg.norm(matrix_BD.astype(np.float64), axis=1, keepdims=True)
    return np.divide(matrix_BD, lengths_B1, out=np.zeros(matrix_BD.shape, np.float64), where=lengths_B1 > 0).astype(np.float32)


def varies(deviation_D: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """Whether each value varies: its deviation is larger than what rounding gives a constant value, bool [D]."""
    return deviation_D > 1e-12 * np.maximum(1.0, np.abs(mean_D))


@dataclass(frozen=True)
class ZScoreStatistics:
    """Mean and standard deviation of each value over the training rows that have the stream, and the z-scores they give.

    Attributes:
        mean_D: means.
        scale_D: deviations; 1 for a constant value.
    """

    mean_D: np.ndarray
    scale_D: np.ndarray

    @classmethod
    def fit(cls, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> ZScoreStatistics:
        """Takes both from batches of (vectors [B, D], present [B]), which are read once and not kept.

        Raises:
            ValueError: no row has the stream.
        """
        count, mean_D, squares_D = 0, np.zeros(0), np.zeros(0)
        for matrix_BD, present_B in batches:
            rows_BD = matrix_BD[present_B].astype(np.float64)
            if not len(rows_BD):
                continue
            own_D = rows_BD.mean(axis=0)
            if not count:
                mean_D, squares_D = np.zeros_like(own_D), np.zeros_like(own_D)
            total = count + len(rows_BD)
            apart_D = own_D - mean_D
            squares_D += np.square(rows_BD - own_D).sum(axis=0) + np.square(apart_D) * count * len(rows_BD) / total
            mean_D += apart_D * len(rows_BD) / total
            count = total
        if not count:
            raise ValueError("no row has the stream, so there is nothing to take a mean of")
        scale_D = np.sqrt(squares_D / count)
        return cls(mean_D, np.where(varies(scale_D, mean_D), scale_D, 1.0))

    def __call__(self, matrix_BD: np.ndarray) -> np.ndarray:
        return ((matrix_BD - self.mean_D) / self.scale_D).astype(np.float32)


def normalise(matrix_BD: np.ndarray, present_B: np.ndarray, method: str, z_score: ZScoreStatistics | None = None) -> np.ndarray:
    """Normalises vectors by `method`: "none", "l2" or "z_score". Rows without the stream stay zero."""
    if method == "none":
        return matrix_BD
    if method == "z_score" and z_score is None:
        raise ValueError("z_score needs the statistics of the training split: ZScoreStatistics.fit")
    scaled_BD = l2(matrix_BD) if z_score is None or method == "l2" else z_score(matrix_BD)
    return np.where(present_B[:, None], scaled_BD, np.float32(0))


def _frames(frames_TD: np.ndarray) -> np.ndarray:
    if frames_TD.ndim != 2 or not len(frames_TD):
        raise ValueError(f"descriptors over time are [T, D] with T > 0, not {list(frames_TD.shape)}")
    return frames_TD

"""Extracts landmarks of pose, face and hands by MediaPipe Holistic, frame by frame, and pools them over time.

The landmarks of a frame are 33 pose, 478 face, 21 left-hand and 21 right-hand points with x, y, z each, flattened in this
order: 1659 values. Points that were not found are zero, as in the released features. x and y are shares of the picture's
width and height.

Frames are decoded one after the other, and landmarks wait in a temporary file, so memory does not grow with the clip. The
extractor runs in an environment of its own (environments.py), where numpy, PyAV and MediaPipe are installed, but no torch.

Shapes: T frames, D = 1659 values, H and W pixels, R values of a row of the spool.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from math import floor
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from hba_ray.data.media import SHORTEST_SIDE, decode_video, every_frame, upright
from hba_ray.descriptors.pooling import pooled
from hba_ray.descriptors.store import write_frames

PARTS = {"pose": 33, "face": 478, "left_hand": 21, "right_hand": 21}
"""Part -> points, in the order of the released features (models/bam_utils.py of the released code)."""
VALUES = 3 * sum(PARTS.values())
"""Values of a frame: x, y and z of each point."""
_ROUNDING = 1e-6
"""Seconds by which two times of frames may differ and still be the same."""


class PoseExtractor:
    """Describes videos, with one Holistic graph that is reset between them, so that landmarks do not depend on the clip before.

    Args:
        fps: frames per second of video that are looked at; None is every frame.
        complexity: of MediaPipe's pose model: 0, 1 or 2.
    """

    def __init__(self, fps: float | None, complexity: int, detection_confidence: float, tracking_confidence: float):
        from mediapipe.python.solutions.holistic import Holistic  # type: ignore[import-not-found]

        self._fps = fps
        self._holistic = Holistic(
            model_complexity=complexity,
            refine_face_landmarks=True,
            min_detection_confidence=detection_confidence,
            min_tracking_confidence=tracking_confidence,
        )

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
        """The columns of a row of the pose table.

        Args:
            keep: file for the landmarks of every frame.

        Raises:
            BadMedia: the video cannot be decoded.
        """
        self._holistic.reset()
        with Spool(VALUES + len(PARTS) + PARTS["pose"]) as spool:
            for image_HWC in frames(clip, self._fps, where=where):
                spool.add(self._row(image_HWC))
            rows = spool.rows()
            values_TD, detected_T4, visibility_T33 = np.split(rows, (VALUES, VALUES + len(PARTS)), axis=1)
            if keep:
                write_frames(keep, {"values": values_TD, "detected": detected_T4, "visibility": visibility_T33})
            return {
                "frames": len(spool),
                **pooled(values_TD),
                "detected": detected_T4.mean(axis=0),
                "visibility": visibility_T33.mean(axis=0),
            }

    def _row(self, image_HWC: np.ndarray) -> np.ndarray:
        """Landmarks, a flag for each part that was detected, and the visibility of the pose points, in one row."""
        found = self._holistic.process(image_HWC)
        parts = {name: getattr(found, f"{name}_landmarks") for name in PARTS}
        points = [point for name, count in PARTS.items() for point in _points(parts[name], count)]
        flags = [float(part is not None) for part in parts.values()]
        visibility = [point.visibility for point in parts["pose"].landmark] if parts["pose"] else [0.0] * PARTS["pose"]
        return np.array([*(value for point in points for value in point), *flags, *visibility], np.float32)


def _points(landmarks: Any, count: int) -> list[tuple[float, float, float]]:
    if landmarks is None:
        return [(0.0, 0.0, 0.0)] * count
    return [(point.x, point.y, point.z) for point in landmarks.landmark]


def frames(clip: bytes | Path, fps: float | None, *, where: str) -> Iterator[np.ndarray]:
    """The frames of a video as uint8 RGB [H, W, 3], upright, in order, decoded on one thread.

    Args:
        fps: frames per second of video; gives for each multiple of 1 / fps the first frame at or after it, and none
            twice. None is every frame.

    Raises:
        BadMedia: the clip has no video stream or no frame, is damaged or cut short; see `hba_ray.data.media`.
    """
    decode_video(clip, 2, SHORTEST_SIDE**2, where=where)  # refuses a clip that is damaged at its end, before any time is spent on it
    for frame in _sampled(every_frame(clip, where=where), fps):
        yield np.ascontiguousarray(upright(frame.to_ndarray(format="rgb24"), frame))


def _sampled(timed: Iterator[tuple[float, av.VideoFrame]], fps: float | None) -> Iterator[av.VideoFrame]:
    start = wanted = None
    for seconds, frame in timed:
        if fps is None:
            yield frame
            continue
        if start is None or wanted is None:
            start = wanted = seconds
        if seconds + _ROUNDING >= wanted:
            yield frame
            wanted = start + (floor((seconds - start + _ROUNDING) * fps) + 1) / fps


class Spool:
    """Rows of float32 in a temporary file, so that even an hour of landmarks takes no memory.

    with Spool(width) as spool:
        spool.add(row_R)
        spool.rows()  # [T, R], mapped from the file
    """

    def __init__(self, width: int):
        self._width, self._count, self._file = width, 0, tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def add(self, row_R: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(row_R, np.float32).tobytes())
        self._count += 1

    def rows(self) -> np.ndarray:
        """All rows so far, [T, R], mapped from the file; valid inside the block."""
        self._file.flush()
        if not self._count:
            return np.zeros((0, self._width), np.float32)
        return np.memmap(self._file, np.float32, "r", shape=(self._count, self._width))

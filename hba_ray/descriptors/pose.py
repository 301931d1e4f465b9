"""Pose, face and hands by MediaPipe Holistic.

Runs in an environment of its own (see `environments`): imports numpy, PyAV and MediaPipe only.

A frame is 33 pose, 478 face, 21 left-hand and 21 right-hand points, each x, y, z, flattened in this
order: 1659 values. Points that were not found are zero, as in the released features. x and y are
shares of the picture's width and height.

Shapes: T frames, D = 1659.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hba_ray.descriptors.frames import Spool, frames
from hba_ray.descriptors.pooling import pooled
from hba_ray.descriptors.store import write_frames

PARTS = {"pose": 33, "face": 478, "left_hand": 21, "right_hand": 21}
"""Part -> points, in the order of the released features (models/bam_utils.py)."""
VALUES = 3 * sum(PARTS.values())


class PoseExtractor:
    """Holds one Holistic graph, which is reset between clips: a clip's landmarks do not depend on the one before."""

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
            keep: file that gets the landmarks of every frame.

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
        """Landmarks, a detected flag for each part, and the visibility of the pose points."""
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

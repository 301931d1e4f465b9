"""The frames of a video one after the other, and a place for what is made of them. Neither is ever held whole.

Shapes: H and W pixels, T frames, W values of a row of the spool.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from math import floor
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.error import FFmpegError

from hba_ray.data.media import SHORTEST_SIDE, decode_video
from hba_ray.errors import BadMedia

_ROUNDING = 1e-6  # seconds; times of frames are fractions


def frames(clip: bytes | Path, fps: float | None, *, where: str) -> Iterator[np.ndarray]:
    """Frames of the first video stream as uint8 RGB [H, W, 3], in order, decoded on one thread.

    Args:
        fps: frames per second of video: for each multiple of 1 / fps the first frame at or after it,
            no frame twice. None is every frame.

    Raises:
        BadMedia: no video stream, no frame in it, damaged or cut short; see `hba_ray.data.media`.
    """
    decode_video(clip, 2, SHORTEST_SIDE**2, where=where)  # refuses a clip that is cut short, before any time is spent on it
    try:
        with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb") as file, av.open(file, "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in _sampled(container.decode(stream), fps):
                if frame.is_corrupt:
                    raise BadMedia(where, f"the frame at {frame.time or 0:.2f} s is damaged", reason="corrupt video")
                yield frame.to_ndarray(format="rgb24")
    except (FFmpegError, OSError) as cause:
        raise BadMedia(where, f"the video cannot be decoded: {cause}", reason="corrupt video") from cause


def _sampled(decoded: Iterator[av.VideoFrame], fps: float | None) -> Iterator[av.VideoFrame]:
    start = wanted = None
    for frame in decoded:
        if fps is None:
            yield frame
            continue
        if frame.time is None:
            continue
        if start is None or wanted is None:
            start = wanted = frame.time
        if frame.time + _ROUNDING >= wanted:
            yield frame
            wanted = start + (floor((frame.time - start + _ROUNDING) * fps) + 1) / fps


class Spool:
    """Rows of float32 in a temporary file, so that an hour of landmarks takes no memory.

    with Spool(width) as spool:
        spool.add(row_W)
        spool.rows()  # [T, W], read where it lies
    """

    def __init__(self, width: int):
        self._width, self._count, self._file = width, 0, tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def add(self, row_W: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(row_W, np.float32).tobytes())
        self._count += 1

    def rows(self) -> np.ndarray:
        """All rows so far, [T, W]; valid inside the block."""
        self._file.flush()
        if not self._count:
            return np.zeros((0, self._width), np.float32)
        return np.memmap(self._file, np.float32, "r", shape=(self._count, self._width))

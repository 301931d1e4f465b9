"""Makes videos whose frames bear their number in their pixels, so that each shown frame can be told, however it was encoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIDE = 64
"""Sides of the pictures."""
BITS = 8


def numbered(number: int) -> np.ndarray:
    """A picture [64, 64, 3] of 16 cells: the bits of the number, white for 1, and below them the same ones inverted."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)])
    cells = np.concatenate([bits, 1 - bits]).reshape(4, 4)
    return np.repeat(np.kron(40 + 175 * cells, np.ones((16, 16)))[:, :, None], 3, axis=2).astype(np.uint8)


def number_in(picture_CHW: np.ndarray) -> int:
    """The number that `numbered` painted; the picture may have been scaled and compressed. -1 where it is none."""
    height, width = picture_CHW.shape[1:]
    rows, columns = ((np.arange(4) * side / 4 + side / 8).astype(int) for side in (height, width))
    lit = (picture_CHW.mean(axis=0)[np.ix_(rows, columns)] > 128).reshape(2, BITS)
    return int((lit[0] << np.arange(BITS)).sum()) if (lit[0] != lit[1]).all() else -1


def film(
    path: Path,
    codec: str,
    count: int,
    *,
    rate: int = 10,
    times: Sequence[int] | None = None,
    start: int = 0,
    container: dict[str, str] | None = None,
    sound: bool = False,
    **options: str,
) -> bytes:
    """The file, also written to `path`, whose suffix names the container.

    Args:
        times: of the frames, in 1000ths of a second; by default evenly spaced at `rate`.
        start: 1000ths of a second that are added to all times of the encoded packets; may be negative.
        container: options of the container.
        sound: add a second of silence that begins with the film.
        options: of the encoder.
    """
    with av.open(str(path), "w", options={**({"avoid_negative_ts": "disabled"} if start < 0 else {}), **(container or {})}) as made:
        stream: Any = made.add_stream(codec, rate=rate, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        voice: Any = made.add_stream("aac" if path.suffix in (".mp4", ".mov") else "mp2", rate=44_100, layout="mono") if sound else None
        packets = []
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.time_base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
            frame.pts = times[index] if times is not None else index
            packets += stream.encode(frame)
        packets += stream.encode()
        shift = int(Fraction(start, 1000) / packets[0].time_base)
        for packet in packets:
            packet.stream = stream
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        if voice:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.int16), format="s16", layout="mono")
            quiet.sample_rate = 44_100
            packets += [*voice.encode(_as(quiet, voice)), *voice.encode()]
            packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        for packet in packets:
            made.mux(packet)
    return path.read_bytes()


def _as(frame: av.AudioFrame, stream: Any) -> av.AudioFrame:
    return av.AudioResampler(format=stream.format, layout="mono", rate=44_100).resample(frame)[0]


def turned_mp4(clip: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 whose first track says that a stored point (x, y) is shown at (a x + c y, b x + d y); matrix is (a, b, c, d)."""
    at = clip.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    return clip[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + clip[at + 36 :]

"""Cuts clips out of whole recordings, by time.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from hba_ray.data.media.files import Kind, open_container, opened, stream_of
from hba_ray.errors import BadMedia

_CODEC = "libx264"
_EVEN = 2
"""Frames in yuv420p have even sides."""


def cut_film(source: Path, begin: float, end: float, target: Path, *, where: str) -> Path:
    """Writes the frames of a film from `begin` to before `end`, without sound, as an MP4.

    Args:
        begin, end: seconds from the first frame.

    Returns:
        `target`, absolute.

    Raises:
        BadMedia: the film cannot be decoded, or has no frame in this time.
    """
    made = io.BytesIO()
    with (
        opened(source, "video", where) as (file, _),
        open_container(file) as held,
        av.open(made, "w", format="mp4") as container,
    ):
        stream = stream_of(held, "video", where)
        out: Any = None
        first = 0
        for frame in _within(held, stream, begin, end):
            if out is None:
                out, first = container.add_stream(_CODEC, rate=stream.average_rate or 25), frame.pts
                out.width, out.height = frame.width // _EVEN * _EVEN, frame.height // _EVEN * _EVEN
                out.pix_fmt = "yuv420p"
                out.codec_context.time_base = stream.time_base
            shown = frame.reformat(width=out.width, height=out.height, format=out.pix_fmt)
            shown.pts, shown.time_base = frame.pts - first, stream.time_base
            container.mux(out.encode(shown))
        if out is None:
            raise _nothing("video", begin, end, where)
        container.mux(out.encode())
    return _written(target, made.getvalue())


def cut_sound(source: Path, begin: float, end: float, target: Path, *, where: str) -> Path:
    """Writes the sound of a recording from `begin` to before `end` as a WAV of 16 bits, at the recording's own rate.

    Args:
        begin, end: seconds from the first sample.

    Returns:
        `target`, absolute.

    Raises:
        BadMedia: the sound cannot be decoded, or has ended before.
    """
    with opened(source, "audio", where) as (file, _), open_container(file) as held:
        stream = stream_of(held, "audio", where)
        rate = stream.rate
        resampler = av.AudioResampler(format="s16p", layout=stream.layout, rate=rate)
        parts = [
            _part(frame, rate, begin, end, stream) for whole in _within(held, stream, begin, end) for frame in resampler.resample(whole)
        ]
        samples_CT = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.int16)
        if not samples_CT.size:
            raise _nothing("audio", begin, end, where)
    made = io.BytesIO()
    soundfile.write(made, samples_CT.T, rate, format="WAV", subtype="PCM_16")
    return _written(target, made.getvalue())


def _within(container: Any, stream: Any, begin: float, end: float) -> Iterator[Any]:
    """The frames that are shown or heard between two times, decoded from the nearest place before that can be decoded from."""
    start = stream.start_time or 0
    container.seek(start + int(begin / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        seconds = float((frame.pts - start) * stream.time_base)
        length = frame.samples / frame.sample_rate if isinstance(frame, av.AudioFrame) else 0.0
        if seconds >= end:
            return
        if seconds >= begin or seconds + length > begin:
            yield frame


def _part(frame: Any, rate: int, begin: float, end: float, stream: Any) -> np.ndarray:
    """The samples [C, T] of a frame that lie between two times."""
    at = round(float((frame.pts * frame.time_base) - (stream.start_time or 0) * stream.time_base) * rate)
    return frame.to_ndarray()[:, max(0, round(begin * rate) - at) : max(0, round(end * rate) - at)]


def _nothing(kind: Kind, begin: float, end: float, where: str) -> BadMedia:
    return BadMedia(
        where, f"the recording has no {kind} from {begin:g} to {end:g} s", "use the files of one release", reason=f"empty {kind}"
    )


def _written(target: Path, content: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target.absolute()

"""Damaged clips: small ones in every container that PyAV writes here, and images.

Bytes are flipped, cut out, spliced, repeated or inserted, and headers lie.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import av
import numpy as np
from hypothesis import strategies as st
from PIL import Image

VIDEOS = {
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "aac"),
    "3gp": ("mpeg4", "aac"),
    "matroska": ("libx264", "libmp3lame"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "mp2"),
    "mpegts": ("mpeg2video", "mp2"),
    "vob": ("mpeg2video", "ac3"),
    "mpeg": ("mpeg1video", "mp2"),
    "flv": ("flv", "aac"),
    "asf": ("wmv2", "wmav2"),
    "gif": ("gif", None),
}
SOUNDS = {
    "wav": "pcm_s16le",
    "aiff": "pcm_s16be",
    "flac": "flac",
    "ogg": "libopus",
    "mp3": "libmp3lame",
    "adts": "aac",
    "ac3": "ac3",
    "caf": "pcm_s16le",
    "ipod": "aac",
}
IMAGES = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
RATE, FRAMES, PICTURES_PER_SECOND, SIDE = 48_000, 8, 25, 64
LYING = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Lengths and counts that break arithmetic."""


@cache
def clips() -> dict[str, bytes]:
    """Container or image format -> a whole clip, made once a process."""
    videos = {name: _written(name, video, audio) for name, (video, audio) in VIDEOS.items()}
    sounds = {name: _written(name, None, audio) for name, audio in SOUNDS.items()}
    return videos | sounds | {f"image/{name}": _image(name) for name in IMAGES}


def _written(container_format: str, video: str | None, audio: str | None) -> bytes:
    """A moving stripe, and a tone as long."""
    file = io.BytesIO()
    file.name = "clip"  # PyAV asks it for a name
    with av.open(file, "w", format=container_format) as container:
        streams: list[Any] = []
        if video:
            stream: Any = container.add_stream(video, rate=PICTURES_PER_SECOND, options={"g": "5"})
            stream.width = stream.height = SIDE
            stream.pix_fmt = "rgb8" if video == "gif" else "yuv420p"
            streams.append(stream)
        if audio:
            streams.append(container.add_stream(audio, rate=RATE, layout="mono", bit_rate=64_000))
        for stream in streams:
            for frame in _pictures() if stream.type == "video" else _sound(stream):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return file.getvalue()


def _pictures() -> list[av.VideoFrame]:
    made = []
    for number in range(FRAMES):
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        picture[:, 5 * number : 5 * number + 9] = 200
        made.append(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    return made


def _sound(stream: Any) -> list[av.AudioFrame]:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE * FRAMES // PICTURES_PER_SECOND) / RATE)
    frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="flt", layout="mono")
    frame.sample_rate = RATE
    resampler = av.AudioResampler(stream.format or "s16", stream.layout, RATE, stream.codec_context.frame_size or None)
    return [*resampler.resample(frame), *resampler.resample(None)]


def _image(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(SIDE * SIDE * 3, dtype=np.uint32).astype(np.uint8).reshape(SIDE, SIDE, 3)).save(file, name)
    return file.getvalue()


@st.composite
def damaged_clips(draw: st.DrawFn) -> bytes:
    """A clip with one to four damages, most of them near its start, where the headers are; now and then a whole one, or no clip at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    clip = bytearray(clips()[draw(st.sampled_from(sorted(clips())))])
    for _ in range(draw(st.integers(0, 4))):
        clip = draw(st.sampled_from(DAMAGES))(draw, clip)
    return bytes(clip)


def _place(draw: st.DrawFn, clip: bytearray) -> int:
    end = len(clip)
    return draw(st.one_of(st.integers(0, min(end, 200)), st.integers(0, end), st.integers(max(0, end - 200), end)))


def _flipped(draw: st.DrawFn, clip: bytearray) -> bytearray:
    for _ in range(draw(st.integers(1, 8))):
        place = _place(draw, clip)
        if place < len(clip):
            clip[place] ^= 1 << draw(st.integers(0, 7))
    return clip


def _cut(draw: st.DrawFn, clip: bytearray) -> bytearray:
    return clip[: _place(draw, clip)]


def _hole(draw: st.DrawFn, clip: bytearray) -> bytearray:
    start, end = sorted((_place(draw, clip), _place(draw, clip)))
    return clip[:start] + clip[end:]


def _inserted(draw: st.DrawFn, clip: bytearray) -> bytearray:
    place = _place(draw, clip)
    return clip[:place] + draw(st.binary(min_size=1, max_size=40)) + clip[place:]


def _lying(draw: st.DrawFn, clip: bytearray) -> bytearray:
    """A number of a header, or what stands where one might be, replaced by one that breaks arithmetic."""
    number, width = draw(st.sampled_from(LYING)), draw(st.sampled_from((2, 4, 8)))
    place = draw(st.integers(0, min(len(clip), 1000)))
    clip[place : place + width] = (number & (1 << 8 * width) - 1).to_bytes(width, draw(st.sampled_from(("little", "big"))))
    return clip


def _spliced(draw: st.DrawFn, clip: bytearray) -> bytearray:
    """Goes on as another clip does."""
    other = clips()[draw(st.sampled_from(sorted(clips())))]
    return clip[: _place(draw, clip)] + other[draw(st.integers(0, len(other))) :]


def _repeated(draw: st.DrawFn, clip: bytearray) -> bytearray:
    start, end = sorted((_place(draw, clip), _place(draw, clip)))
    return clip[:end] + clip[start:end] * draw(st.integers(1, 3)) + clip[end:]


DAMAGES = (_flipped, _cut, _hole, _inserted, _lying, _spliced, _repeated)

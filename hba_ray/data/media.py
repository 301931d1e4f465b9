"""Decodes clips to arrays: audio to mono at 16 kHz, video to a few evenly spaced frames, images to pixels.

A clip is the bytes of a file or its path. WAV, FLAC, OGG and AIFF are read by soundfile, every other
container by PyAV on one thread, images by Pillow; no ffmpeg program is needed. Memory depends on how
much is kept, not on the length of the clip: audio is read in blocks, and video is read twice, first the
times of its packets without decoding, then from the key frame before each wanted frame up to that frame.

A clip that cannot be decoded raises a `BadMedia` with a countable reason: "missing file", "empty file",
"corrupt | truncated | empty audio", "no audio stream", the same for video, and "corrupt image".
Rotation marks of phone videos are not applied.

Shapes: T frames or samples, H and W pixels.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
from av.error import FFmpegError
from PIL import Image, ImageOps

from hba_ray.errors import BadMedia

SAMPLE_RATE = 16_000
"""Hz; what the audio tower, Whisper and OpenSMILE read."""
LONGEST_SECONDS = 24 * 3600.0
"""Seconds to ask `decode_audio` for where a whole clip is wanted."""
PATCH = 28
"""Sides of a frame are multiples of this: two by two patches of 14 pixels make one visual token."""
SHORTEST_SIDE = 2 * PATCH

_SOUNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM")
_BLOCK = 16_384  # samples read at a time
_UNSTATED = 1 << 62  # libsndfile's count where a FLAC header has none
# Playlists and text "formats" would let a clip name other files, or turn any text into frames.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mp3,aac,ac3,ogg,flac,wav,aiff,asf,flv,mpeg,mpegts,mpegvideo,amr,caf,gif"
_UNDECODABLE = (FFmpegError, soundfile.SoundFileError, OSError, ValueError, OverflowError)
_IMAGES = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class VideoInfo:
    """Size and length of a video, from its header, or counted from its packets where the header states nothing."""

    frames: int
    seconds: float
    width: int
    height: int


def decode_audio(clip: bytes | Path, seconds: float, *, where: str) -> np.ndarray:
    """The start of a clip as float32 [T] at 16 kHz, channels averaged, T <= seconds * 16000.

    Raises:
        BadMedia: no audio stream, nothing in it, damaged or cut short, or samples that are not finite.
    """
    limit = int(seconds * SAMPLE_RATE)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    kept, total = [np.zeros(0, np.float32)], 0
    with _opened(clip, "audio", where) as (file, size):
        blocks = _soundfile_blocks if _is_soundfile(file) else _container_blocks
        for block in blocks(file, size, seconds, where):
            for frame in resampler.resample(block):
                kept.append(frame.to_ndarray()[0])
                total += frame.samples
            if block is None or total >= limit:
                break
    samples_T = np.concatenate(kept)[:limit]
    if not len(samples_T):
        raise BadMedia(where, "the audio holds no samples", reason="empty audio")
    if not np.isfinite(samples_T).all():
        raise BadMedia(where, "the audio holds samples that are not finite", reason="corrupt audio")
    return samples_T


def decode_video(clip: bytes | Path, frames: int, max_pixels: int, *, where: str) -> tuple[np.ndarray, float]:
    """Evenly spaced frames as uint8 RGB [T, 3, H, W], T = frames, and their rate in frames per second.

    The frames are those of index `round(linspace(0, count - 1, frames))`, halves to even; a clip with
    fewer frames repeats some. A clip of one frame has no span and counts as one second long.

    Args:
        max_pixels: H * W at most; see `frame_size`.

    Raises:
        BadMedia: no video stream, no frame in it, damaged or cut short.
    """
    with _opened(clip, "video", where) as (file, size), _container(file) as container:
        stream = _stream(container, "video", where)
        times, keys = _packet_times(container, stream, size, where)
        wanted = [times[index] for index in np.linspace(0, len(times) - 1, frames).round().astype(int)]
        kept = []
        for frame in _frames_at(container, stream, keys, wanted, where):
            height, width = frame_size(frame.height, frame.width, max_pixels)
            kept.append(frame.reformat(width, height, format="rgb24", interpolation="BICUBIC").to_ndarray())
        span = float((wanted[-1] - wanted[0]) * stream.time_base)
    if any(frame.shape != kept[0].shape for frame in kept):
        raise BadMedia(where, "the picture size changes within the video", reason="corrupt video")
    video_THWC = np.stack(kept)
    return np.ascontiguousarray(video_THWC.transpose(0, 3, 1, 2)), (frames - 1) / span if span else float(frames)


def decode_image(clip: bytes | Path, max_pixels: int, *, where: str) -> np.ndarray:
    """An image as uint8 RGB [3, H, W], turned as its EXIF orientation says, sized by `frame_size`.

    Raises:
        BadMedia: not an image that Pillow reads, or damaged.
    """
    with _opened(clip, "image", where) as (file, _):
        try:
            image = ImageOps.exif_transpose(Image.open(file, formats=_IMAGES)).convert("RGB")
        except (SyntaxError, Image.DecompressionBombError) as cause:  # Pillow's own way to report a broken file
            raise BadMedia(where, f"the image cannot be decoded: {cause}", reason="corrupt image") from cause
        height, width = frame_size(image.height, image.width, max_pixels)
        return np.ascontiguousarray(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1))


def probe_audio(clip: bytes | Path, *, where: str) -> float:
    """Seconds of audio, from the header; counted from the packets where the header has no length."""
    with _opened(clip, "audio", where) as (file, _):
        if _is_soundfile(file):
            with soundfile.SoundFile(file) as sound:
                if sound.frames < _UNSTATED:
                    return sound.frames / sound.samplerate
                return sum(len(block) for block in sound.blocks(_BLOCK, always_2d=True)) / sound.samplerate
        with _container(file) as container:
            stream = _stream(container, "audio", where)
            stated = _seconds(container, stream)
            return stated or float(sum(packet.duration or 0 for packet in container.demux(stream)) * stream.time_base)


def probe_video(clip: bytes | Path, *, where: str) -> VideoInfo:
    """Frames, seconds and size, from the header; counted from the packets where the header has no count."""
    with _opened(clip, "video", where) as (file, size), _container(file) as container:
        stream = _stream(container, "video", where)
        count, seconds = stream.frames, _seconds(container, stream)
        if not count or not seconds:
            times, _ = _packet_times(container, stream, size, where)
            count = len(times)
            seconds = float((times[-1] - times[0]) * stream.time_base) * count / max(count - 1, 1)
        return VideoInfo(count, seconds, stream.width, stream.height)


def frame_size(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """(H, W) of a picture scaled down to `max_pixels`: multiples of 28, at least 56, as near to its shape as these allow.

    >>> frame_size(720, 1280, 147_456)
    (280, 504)
    """
    scale = min(1.0, sqrt(max_pixels / (height * width)))
    rounded = round if round(height / PATCH) * round(width / PATCH) * PATCH**2 <= max_pixels else int
    short, long = (max(SHORTEST_SIDE, rounded(side * scale / PATCH) * PATCH) for side in sorted((height, width)))
    if short * long > max_pixels:  # a strip, whose short side was raised
        long = max(SHORTEST_SIDE, max_pixels // short // PATCH * PATCH)
    return (short, long) if height <= width else (long, short)


@contextmanager
def _opened(clip: bytes | Path, kind: str, where: str) -> Iterator[tuple[BinaryIO, int]]:
    """The clip as an open file and its size in bytes; a decoder's error inside becomes a `BadMedia`."""
    if isinstance(clip, Path) and not clip.is_file():
        raise BadMedia(where, f"{clip} is not there", reason="missing file")
    size = len(clip) if isinstance(clip, bytes) else clip.stat().st_size
    if not size:
        raise BadMedia(where, f"the {kind} file is empty", reason="empty file")
    with io.BytesIO(clip) if isinstance(clip, bytes) else clip.open("rb") as file:
        try:
            yield file, size
        except _UNDECODABLE as cause:
            file_name = f" {clip.name}" if isinstance(clip, Path) else ""
            raise BadMedia(where, f"the {kind}{file_name} cannot be decoded: {_reason(cause)}", reason=f"corrupt {kind}") from cause


def _reason(cause: Exception) -> str:
    """A decoder's message, without the names of Python objects in it."""
    said = getattr(cause, "error_string", None) or getattr(cause, "strerror", None) or cause  # of soundfile, of PyAV and the system
    return str(said).strip().rstrip(".")


def _container(file: BinaryIO) -> Any:
    return av.open(file, options={"format_whitelist": _CONTAINERS})


def _stream(container: Any, kind: str, where: str) -> Any:
    stream = next(iter(getattr(container.streams, kind)), None)
    if stream is None or stream.codec_context is None:
        raise BadMedia(where, f"the file has no {kind} that can be decoded", reason=f"no {kind} stream")
    stream.codec_context.thread_count = 1
    return stream


def _is_soundfile(file: BinaryIO) -> bool:
    magic = file.read(12)
    file.seek(0)
    return magic.startswith(_SOUNDFILE_MAGIC) and magic[8:] != b"AVI "


def _soundfile_blocks(file: BinaryIO, size: int, seconds: float, where: str) -> Iterator[av.AudioFrame | None]:
    """Mono blocks of the first seconds, then None where the file ends."""
    header = file.read(8)
    stated_size = int.from_bytes(header[4:], "little") + 8
    # Some programs write 0 or all ones while they stream, and some leave out the last padding byte.
    if header[:4] == b"RIFF" and size + 1 < stated_size < 0x7FFF0000:
        raise BadMedia(where, f"the audio has {size} of {stated_size} bytes", reason="truncated audio")
    file.seek(0)
    with soundfile.SoundFile(file) as sound:
        remaining = min(sound.frames, ceil(seconds * sound.samplerate))
        while remaining > 0:
            samples_TC = sound.read(min(_BLOCK, remaining), dtype="float32", always_2d=True)
            if not len(samples_TC):
                break
            remaining -= len(samples_TC)
            frame = av.AudioFrame.from_ndarray(samples_TC.mean(axis=1, dtype=np.float32)[None], format="flt", layout="mono")
            frame.sample_rate = sound.samplerate
            yield frame
        if remaining > 0 and sound.frames < _UNSTATED:
            raise BadMedia(where, f"the audio ends {remaining} samples early", reason="truncated audio")
    yield None


def _container_blocks(file: BinaryIO, size: int, seconds: float, where: str) -> Iterator[av.AudioFrame | None]:
    """Decoded frames of the first audio stream, then None at its end."""
    with _container(file) as container:
        stream = _stream(container, "audio", where)
        _check_index(container, stream, size, "audio", where)
        decoded = 0.0
        for frame in container.decode(stream):
            decoded += frame.samples / frame.sample_rate
            yield frame
        _check_length(container, stream, decoded, "audio", where)
    yield None


def _packet_times(container: Any, stream: Any, size: int, where: str) -> tuple[list[int], list[int]]:
    """Times of all frames and of the key frames among them, ascending, in the stream's time base; nothing is decoded."""
    _check_index(container, stream, size, "video", where)
    times, keys, end = set(), set(), 0.0
    for packet in container.demux():
        time = packet.dts if packet.pts is None else packet.pts
        if not packet.size or time is None:
            continue
        end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise BadMedia(where, "the video is cut short or damaged", reason="truncated video")
        times.add(time)
        if packet.is_keyframe:
            keys.add(time)
    if not times:
        raise BadMedia(where, "the video holds no frames", reason="empty video")
    _check_length(container, stream, end, "video", where)
    return sorted(times), sorted(keys)


def _check_index(container: Any, stream: Any, size: int, kind: str, where: str) -> None:
    """MP4 lists where each frame lies in the file; one that lies behind the end was cut off."""
    if "mp4" in container.format.name:
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if end > size:
            raise BadMedia(where, f"the {kind} has {size} of {end} bytes", reason=f"truncated {kind}")


def _check_length(container: Any, stream: Any, seconds: float, kind: str, where: str) -> None:
    """Matroska and AVI state a length of their own, which the data must reach."""
    if container.format.name in ("avi", "matroska,webm"):
        stated = _seconds(container, stream)
        if seconds < 0.9 * stated - 0.1:
            raise BadMedia(where, f"the {kind} has {seconds:.1f} of {stated:.1f} seconds", reason=f"truncated {kind}")


def _seconds(container: Any, stream: Any) -> float:
    """The stated length; 0 where there is none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _frames_at(container: Any, stream: Any, keys: list[int], wanted: list[int], where: str) -> Iterator[av.VideoFrame]:
    """For each of the ascending times the first frame at or after it."""
    frames: Iterator[Any] = iter(())
    current = None
    for time in wanted:
        at = bisect_right(keys, time)
        if current is None or (at and keys[at - 1] > current.pts):
            frames, current = _seek(container, stream, keys[:at] or [wanted[0]], time)
        while current is not None and current.pts < time:
            current = next(frames, None)
        if current is None:
            raise BadMedia(where, "the video ends before its last frame", reason="truncated video")
        if current.is_corrupt:
            raise BadMedia(where, f"the frame at {current.time:.2f} s is damaged", reason="corrupt video")
        yield current


def _seek(container: Any, stream: Any, keys: list[int], time: int) -> tuple[Iterator[Any], Any]:
    """Decoding started at a key frame at or before `time`: the frames that follow, and the first one.

    A container's seek may land late, so the last two key frames are tried, then the start of the clip.
    """
    frames, first = iter(()), None
    for key in (*keys[:-3:-1], keys[0]):
        container.seek(key, stream=stream)
        frames = (frame for frame in container.decode(stream) if frame.pts is not None)
        first = next(frames, None)
        if first is not None and first.pts <= time and not first.is_corrupt:
            break
    return frames, first

"""Decodes a few evenly spaced frames of a video: those that decoding all of it from the start would give.

A video is read twice: first the times of its packets, without decoding, then the wanted frames. Where every packet has a time of
its own and the container an index, decoding starts at the key frame before each wanted frame, and what a seek gives is accepted
only if it begins at such a key frame and the frame has exactly the wanted time. In all other cases the video is decoded from its
start and its frames are counted.

Shapes: T frames, H and W pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError

from hba_ray.data.media.files import open_container, opened, stream_of
from hba_ray.data.media.lengths import End, check_bytes, check_index, check_seconds, stated_seconds
from hba_ray.data.media.sizes import frame_size
from hba_ray.errors import BadMedia

_Fit = Callable[[int, int], tuple[int, int]]
"""Height and width of a stored frame -> those of the frame that is shown."""
_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv")
"""Containers that state the time of every frame and can be sought in. In others (TS, VOB, Ogg) FFmpeg guesses some of the times."""
_ONE_TIME = ("avi", "asf")
"""Containers with one time a frame, which says when it is decoded and not when it is shown."""
_REORDERED = ("h264", "hevc", "vvc")
"""Codecs whose frames may be shown in another order than they are decoded, besides those that FFmpeg finds out."""
_VP8_SHOWN = 0x10
"""Bit of a VP8 packet's first byte; without it, the frame only serves others."""
_SMALLEST_MPEG4 = 32
"""Bytes; a smaller packet of MPEG-4 may be a mark that a frame was left out."""


@dataclass(frozen=True)
class VideoInfo:
    """Length and stored size of a video, from its header, or counted from its packets where the header states nothing.

    Attributes:
        width, height: as stored, before a rotation mark is applied.
    """

    frames: int
    seconds: float
    width: int
    height: int


@dataclass(frozen=True)
class _Packets:
    """What the packets of a video say without being decoded; times are in the stream's time base.

    Attributes:
        times: of the frames that are shown, ascending.
        keys: (time of presentation, time of decoding) of key frames, ascending.
        reliable: every frame has a time of its own, and seeking to it may be tried.
    """

    times: list[int]
    keys: list[tuple[int, int]]
    reliable: bool


@dataclass(frozen=True)
class _Shown:
    """A frame as it is shown: uint8 RGB [H, W, 3], and its time in seconds."""

    picture_HWC: np.ndarray
    seconds: float


def decode_video(clip: bytes | Path, frames: int, max_pixels: int, *, where: str, min_pixels: int = 0) -> tuple[np.ndarray, float]:
    """Evenly spaced frames as uint8 RGB [T, 3, H, W], T = frames, upright, and their rate in frames per second.

    The frames are those of index `round(linspace(0, count - 1, frames))`, halves to even; a clip with
    fewer frames repeats some. A clip of one frame has no span and counts as one second long.

    Args:
        max_pixels, min_pixels: see `frame_size`.

    Raises:
        BadMedia: no video stream, no frame in it, damaged or cut short.
    """
    fit = partial(frame_size, max_pixels=max_pixels, min_pixels=min_pixels)
    with opened(clip, "video", where) as (file, size):
        check_bytes(file, size, "video", where)
        with open_container(file) as container:
            stream = stream_of(container, "video", where)
            packets = _packets(container, stream, size, where)
            shown = _by_seeking(container, stream, packets, frames, fit) if packets.reliable else None
        shown = shown or _by_counting(file, packets, frames, fit, where)
    if any(one.picture_HWC.shape != shown[0].picture_HWC.shape for one in shown):
        raise BadMedia(where, "the picture size changes within the video", reason="corrupt video")
    video_THWC = np.stack([one.picture_HWC for one in shown])
    span = shown[-1].seconds - shown[0].seconds
    return np.ascontiguousarray(video_THWC.transpose(0, 3, 1, 2)), (frames - 1) / span if span > 0 else float(frames)


def every_frame(clip: bytes | Path, *, where: str) -> Iterator[tuple[float, av.VideoFrame]]:
    """All frames of a video in order, each with its time in seconds; `upright` makes pictures of them.

    Raises:
        BadMedia: no video stream, no frame in it, damaged or cut short.
    """
    with opened(clip, "video", where) as (file, size):
        check_bytes(file, size, "video", where)
        with open_container(file) as container:
            stream = stream_of(container, "video", where)
            packets = _packets(container, stream, size, where)
        for seconds, frame in _counted(file, packets, where):
            if frame.is_corrupt:
                raise BadMedia(where, f"the frame at {seconds:.2f} s is damaged", reason="corrupt video")
            yield seconds, frame


def probe_video(clip: bytes | Path, *, where: str) -> VideoInfo:
    """Frames, seconds and size, from the header; counted from the packets where the header has no count."""
    with opened(clip, "video", where) as (file, size), open_container(file) as container:
        stream = stream_of(container, "video", where)
        count, seconds = stream.frames, stated_seconds(container, stream)
        if not count or not seconds:
            times = _packets(container, stream, size, where).times
            count = len(times)
            seconds = float((times[-1] - times[0]) * stream.time_base) * count / max(count - 1, 1)
        return VideoInfo(count, seconds, stream.width, stream.height)


def upright(picture_HWC: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The picture of a frame, turned and mirrored as the file's display matrix says: phones store all pictures as the sensor sees them.

    Angles other than multiples of 90 degrees become the nearest one.
    """
    mark = frame.side_data.get("DISPLAYMATRIX")
    if mark is None:
        return picture_HWC
    # A stored point (x, y) is shown at (a x + c y, b x + d y); the matrix is [[a, b, 0], [c, d, 0], [0, 0, 1]].
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(mark), np.int32).reshape(3, 3).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture_HWC, a, d = picture_HWC.transpose(1, 0, 2), c, b
    return picture_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _show(frame: av.VideoFrame, seconds: float, fit: _Fit) -> _Shown:
    height, width = fit(frame.height, frame.width)
    picture_HWC = frame.reformat(width, height, format="rgb24", interpolation="BICUBIC").to_ndarray()
    return _Shown(upright(picture_HWC, frame), seconds)


def _packets(container: Any, stream: Any, size: int, where: str) -> _Packets:
    check_index(container, stream, size, "video", where)
    times: list[int] = []
    keys: list[tuple[int, int]] = []
    codec, end = stream.codec_context.name, End()
    reliable = container.format.name in _TIMED or (container.format.name in _ONE_TIME and _is_timed(container, stream))
    for packet in container.demux():
        time = packet.dts if packet.pts is None else packet.pts
        if not packet.size or time is None:
            reliable = reliable and not packet.size
            continue
        end.add(packet)
        if packet.stream_index != stream.index:
            continue
        if packet.is_corrupt:
            raise BadMedia(where, "the video is cut short or damaged", reason="truncated video")
        if packet.is_keyframe:
            keys.append((time, time if packet.dts is None else packet.dts))
        if packet.is_discard or (codec == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN):
            continue
        reliable = reliable and bool(keys) and packet.pts is not None and not (codec == "mpeg4" and packet.size < _SMALLEST_MPEG4)
        times.append(time)
    if not times:
        raise BadMedia(where, "the video holds no frames", reason="empty video")
    check_seconds(container, stream, end.seconds(stream), "video", where)
    return _Packets(sorted(times), sorted(keys), reliable and len(set(times)) == len(times))


def _is_timed(container: Any, stream: Any) -> bool:
    """Whether the times in the container are those at which frames are shown."""
    reordered = stream.codec_context.name in _REORDERED or stream.codec_context.has_b_frames
    return container.format.name not in _ONE_TIME or not reordered


def _indices(count: int, frames: int) -> list[int]:
    return np.linspace(0, count - 1, frames).round().astype(int).tolist()


def _by_seeking(container: Any, stream: Any, packets: _Packets, frames: int, fit: _Fit) -> list[_Shown] | None:
    """The wanted frames, decoded from the key frames before them; None where one of them is not met at its time."""
    shown: list[_Shown] = []
    decoded: Iterator[Any] = iter(())
    current = None
    wanted = [packets.times[index] for index in _indices(len(packets.times), frames)]
    for time in wanted:
        at = bisect_right(packets.keys, time, key=lambda key: key[0])
        if not at:
            return None
        if current is None or packets.keys[at - 1][0] > current.pts:
            decoded = _from_key(container, stream, packets.keys[:at], set(wanted), time)
            current = next(decoded, None)
        while current is not None and (current.pts is None or current.pts < time):
            current = next(decoded, None)
        if current is None or current.pts != time or current.is_corrupt:
            return None
        shown.append(_show(current, float(time * stream.time_base), fit))
    return shown


def _from_key(container: Any, stream: Any, keys: list[tuple[int, int]], wanted: set[int], time: int) -> Iterator[Any]:
    """The frames from a key frame at or before `time` on; none where the container cannot be brought there.

    Frames of H.264 that no other frame is made from are left out where they are not wanted: often half of all, and the others
    stay what they are. Other codecs do not mark them as surely.

    Some containers are sought in by the times of presentation, others by those of decoding, and a seek may land late.
    """
    for target in (*keys[-1], keys[-2:][0][1]):
        try:
            container.seek(target, stream=stream)
        except FFmpegError:  # such a container has no index
            return
        packets = container.demux(stream)
        first = next((packet for packet in packets if packet.is_keyframe and packet.size), None)
        if first is not None and first.pts is not None and first.pts <= time:
            for packet in chain([first], packets):
                if stream.codec_context.name == "h264":
                    stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
                yield from packet.decode()
            return


def _by_counting(file: BinaryIO, packets: _Packets, frames: int, fit: _Fit, where: str) -> list[_Shown]:
    """The wanted frames, met by decoding the video from its start; twice where it has not as many frames as packets."""
    count = len(packets.times)
    while True:
        wanted = _indices(count, frames)
        shown: dict[int, _Shown] = {}
        found = 0
        for found, (seconds, frame) in enumerate(_counted(file, packets, where), 1):
            if found - 1 in wanted:
                if frame.is_corrupt:
                    raise BadMedia(where, f"the frame at {seconds:.2f} s is damaged", reason="corrupt video")
                shown[found - 1] = _show(frame, seconds, fit)
        if found == count:
            return [shown[index] for index in wanted]
        count = found


def _counted(file: BinaryIO, scanned: _Packets, where: str) -> Iterator[tuple[float, Any]]:
    """All frames from the first key frame on, each with its time in seconds; from its place where the container states none.

    What a recording holds before its first key frame depends on frames that are not in it.
    """
    with open_container(file) as container:
        stream = stream_of(container, "video", where)
        rate = float(stream.guessed_rate or 1)
        timed, count = _is_timed(container, stream), 0
        packets = container.demux(stream)
        if scanned.keys:
            packets = dropwhile(lambda packet: packet.size and not packet.is_keyframe, packets)
        for count, frame in enumerate(chain.from_iterable(packet.decode() for packet in packets), 1):
            yield (count - 1) / rate if not timed or frame.time is None else frame.time, frame
    if not count:
        raise BadMedia(where, "the video holds no frame that can be decoded", reason="empty video")

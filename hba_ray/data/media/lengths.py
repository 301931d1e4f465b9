"""Finds files that were cut short, by what they state of their own length; a file that states none is taken as it is.

Sizes in bytes are exact and are looked at in every file: of the chunks of WAV, W64, AIFF and AVI, the segment of Matroska, the
pages of Ogg, the index at the end of NUT, the last partition of MXF, the packets of a transport stream, the stream behind a Xing
or VBRI header of MP3, the index of MP4. Lengths in seconds are rounded by many programs, so data may end a tenth earlier.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import inf
from typing import Any, BinaryIO

import av

from hba_ray.data.media.files import Kind
from hba_ray.errors import BadMedia

_STREAMED = 0x7FFF0000
"""Sizes of 32 bits from here on, and 0, stand where a program did not know the size when it began to write."""
_STREAMED_WIDE = 0x7FFFFFFFFFFF0000
"""The same of 64 bits."""
_NUT, _NUT_INDEX = b"nut/multimed", b"NX\xdd\x67\x2f\x23\xe6\x4e"
_LONGEST_PAGE = 27 + 255 + 255 * 255
_STATE_SECONDS = ("avi", "matroska,webm", "flv", "asf", "caf", "mxf")
"""Containers whose length is written in the file. That of others PyAV estimates from their bit rate."""


def check_bytes(file: BinaryIO, size: int, kind: Kind, where: str) -> None:
    """Makes sure that the file holds the bytes that it says it has, and returns to its start.

    Raises:
        BadMedia: it was cut short.
    """
    start = file.read(12)
    for magic, stated_end in _STATED_ENDS.items():
        if start.startswith(magic):
            end = stated_end(file, size)
            if end > size:
                raise BadMedia(where, f"the {kind} has {size} of {end} bytes", reason=f"truncated {kind}")
    if start.startswith(b"OggS") and not _ends_with_a_last_page(file, size):
        raise BadMedia(where, f"the {kind} ends before the page that is marked as its last", reason=f"truncated {kind}")
    if start.startswith(_NUT) and not _ends_with_an_index(file, size):
        raise BadMedia(where, f"the {kind} ends before the index at its end", reason=f"truncated {kind}")
    packet = _transport_packet(file)
    if packet and size % packet:
        raise BadMedia(where, f"the {kind} ends within a packet of {packet} bytes", reason=f"truncated {kind}")
    file.seek(0)


def check_index(container: Any, stream: Any, size: int, kind: Kind, where: str) -> None:
    """MP4 lists where each frame lies in the file; one that lies behind the end was cut off."""
    if "mp4" in container.format.name:
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if end > size:
            raise BadMedia(where, f"the {kind} has {size} of {end} bytes", reason=f"truncated {kind}")


class End:
    """Where the packets of a container end, in seconds.

    Some packets state no duration. Decoding tells it; without that, a packet is taken to last as long as the longest one before
    it in its stream, and where there is none, the end is not known.
    """

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}
        self._starts: dict[int, float] = {}
        self._gaps: dict[int, float] = {}
        self._decoded = 0.0

    def add(self, packet: Any) -> None:
        time = packet.dts if packet.pts is None else packet.pts
        if not packet.size or time is None:
            return
        ticks, seconds = packet.time_base.as_integer_ratio()  # gives the float of a product of Fractions, five times as fast
        index, start = packet.stream_index, time * ticks / seconds
        if index in self._starts:
            self._gaps[index] = max(self._gaps.get(index, 0.0), start - self._starts[index])
        self._starts[index] = start
        lasts = packet.duration * ticks / seconds if packet.duration else self._gaps.get(index, inf)
        known = self._ends.get(index, 0.0)
        self._ends[index] = start + lasts if known == inf else max(known, start + lasts)

    def decoded(self, packet: Any, frames: list[Any]) -> None:
        """Takes the frames that came out of a packet of sound without a duration, or out of the decoder at the end."""
        for frame in frames:
            start = self._starts.get(packet.stream_index, 0.0) if frame.time is None else frame.time
            self._decoded = max(self._decoded, start + frame.samples / frame.sample_rate)
        if self._decoded:
            known = 0.0 if packet.size else self._ends.get(packet.stream_index, 0.0)
            self._ends[packet.stream_index] = max(self._decoded, 0.0 if known == inf else known)

    def seconds(self, stream: Any) -> float:
        """The latest end of any stream; infinite where that of the given one is not known."""
        return max((end for index, end in self._ends.items() if end < inf or index == stream.index), default=0.0)


def check_seconds(container: Any, stream: Any, end: float, kind: Kind, where: str) -> None:
    """Compares the end of the last packet with the length that the container states.

    Args:
        end: seconds from the start of the container to the end of the last packet of any stream, see `End`.
    """
    if container.format.name in _STATE_SECONDS and not _counts_bytes(container, stream):
        stated = stated_seconds(container, stream)
        if end < 0.9 * stated - 0.1:
            raise BadMedia(where, f"the {kind} has {end:.1f} of {stated:.1f} seconds", reason=f"truncated {kind}")


def _counts_bytes(container: Any, stream: Any) -> bool:
    """Whether an AVI states the bytes of a sound where its samples are meant, as FFmpeg writes it for stereo ADPCM (seen)."""
    return container.format.name == "avi" and stream.codec_context.name.startswith("adpcm_")


def stated_seconds(container: Any, stream: Any) -> float:
    """The stated length of a stream, or of its container; 0 where there is none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _end_of_chunks(file: BinaryIO, size: int) -> int:
    """Where the data of a RIFF or AIFF file end. Many programs get the size of the file as a whole wrong; it counts only without data."""
    file.seek(0)
    form = file.read(12)
    order = "big" if form[:4] in (b"FORM", b"RIFX") else "little"
    whole, wide, at = int.from_bytes(form[4:8], order) + 8, 0, 12
    while at + 8 <= size:
        file.seek(at)
        header = file.read(36)
        name, stated = header[:4], int.from_bytes(header[4:8], order)
        if name == b"ds64":
            wide = int.from_bytes(header[16:24], "little")
        if name in (b"data", b"SSND") or header[8:12] == b"movi":
            if wide and stated == 0xFFFFFFFF:
                return at + 8 + wide
            return 0 if not stated or stated >= _STREAMED else at + 8 + stated
        at += 8 + stated + stated % 2
    return whole if whole < _STREAMED else 0


def _end_of_wide_chunks(file: BinaryIO, size: int) -> int:
    """Where the data of a W64 file end: as WAV, with names of 16 bytes, and sizes of 64 bits that count their own header."""
    at = 40
    while at + 24 <= size:
        file.seek(at)
        header = file.read(24)
        stated = int.from_bytes(header[16:], "little")
        if header.startswith(b"data"):
            return at + stated if stated < _STREAMED_WIDE else 0
        at += max(24, stated + -stated % 8)
    file.seek(16)
    return int.from_bytes(file.read(8), "little")


def _end_of_partitions(file: BinaryIO, size: int) -> int:
    """Where the last partition of an MXF file has begun, by the first one; 0 where that was not known yet (SMPTE 377)."""
    file.seek(16)
    pack = file.read(1 + 8 + 32)
    start = 1 + (pack[0] & 0x7F if pack[:1] > b"\x80" else 0)
    footer = int.from_bytes(pack[start + 24 : start + 32])
    return footer + 16 if footer else 0


def _end_of_segment(file: BinaryIO, size: int) -> int:
    """Where the segment of a Matroska file ends; 0 where it was written live, with a size that was not known."""
    file.seek(4)
    head, _ = _vint(file)
    file.seek(head, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length, unknown = _vint(file)
    return 0 if length == unknown else file.tell() + length


def _vint(file: BinaryIO) -> tuple[int, int]:
    """A number of EBML, whose leading zeros say how many bytes it has, and the value that stands for "unknown"."""
    first = file.read(1)
    width = 9 - first[0].bit_length() if first else 1
    unknown = (1 << 7 * min(width, 8)) - 1
    return int.from_bytes(first + file.read(min(width, 8) - 1)) & unknown, unknown


def _end_of_mp3(file: BinaryIO, size: int) -> int:
    """Where the frames of an MP3 end by its Xing, Info or VBRI header; 0 without one. One frame may lack, since counts differ by it."""
    file.seek(0)
    tag = file.read(10)
    start = 10 + sum(byte << 7 * (3 - place) for place, byte in enumerate(tag[6:10])) if tag[:3] == b"ID3" else 0
    file.seek(start)
    frame = file.read(80)
    vbri, xing = frame.find(b"VBRI"), max(frame.find(name) for name in (b"Xing", b"Info"))
    if xing >= 0 and len(frame) >= xing + 16 and frame[xing + 7] & 3 == 3:
        frames, length = struct.unpack(">II", frame[xing + 8 : xing + 16])
    elif vbri >= 0 and len(frame) >= vbri + 18:
        length, frames = struct.unpack(">II", frame[vbri + 10 : vbri + 18])
    else:
        return 0
    return start + length - length // max(frames, 1)


_STATED_ENDS: dict[bytes, Callable[[BinaryIO, int], int]] = {
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"FORM"), _end_of_chunks),
    b"riff\x2e\x91\xcf\x11": _end_of_wide_chunks,
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02": _end_of_partitions,
    **dict.fromkeys((b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2"), _end_of_mp3),
    b"\x1aE\xdf\xa3": _end_of_segment,
}
"""First bytes of a file -> a function to where it should end, 0 where it does not say."""


def _ends_with_a_last_page(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is whole and marked as the last of its stream (RFC 3533)."""
    file.seek(max(0, size - 2 * _LONGEST_PAGE))
    tail = file.read()
    at = tail.rfind(b"OggS\0")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _ends_with_an_index(file: BinaryIO, size: int) -> bool:
    """Whether a NUT file ends with its index, whose length stands before its last 4 bytes. All writers of FFmpeg put one there."""
    file.seek(max(0, size - 12))
    length = int.from_bytes(file.read(8))
    if not 12 <= length <= size:
        return False
    file.seek(size - length)
    return file.read(8) == _NUT_INDEX


def _transport_packet(file: BinaryIO) -> int:
    """Bytes of a packet of an MPEG transport stream, as broadcast, on discs or with error correction; 0 for other files."""
    file.seek(0)
    start = file.read(5 * 204)
    for length, first in ((188, 0), (192, 4), (204, 0)):
        if len(start) >= 4 * length and all(start[place] == 0x47 for place in range(first, 4 * length, length)):
            return length
    return 0

"""Opens clips: the file, the container in it, and the stream that is meant. Errors of decoders become `BadMedia` here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import soundfile
from av.error import ArgumentError, FFmpegError
from av.stream import Disposition

from hba_ray.errors import BadMedia

Kind = Literal["audio", "video", "image"]

# Playlists and text "formats" would let a clip name other files, or turn any text into frames.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mp3,aac,ac3,ogg,flac,wav,aiff,asf,flv,mpeg,mpegts,mpegvideo,amr,caf,gif,w64,nut,mxf"
)
_CONTAINERS_READ = (
    "MP4, MOV, Matroska, WebM, AVI, WAV, W64, AIFF, CAF, FLAC, Ogg, MP3, AAC, AC-3, AMR, ASF (WMA, WMV), FLV, MPEG, MPEG-TS, MXF, NUT, GIF"
)
_UNDECODABLE = (FFmpegError, soundfile.SoundFileError, OSError, ValueError, OverflowError)
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails


@contextmanager
def opened(clip: bytes | Path, kind: Kind, where: str) -> Iterator[tuple[BinaryIO, int]]:
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


def open_container(file: BinaryIO) -> Any:
    """A PyAV container that reads the file from its start; to be used in a `with` block."""
    file.seek(0)
    try:
        return av.open(file, options={"format_whitelist": _CONTAINERS})
    except ArgumentError as cause:  # what FFmpeg says of a format that is not in the list
        raise ValueError(f"its container is none of those that are read, or its header is damaged; read are {_CONTAINERS_READ}") from cause


def stream_of(container: Any, kind: Kind, where: str) -> Any:
    """The stream of this kind that players choose, decoded on one thread; never the picture of a cover.

    Raises:
        BadMedia: there is none that can be decoded.
    """
    streams = [one for one in getattr(container.streams, kind) if one.codec_context is not None and not one.disposition & _COVERS]
    if not streams:
        raise BadMedia(where, f"the file has no {kind} that can be decoded", reason=f"no {kind} stream")
    best = container.streams.best(kind)
    stream = best if best in streams else max(streams, key=lambda one: bool(one.disposition & Disposition.default))
    stream.codec_context.thread_count = 1
    return stream


def _reason(cause: Exception) -> str:
    """A decoder's message, without the names of Python objects in it."""
    said = getattr(cause, "error_string", None) or getattr(cause, "strerror", None) or cause  # of soundfile, of PyAV and the system
    return str(said).strip().rstrip(".")

"""Decodes the sound of a clip to mono at 16 kHz, by the same rule whatever the container, codec, depth and channels."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile

from hba_ray.data.media.files import open_container, opened, stream_of
from hba_ray.data.media.lengths import End, check_bytes, check_index, check_seconds, stated_seconds
from hba_ray.errors import BadMedia

SAMPLE_RATE = 16_000
"""Hz; what the audio tower, Whisper and OpenSMILE read."""
LONGEST_SECONDS = 24 * 3600.0
"""Seconds to ask `decode_audio` for where a whole clip is wanted."""
SHORTEST_AUDIO = 400
"""Samples of one window of the released model's feature extractor. Of fewer it makes no token for the audio tower, or one that
mirrors the sound into a window."""
LOUDEST = 8.0
"""Largest sample of a sound of floats, where 1 is full scale. A hot mix or a lossy codec stays below it; more was not scaled to 1."""

_SOUNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM")
_LEFT_TO_PYAV = ("OPUS", "MPEG_LAYER_III", "MPEG_LAYER_II", "MPEG_LAYER_I")
"""Codecs that libsndfile 1.2.2 reads wrongly: Opus in blocks has other samples at their edges, MP3 in WAV seems to end early."""
_MOST_PLANES = 7  # PyAV 18.1 finds a ninth plane in frames of eight, and ends the process when it reads it
_BLOCK = 16_384  # samples read at a time
_UNSTATED = 1 << 62  # libsndfile's count where a FLAC header has none

Block = tuple[np.ndarray, int]
"""Mono float32 [T] and its samples per second."""


def decode_audio(clip: bytes | Path, seconds: float, *, where: str, shortest: int = 1) -> np.ndarray:
    """The start of a clip as float32 [T] at 16 kHz, T <= seconds * 16000, where 1 is full scale.

    All channels are averaged with equal weights, whatever their places: mono, stereo or 7.1. Sounds of floats keep values
    beyond 1, up to `LOUDEST`.

    Args:
        shortest: samples that are needed at least.

    Raises:
        BadMedia: no audio stream, nothing in it, too little, damaged or cut short, samples that are not finite or not scaled to 1.
    """
    limit = int(seconds * SAMPLE_RATE)
    kept, total = [np.zeros(0, np.float32)], 0
    with opened(clip, "audio", where) as (file, size):
        check_bytes(file, size, "audio", where)
        for samples_T in _resampled(_blocks(file, size, seconds, where)):
            kept.append(samples_T)
            total += len(samples_T)
            if total >= limit:
                break
    samples_T = np.concatenate(kept)[:limit]
    if not len(samples_T):
        raise BadMedia(where, "the audio holds no samples", reason="empty audio")
    if not np.isfinite(samples_T).all():
        raise BadMedia(where, "the audio holds samples that are not finite", reason="corrupt audio")
    if (peak := float(np.abs(samples_T).max())) > LOUDEST:
        what = f"the audio has samples up to {peak:.3g}, and full scale is 1"
        raise BadMedia(where, what, "save it as integers, or scale it", reason="audio out of range")
    if len(samples_T) < shortest:
        lengths = (f"{samples / SAMPLE_RATE * 1000:.1f}" for samples in (len(samples_T), shortest))
        raise BadMedia(where, "the audio has {} ms, and {} are needed".format(*lengths), reason="audio too short")
    return samples_T


def probe_audio(clip: bytes | Path, *, where: str) -> float:
    """Seconds of audio, from the header; counted from the packets where the header has no length."""
    with opened(clip, "audio", where) as (file, _):
        if sound := _sound(file):
            with sound:
                if sound.frames < _UNSTATED:
                    return sound.frames / sound.samplerate
                return sum(len(block) for block in sound.blocks(_BLOCK, always_2d=True)) / sound.samplerate
        with open_container(file) as container:
            stream = stream_of(container, "audio", where)
            stated = stated_seconds(container, stream)
            return stated or float(sum(packet.duration or 0 for packet in container.demux(stream)) * stream.time_base)


def _resampled(blocks: Iterator[Block]) -> Iterator[np.ndarray]:
    """The blocks as float32 [T] at 16 kHz. The rate may change between them, as in a chain of Ogg streams."""
    resampler, rate = None, 0
    for samples_T, own_rate in blocks:
        if resampler is None or rate != own_rate:
            yield from _taken(resampler, None)
            resampler, rate = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE), own_rate
        frame = av.AudioFrame.from_ndarray(samples_T[None], format="flt", layout="mono")
        frame.sample_rate = own_rate
        yield from _taken(resampler, frame)
    yield from _taken(resampler, None)


def _taken(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    """What the resampler gives for a frame, or at the end for None."""
    for made in resampler.resample(frame) if resampler else ():
        yield made.to_ndarray()[0]


def _blocks(file: BinaryIO, size: int, seconds: float, where: str) -> Iterator[Block]:
    sound = _sound(file)
    return _container_blocks(file, size, where) if sound is None else _soundfile_blocks(sound, seconds, where)


def _sound(file: BinaryIO) -> soundfile.SoundFile | None:
    """The file as soundfile reads it; None where it does not know the container, or the codec in it."""
    magic = file.read(12)
    file.seek(0)
    if not magic.startswith(_SOUNDFILE_MAGIC) or magic[8:] == b"AVI ":
        return None
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        return None
    return None if sound.subtype in _LEFT_TO_PYAV else sound


def _soundfile_blocks(sound: soundfile.SoundFile, seconds: float, where: str) -> Iterator[Block]:
    """Blocks of the first seconds."""
    with sound:
        remaining = min(sound.frames, ceil(seconds * sound.samplerate))
        while remaining > 0:
            samples_TC = sound.read(min(_BLOCK, remaining), dtype="float32", always_2d=True)
            if not len(samples_TC):
                break
            remaining -= len(samples_TC)
            yield samples_TC.mean(axis=1, dtype=np.float32), sound.samplerate
        if remaining > 0 and sound.frames < _UNSTATED:
            raise BadMedia(where, f"the audio ends {remaining} samples early", reason="truncated audio")


def _container_blocks(file: BinaryIO, size: int, where: str) -> Iterator[Block]:
    """Blocks of the audio stream; at its end, lengths are compared."""
    end = End()
    with open_container(file) as container:
        stream = stream_of(container, "audio", where)
        check_index(container, stream, size, "audio", where)
        # AAC in WAV and W64 has no lengths of its frames, so that only the decoder can tell them apart.
        unframed, waiting = container.format.name in ("wav", "w64") and stream.codec_context.name == "aac", []
        for packet in container.demux():
            end.add(packet)
            if packet.stream_index != stream.index:
                continue
            if packet.is_corrupt:
                raise BadMedia(where, "the audio is cut short or damaged", reason="truncated audio")
            if unframed:
                waiting.append(bytes(packet))
                packet = av.Packet(b"".join(waiting)) if not packet.size else None
            frames = stream.codec_context.decode(packet) if packet else []
            if packet and not packet.duration:
                end.decoded(packet, frames)
            for frame in frames:
                yield _mono(frame), frame.sample_rate
        check_seconds(container, stream, end.seconds(stream), "audio", where)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """The average of a frame's channels, float32 [T]. FFmpeg's own mixing would add them with weights that depend on their places."""
    if frame.format.name in ("s64", "s64p"):  # NumPy arrays are not made of these
        (frame,) = av.AudioResampler(format="dbl", layout=frame.layout, rate=frame.sample_rate).resample(frame)
    if frame.format.is_planar and frame.layout.nb_channels > _MOST_PLANES:
        repacked = av.AudioResampler(format=frame.format.packed, layout=frame.layout, rate=frame.sample_rate)
        (frame,) = repacked.resample(frame)
    values = frame.to_ndarray()
    samples_CT = values if frame.format.is_planar else values.reshape(frame.samples, -1).T
    if samples_CT.dtype.kind == "f":
        return samples_CT.mean(axis=0, dtype=np.float32)
    full_scale = 2.0 ** (8 * samples_CT.dtype.itemsize - 1)
    middle = full_scale if samples_CT.dtype.kind == "u" else 0.0
    return ((samples_CT.mean(axis=0, dtype=np.float64) - middle) / full_scale).astype(np.float32)

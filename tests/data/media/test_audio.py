"""Sound is the same whatever holds it: container, codec, depth and channels. What was cut is refused, what is whole is not."""

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.data.media import decode_audio, probe_audio
from hba_ray.errors import BadMedia

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 6: "5.1", 8: "7.1"}
LOUDNESS = np.array([0.5, 0.1, 0.3, 0.2, 0.15, 0.4, 0.05, 0.25])
EXACT = [(".mkv", f"pcm_{depth}le") for depth in ("s16", "s24", "s32", "f32", "f64")] + [
    (".wav", "pcm_u8"), (".wav", "pcm_s24le"), (".wav", "pcm_f32le"), (".mov", "pcm_s16be"), (".avi", "pcm_u8"), (".aiff", "pcm_s16be"),
    (".caf", "pcm_s16be"), (".m4a", "alac"), (".flac", "flac"), (".wav", "pcm_s64le"), (".avi", "pcm_s64le"), (".mkv", "alac"),
    (".w64", "pcm_s16le"), (".w64", "pcm_f32le"), (".nut", "pcm_s16le"), (".ogg", "flac"),
]  # fmt: skip
LOSSY = [
    *((suffix, "aac") for suffix in (".mp4", ".mov", ".mkv", ".ts", ".flv")),
    (".webm", "libopus"), (".ogg", "libopus"), (".avi", "mp2"), (".vob", "ac3"), (".wmv", "wmav2"), (".mp4", "ac3"), (".wav", "ac3"),
]  # fmt: skip


def tones(channels: int, rate: int) -> np.ndarray:
    """A second of a tone of 300 Hz, [C, T], of another loudness in each channel."""
    return (LOUDNESS[:channels, None] * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)).astype(np.float32)


def recorded(path: Path, codec: str, samples_CT: np.ndarray, rate: int) -> bytes:
    layout = LAYOUTS[len(samples_CT)]
    with av.open(str(path), "w") as made:
        stream: Any = made.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(samples_CT.T.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        for converted in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            made.mux(stream.encode(converted))
        made.mux([packet for packet in stream.encode() if packet.size or path.suffix == ".flac"])  # Ogg has no place for FLAC's checksum
    return path.read_bytes()


def loudness(samples_T: np.ndarray, rate: int = 16_000) -> float:
    """Of the tone, away from the ends."""
    middle = samples_T[len(samples_T) // 4 : len(samples_T) // 4 * 3]
    return float(2 * np.abs((middle * np.exp(-2j * np.pi * 300 * np.arange(len(middle)) / rate)).mean()))


@pytest.mark.parametrize(("suffix", "codec"), EXACT)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_lossless_sound_of_any_depth_and_layout_is_the_average_of_its_channels(tmp_path, suffix, codec, channels):
    samples_CT = tones(channels, 16_000)
    got = decode_audio(recorded(tmp_path / f"made{suffix}", codec, samples_CT, 16_000), 10.0, where="row 1")
    assert got.shape == (16_000,)
    np.testing.assert_allclose(got, samples_CT.mean(axis=0), atol=0.008 if "u8" in codec else 5e-5)


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_rare_layouts_are_averaged_too(tmp_path, channels):
    samples_CT = tones(channels, 16_000)
    got = decode_audio(recorded(tmp_path / "made.mkv", "pcm_f32le", samples_CT, 16_000), 10.0, where="row 1")
    np.testing.assert_allclose(got, samples_CT.mean(axis=0), atol=1e-6)


def test_eight_channels_of_opus_are_averaged(tmp_path):
    samples_CT = tones(8, 48_000)
    got = decode_audio(recorded(tmp_path / "made.webm", "libopus", samples_CT, 48_000), 10.0, where="row 1")
    assert loudness(got) == pytest.approx(loudness(samples_CT.mean(axis=0), 48_000), rel=0.1)


@pytest.mark.parametrize(("suffix", "codec"), LOSSY)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_sound_is_as_loud_as_the_average_of_its_channels(tmp_path, suffix, codec, channels):
    rate = 44_100 if suffix in (".flv", ".wmv") else 48_000
    samples_CT = tones(channels, rate)
    got = decode_audio(recorded(tmp_path / f"made{suffix}", codec, samples_CT, rate), 10.0, where="row 1")
    assert loudness(got) == pytest.approx(loudness(samples_CT.mean(axis=0), rate), rel=0.03)
    assert abs(len(got) - 16_000) < 1200


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "adpcm_ms"), (".avi", "adpcm_ima_wav"), (".w64", "aac"), (".w64", "mp2")])
@pytest.mark.parametrize("channels", [1, 2])
def test_old_codecs_whose_containers_state_no_length_that_fits_are_read(tmp_path, suffix, codec, channels):
    samples_CT = tones(channels, 48_000)
    got = decode_audio(recorded(tmp_path / f"made{suffix}", codec, samples_CT, 48_000), 10.0, where="row 1")
    assert loudness(got) == pytest.approx(loudness(samples_CT.mean(axis=0), 48_000), rel=0.05)
    assert abs(len(got) - 16_000) < 1200


def test_an_mp3_has_one_loudness_in_mono_and_stereo(tmp_path):
    """LAME itself scales by 0.95."""
    mono, stereo = (recorded(tmp_path / f"{n}.mp3", "libmp3lame", np.tile(tones(1, 48_000), (n, 1)), 48_000) for n in (1, 2))
    heard = [loudness(decode_audio(clip, 10.0, where="row 1")) for clip in (mono, stereo)]
    assert heard[1] == pytest.approx(heard[0], rel=0.01) == pytest.approx(0.475, rel=0.01)


def test_blocks_of_opus_have_no_seams(tmp_path):
    clip = recorded(tmp_path / "made.ogg", "libopus", tones(1, 48_000), 48_000)
    got = decode_audio(clip, 10.0, where="row 1")
    with av.open(io.BytesIO(clip)) as container:
        whole = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    np.testing.assert_allclose(got[50:-50], whole[::3][50 : len(got) - 50], atol=0.01)


@pytest.mark.parametrize("codec", ["libmp3lame", "ac3", "wmav2", "g726", "adpcm_ms", "aac"])
def test_wav_may_hold_codecs_that_soundfile_does_not_know(tmp_path, codec):
    rate = 8_000 if codec == "g726" else 44_100
    got = decode_audio(recorded(tmp_path / "made.wav", codec, tones(1, rate), rate), 10.0, where="row 1")
    assert abs(int(np.abs(np.fft.rfft(got)).argmax()) * 16_000 / len(got) - 300) < 3


@given(kept=st.integers(0, 20), header=st.sampled_from(["right", "whole file", "44 more", "0", "streamed"]))
@settings(max_examples=40, deadline=None)
def test_the_data_of_a_wav_are_judged_and_not_the_size_of_its_file(kept, header):
    file = io.BytesIO()
    soundfile.write(file, np.full(1600, 0.1), 16_000, format="WAV")
    clip = bytearray(file.getvalue())
    size = {"right": len(clip) - 8, "whole file": len(clip), "44 more": len(clip) + 36, "0": 0, "streamed": 0xFFFFFFFF}[header]
    clip[4:8] = struct.pack("<I", size)
    assert len(decode_audio(bytes(clip), 10.0, where="row 1")) == 1600
    with pytest.raises(BadMedia) as refused:
        decode_audio(bytes(clip[: len(clip) - 2 - kept * 100]), 10.0, where="row 1")
    assert refused.value.reason == "truncated audio"


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp3", "libmp3lame"), (".ogg", "libopus"), (".ts", "mp2"), (".mkv", "aac"), (".flv", "aac"), (".caf", "pcm_s16be"),
        (".aiff", "pcm_s16be"), (".wav", "ac3"), (".w64", "pcm_s16le"), (".w64", "ac3"), (".nut", "aac"), (".nut", "pcm_s16le"),
        (".mkv", "wavpack"), (".mkv", "alac"),
    ],
)  # fmt: skip
def test_sound_that_was_cut_is_refused_wherever_a_length_is_stated(tmp_path, suffix, codec):
    clip = recorded(
        tmp_path / f"made{suffix}", codec, tones(2, 44_100 if suffix == ".flv" else 48_000), 44_100 if suffix == ".flv" else 48_000
    )
    assert len(decode_audio(clip, 10.0, where="row 1")) > 15_000
    for share in (0.3, 0.5, 0.8):
        with pytest.raises(BadMedia) as refused:
            decode_audio(clip[: int(len(clip) * share) | 1], 10.0, where="row 1")
        assert refused.value.reason == "truncated audio"


@pytest.mark.parametrize("codec", ["wavpack", "alac"])
@pytest.mark.parametrize(("channels", "rate"), [(1, 8_000), (1, 16_000), (2, 44_100), (6, 48_000)])
def test_packets_without_a_duration_are_measured_by_decoding(tmp_path, codec, channels, rate):
    clip = recorded(tmp_path / "made.mkv", codec, np.tile(tones(channels, rate), 2), rate)
    assert len(decode_audio(clip, 10.0, where="row 1")) == pytest.approx(32_000, abs=2)
    segment = clip.index(b"\x18\x53\x80\x67") + 4
    # As written live, with a size that is not known: only the stated seconds tell that it was cut.
    live = clip[:segment] + b"\x01" + b"\xff" * 7 + clip[segment + 8 :]
    assert len(decode_audio(live, 10.0, where="row 1")) == pytest.approx(32_000, abs=2)
    for part in (clip[: len(clip) // 2], live[: len(clip) // 2]):
        with pytest.raises(BadMedia) as refused:
            decode_audio(part, 10.0, where="row 1")
        assert refused.value.reason in ("truncated audio", "empty audio")


def test_a_container_that_is_not_read_is_said_to_be_so(tmp_path):
    clip = recorded(tmp_path / "made.swf", "libmp3lame", tones(1, 44_100), 44_100)
    with pytest.raises(BadMedia, match=r"container is none of those that are read.*; read are MP4, .*MXF"):
        decode_audio(clip, 10.0, where="row 1")


def test_short_sound_beside_a_longer_video_is_whole(tmp_path):
    path = tmp_path / "made.mkv"
    with av.open(str(path), "w") as made:
        film: Any = made.add_stream("mpeg4", rate=10)
        film.width = film.height = 32
        voice: Any = made.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 16_000), 3000, np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        packets = voice.encode(frame)
        for _ in range(50):
            packets += film.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))
        for packet in [*packets, *film.encode()]:
            made.mux(packet)
    assert len(decode_audio(path, 10.0, where="row 1")) == 16_000


@pytest.mark.parametrize(("peak", "good"), [(1.4, True), (7.9, True), (8.1, False), (32_768.0, False)])
def test_floats_far_beyond_full_scale_are_refused(peak, good):
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, peak, -peak] * 200, np.float32), 16_000, "FLOAT", format="WAV")
    if good:
        assert decode_audio(file.getvalue(), 1.0, where="row 1").max() == np.float32(peak)
        return
    with pytest.raises(BadMedia, match="full scale is 1") as refused:
        decode_audio(file.getvalue(), 1.0, where="row 1")
    assert refused.value.reason == "audio out of range"


def test_the_length_of_opus_is_read_from_its_last_page(tmp_path):
    assert probe_audio(recorded(tmp_path / "made.ogg", "libopus", tones(1, 48_000), 48_000), where="row 1") == pytest.approx(1.0, abs=0.03)

"""Clips are decoded whole or refused: exact frames and samples, and `BadMedia` for everything broken."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hba_ray.data.media import decode_audio, decode_image, decode_video, frame_size, probe_audio, probe_video
from hba_ray.errors import BadMedia

HOSTILE = settings(max_examples=100, deadline=None)


def wav(seconds: float = 1.0, rate: int = 16_000, channels: int = 1, format: str = "WAV", subtype: str | None = None) -> bytes:
    """A 440 Hz tone."""
    time = np.arange(int(seconds * rate)) / rate
    file = io.BytesIO()
    soundfile.write(file, np.tile(0.5 * np.sin(2 * np.pi * 440 * time)[:, None], channels).astype(np.float32), rate, subtype, format=format)
    return file.getvalue()


def video(
    folder: Path, count: int = 20, codec: str = "libx264", suffix: str = ".mp4", rate: int = 10, side: tuple[int, int] = (64, 64)
) -> bytes:
    """A clip whose frame k has the brightness 40 + 8 * (k % 20); MP4s start with their index, so that a cut keeps it."""
    path = folder / f"made{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"} if suffix == ".mp4" else {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"g": "7"})
        stream.height, stream.width, stream.pix_fmt = *side, "yuv420p"
        for index in range(count):
            picture = np.full((*side, 3), 40 + 8 * (index % 20), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def spoken_mp4(folder: Path, seconds: float = 1.0, suffix: str = ".m4a") -> bytes:
    """A 440 Hz tone as AAC."""
    path = folder / f"spoken{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(44_100 * seconds)) / 44_100).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def brightness(frames_TCHW: np.ndarray) -> np.ndarray:
    return frames_TCHW.mean(axis=(1, 2, 3))


def pitch(samples_T: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples_T)).argmax() * 16_000 / len(samples_T))


@pytest.mark.parametrize(("rate", "channels", "format"), [(16_000, 1, "WAV"), (8_000, 2, "WAV"), (44_100, 2, "FLAC"), (48_000, 1, "OGG")])
def test_audio_of_any_rate_and_channels_becomes_mono_at_16_khz(rate, channels, format):
    samples = decode_audio(wav(1.0, rate, channels, format), 10.0, where="clip")
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 16_000) <= 2
    assert abs(pitch(samples) - 440) < 2
    assert abs(np.abs(samples[2000:-2000]).max() - 0.5) < 0.03


def test_audio_at_16_khz_passes_unchanged():
    file = io.BytesIO()
    expected = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    soundfile.write(file, expected, 16_000, "FLOAT", format="WAV")
    np.testing.assert_array_equal(decode_audio(file.getvalue(), 1.0, where="clip"), expected)


def test_channels_are_averaged():
    file = io.BytesIO()
    soundfile.write(file, np.tile(np.array([0.5, 0.1], np.float32), (800, 1)), 16_000, "FLOAT", format="WAV")
    np.testing.assert_allclose(decode_audio(file.getvalue(), 1.0, where="clip"), 0.3, atol=1e-6)


def test_resampling_keeps_time_in_place():
    """A click at half a second stays there, whatever the rate."""
    click = np.zeros(44_100, np.float32)
    click[22_050] = 1
    file = io.BytesIO()
    soundfile.write(file, click, 44_100, "FLOAT", format="WAV")
    assert abs(int(np.abs(decode_audio(file.getvalue(), 1.0, where="clip")).argmax()) - 8000) <= 1


def test_audio_is_cut_at_the_wanted_seconds_and_not_padded():
    assert len(decode_audio(wav(2.0), 0.5, where="clip")) == 8000
    assert len(decode_audio(wav(0.25), 10.0, where="clip")) == 4000


def test_a_ten_minute_file_costs_no_memory(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16_000, 1) as sound:
        for _ in range(600):
            sound.write(np.full(16_000, 0.1, np.float32))
    tracemalloc.start()
    assert len(decode_audio(path, 1.0, where="clip")) == 16_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert probe_audio(path, where="clip") == 600


def test_the_sound_of_an_mp4_is_read(tmp_path):
    clip = spoken_mp4(tmp_path)
    samples = decode_audio(clip, 10.0, where="clip")
    assert abs(len(samples) - 16_000) < 800 and abs(pitch(samples) - 440) < 3
    assert abs(probe_audio(clip, where="clip") - 1.0) < 0.05
    assert len(decode_audio(clip, 0.5, where="clip")) == 8000


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", ".mp4"), ("mpeg4", ".mp4"), ("mpeg4", ".avi"), ("libvpx", ".webm"), ("libx264", ".mkv")]
)
@pytest.mark.parametrize("frames", [2, 4, 8, 20])
def test_video_frames_are_those_of_the_evenly_spaced_indices(tmp_path, codec, suffix, frames):
    kept, rate = decode_video(video(tmp_path, 20, codec, suffix), frames, 64 * 64, where="clip")
    assert kept.dtype == np.uint8 and kept.shape == (frames, 3, 56, 56)
    indices = np.linspace(0, 19, frames).round()
    np.testing.assert_allclose(brightness(kept), 40 + 8 * indices, atol=3.9)
    assert rate == pytest.approx((frames - 1) / 1.9, rel=0.01)


def test_frames_far_apart_are_found_by_seeking(tmp_path):
    """300 frames with a key frame every 7: each kept frame is the asked one."""
    clip = video(tmp_path, 300, rate=30)
    kept, rate = decode_video(clip, 4, 56 * 56, where="clip")
    np.testing.assert_allclose(brightness(kept), 40 + 8 * (np.linspace(0, 299, 4).round() % 20), atol=3.9)
    assert rate == pytest.approx(3 / (299 / 30), rel=0.01)


def test_a_short_clip_repeats_frames(tmp_path):
    kept, _ = decode_video(video(tmp_path, 3), 8, 56 * 56, where="clip")
    np.testing.assert_allclose(brightness(kept), 40 + 8 * np.linspace(0, 2, 8).round(), atol=3.9)


def test_a_clip_of_one_frame_works(tmp_path):
    kept, rate = decode_video(video(tmp_path, 1), 4, 56 * 56, where="clip")
    np.testing.assert_allclose(brightness(kept), 40, atol=3.9)
    assert rate == 4.0


def test_video_from_a_path_is_the_same_as_from_bytes(tmp_path):
    clip = video(tmp_path)
    from_path, rate = decode_video(tmp_path / "made.mp4", 4, 56 * 56, where="clip")
    from_bytes, same_rate = decode_video(clip, 4, 56 * 56, where="clip")
    np.testing.assert_array_equal(from_path, from_bytes)
    assert rate == same_rate


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("libvpx", ".webm"), ("mpeg4", ".avi")])
def test_probe_video_reads_length_and_size(tmp_path, codec, suffix):
    info = probe_video(video(tmp_path, 20, codec, suffix, side=(64, 96)), where="clip")
    assert (info.frames, info.height, info.width) == (20, 64, 96)
    assert info.seconds == pytest.approx(2.0, abs=0.01)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(56, 1000))
def test_frame_size_stays_in_the_budget_on_the_grid_and_near_the_shape(height, width, side):
    h, w = frame_size(height, width, side * side)
    assert h % 28 == w % 28 == 0 and h >= 56 and w >= 56
    assert h * w <= side * side
    if min(height, width) >= 112 and 0.5 < height / width < 2 and side >= 224:
        assert 0.7 < (h / w) / (height / width) < 1.45


def test_an_image_becomes_rgb_planes_of_the_right_size():
    file = io.BytesIO()
    Image.fromarray(np.tile(np.array([200, 10, 30], np.uint8), (90, 120, 1))).save(file, "PNG")
    image = decode_image(file.getvalue(), 147_456, where="clip")
    assert image.shape == (3, 84, 112) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, 40, 40], [200, 10, 30])


def test_a_missing_or_empty_file_is_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    for decode in (lambda clip: decode_audio(clip, 1.0, where="row 7"), lambda clip: decode_video(clip, 4, 3136, where="row 7")):
        with pytest.raises(BadMedia, match=r"row 7.*nowhere.wav is not there") as missing:
            decode(tmp_path / "nowhere.wav")
        assert missing.value.reason == "missing file"
        for empty in (b"", tmp_path / "empty.mp4"):
            with pytest.raises(BadMedia) as refused:
                decode(empty)
            assert refused.value.reason == "empty file"


def test_audio_without_samples_is_refused():
    with pytest.raises(BadMedia) as refused:
        decode_audio(wav(0.0), 1.0, where="clip")
    assert refused.value.reason == "empty audio"


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_audio_with_samples_that_are_not_finite_is_refused(poison):
    file = io.BytesIO()
    soundfile.write(file, np.array([0.1, poison, 0.1], np.float32), 16_000, "FLOAT", format="WAV")
    with pytest.raises(BadMedia) as refused:
        decode_audio(file.getvalue(), 1.0, where="clip")
    assert refused.value.reason == "corrupt audio"


def test_the_wrong_stream_is_refused(tmp_path):
    with pytest.raises(BadMedia) as refused:
        decode_audio(video(tmp_path), 1.0, where="clip")
    assert refused.value.reason == "no audio stream"
    for clip in (wav(), spoken_mp4(tmp_path)):
        with pytest.raises(BadMedia) as refused:
            decode_video(clip, 4, 3136, where="clip")
        assert refused.value.reason == "no video stream"


def test_a_playlist_cannot_make_us_read_other_files():
    with pytest.raises(BadMedia) as refused:
        decode_video(b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n", 4, 3136, where="clip")
    assert refused.value.reason == "corrupt video"


def test_an_mp4_cut_anywhere_is_refused(tmp_path):
    clip = video(tmp_path)
    for length in [*range(1, len(clip), max(1, len(clip) // 60)), len(clip) - 1]:
        with pytest.raises(BadMedia) as refused:
            decode_video(clip[:length], 4, 3136, where="clip")
        assert refused.value.reason in ("corrupt video", "truncated video", "no video stream", "empty video")
    sound = spoken_mp4(tmp_path)
    for length in [*range(1, len(sound), max(1, len(sound) // 40)), len(sound) - 1]:
        with pytest.raises(BadMedia):
            decode_audio(sound[:length], 10.0, where="clip")


@pytest.mark.parametrize(("codec", "suffix"), [("libvpx", ".webm"), ("mpeg4", ".avi")])
def test_half_a_webm_or_avi_is_refused(tmp_path, codec, suffix):
    clip = video(tmp_path, 60, codec, suffix)
    with pytest.raises(BadMedia):
        decode_video(clip[: len(clip) // 2], 4, 3136, where="clip")


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg2video", ".mxf"), ("mpeg4", ".nut")])
def test_mxf_and_nut_are_read_and_refused_where_they_were_cut(tmp_path, codec, suffix):
    clip = video(tmp_path, 50, codec, suffix, 25)
    kept, _ = decode_video(clip, 4, 56 * 56, where="clip")
    np.testing.assert_allclose(brightness(kept), 40 + 8 * (np.linspace(0, 49, 4).round() % 20), atol=3.9)
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(BadMedia) as refused:
            decode_video(clip[: int(len(clip) * share)], 4, 56 * 56, where="clip")
        assert refused.value.reason == "truncated video"


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_half_a_wav_or_flac_is_refused(format):
    clip = wav(1.0, format=format)
    with pytest.raises(BadMedia):
        decode_audio(clip[: len(clip) // 2], 10.0, where="clip")


@pytest.fixture(scope="module")
def whole_clips(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    picture = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(picture, "PNG")
    sounds = [wav(0.2), wav(0.2, format="FLAC"), wav(0.2, format="OGG"), wav(0.2, 44_100, 2), spoken_mp4(folder, 0.2)]
    films = [video(folder, 6), video(folder, 6, "mpeg4"), video(folder, 6, "libvpx", ".webm"), video(folder, 6, "mpeg4", ".avi")]
    return [*sounds, *films, picture.getvalue()]


def accepted_or_refused(clip: bytes) -> None:
    """Every reader gives a sound result or `BadMedia`; anything else fails the test."""
    readers = (
        lambda: decode_audio(clip, 1.0, where="clip"),
        lambda: decode_video(clip, 4, 3136, where="clip")[0],
        lambda: decode_image(clip, 3136, where="clip"),
    )
    for read in readers:
        try:
            result = read()
        except BadMedia as refused:
            assert refused.where == "clip" and refused.reason != "invalid"
        else:
            assert result.size and np.isfinite(result).all()
    for probe in (probe_audio, probe_video):
        try:
            probe(clip, where="clip")
        except BadMedia as refused:
            assert refused.reason != "invalid"


@HOSTILE
@given(
    clip=st.binary(max_size=400),
    magic=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"\xff\xfb\x90", b"\x1aE\xdf\xa3", b"\x89PNG\r\n\x1a\n"]),
)
def test_random_bytes_are_refused(clip, magic):
    accepted_or_refused(magic + clip)


@HOSTILE
@given(data=st.data())
def test_damaged_clips_are_decoded_or_refused_but_never_crash(whole_clips, data):
    clip = bytearray(data.draw(st.sampled_from(whole_clips)))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(clip) - 1), st.integers(0, 255)), max_size=8)):
        clip[place] = value
    length = data.draw(st.one_of(st.just(len(clip)), st.integers(1, len(clip))))
    accepted_or_refused(bytes(clip[:length]))

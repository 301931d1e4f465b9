"""Our acoustic vectors are openSMILE's own, for any rate, channel count and container."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from hba_ray.data.media import SAMPLE_RATE, decode_audio
from hba_ray.data.toy import speak
from hba_ray.descriptors.acoustic import AcousticExtractor
from hba_ray.descriptors.pooling import mean_std
from hba_ray.descriptors.released import ReleasedExtractor
from hba_ray.descriptors.store import read_frames
from hba_ray.errors import BadMedia

from .conftest import movie, wav

opensmile = pytest.importorskip("opensmile")


def by_hand(samples_T: np.ndarray, level) -> np.ndarray:
    smile = opensmile.Smile(feature_set=opensmile.FeatureSet.ComParE_2016, feature_level=level)
    return smile.process_signal(samples_T, SAMPLE_RATE).to_numpy()


def test_functionals_are_those_of_opensmile_by_hand():
    voice = speak("happy", np.random.default_rng(3))
    samples_T = decode_audio(voice, 99, where="")
    extractor = AcousticExtractor("functionals")
    for clip in (wav(0.3), voice, voice):  # the clip before must not matter
        row = extractor.describe(clip, where="row 1")
    assert row["functionals"].shape == (6373,)
    assert np.array_equal(row["functionals"], by_hand(samples_T, opensmile.FeatureLevel.Functionals)[0])
    assert row["seconds"] == pytest.approx(len(samples_T) / 16_000) and row["peak"] == pytest.approx(np.abs(samples_T).max())


def test_a_released_file_of_a_clip_gives_its_own_vector():
    clip, shipped = speak("sad", np.random.default_rng(5)), io.BytesIO()
    ours = AcousticExtractor("functionals").describe(clip, where="row 1")["functionals"]
    torch.save({"features": by_hand(decode_audio(clip, 99, where=""), opensmile.FeatureLevel.Functionals)}, shipped)
    theirs = ReleasedExtractor("acoustic").describe(shipped.getvalue(), where="row 1")["functionals"]
    assert ours.any() and np.array_equal(ours, theirs)


def test_low_level_descriptors_are_pooled_and_kept(tmp_path: Path):
    clip = wav(0.7)
    row = AcousticExtractor("low_level").describe(clip, where="row 1", keep=tmp_path / "frames.parquet")
    expected = by_hand(decode_audio(clip, 99, where=""), opensmile.FeatureLevel.LowLevelDescriptors)
    assert expected.shape[1] == 65 and row["frames"] == len(expected)
    assert np.array_equal(row["mean_std"], mean_std(expected))
    assert np.array_equal(read_frames(tmp_path / "frames.parquet")["values"], expected)


def test_any_rate_channels_and_the_sound_of_a_video_are_read():
    extractor = AcousticExtractor("functionals")
    for clip in (wav(0.4, 44_100, 2), wav(0.4, 8_000), movie(5, sound_seconds=0.5)):
        row = extractor.describe(clip, where="row 1")
        assert row["seconds"] == pytest.approx(0.4, abs=0.2)
        assert np.isfinite(row["functionals"]).all() and row["functionals"].any()


@pytest.mark.parametrize(
    ("clip", "reason"), [(wav(0.0), "empty audio"), (wav(0.04), "audio too short"), (movie(3), "no audio stream"), (b"?", "corrupt audio")]
)
def test_what_has_no_usable_sound_says_so(clip, reason):
    with pytest.raises(BadMedia) as refused:
        AcousticExtractor("functionals").describe(clip, where="row 5")
    assert refused.value.reason == reason

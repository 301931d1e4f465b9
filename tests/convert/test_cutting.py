from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hba_ray.convert.cutting import cut_film, cut_sound
from hba_ray.data.media import every_frame, probe_audio
from hba_ray.errors import BadMedia
from tests.helpers.films import film, number_in


def numbers(path: Path) -> list[int]:
    return [number_in(frame.to_ndarray(format="rgb24").transpose(2, 0, 1)) for _, frame in every_frame(path, where="test")]


@pytest.mark.parametrize(("begin", "end", "frames"), [(1.0, 2.0, range(10, 20)), (0.0, 0.35, range(4)), (2.85, 9.0, range(29, 30))])
def test_a_film_is_cut_at_its_frames(tmp_path: Path, begin: float, end: float, frames: range):
    film(tmp_path / "whole.mp4", "mpeg4", 30)
    cut = cut_film(tmp_path / "whole.mp4", begin, end, tmp_path / "a" / "cut.mp4", where="row 1")
    assert numbers(cut) == list(frames)


def test_a_film_that_does_not_start_at_0_is_cut_from_its_first_frame(tmp_path: Path):
    film(tmp_path / "whole.mkv", "mpeg4", 30, start=500)
    assert numbers(cut_film(tmp_path / "whole.mkv", 1, 1.5, tmp_path / "cut.mp4", where="row 1")) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.5), (0.25, 1.0), (1.23456, 1.9), (1.9, 7.0)])
def test_a_sound_is_cut_at_its_samples(tmp_path: Path, begin: float, end: float):
    ramp = np.stack([np.arange(32_000, dtype=np.int16), -np.arange(32_000, dtype=np.int16)], axis=1)
    soundfile.write(tmp_path / "whole.wav", ramp, 16_000, subtype="PCM_16")
    cut = cut_sound(tmp_path / "whole.wav", begin, end, tmp_path / "cut.wav", where="row 1")
    found, rate = soundfile.read(cut, dtype="int16")
    assert rate == 16_000
    assert np.array_equal(found, ramp[round(begin * 16_000) : round(end * 16_000)])


def test_the_sound_of_a_film_is_cut(tmp_path: Path):
    film(tmp_path / "whole.mp4", "mpeg4", 30, sound=True)
    cut = cut_sound(tmp_path / "whole.mp4", 0.25, 0.75, tmp_path / "cut.wav", where="row 1")
    assert probe_audio(cut, where="test") == pytest.approx(0.5, abs=0.01)


def test_times_behind_the_end_and_files_that_are_none_are_bad_media(tmp_path: Path):
    film(tmp_path / "whole.mp4", "mpeg4", 10, sound=True)
    for cut, kind in ((cut_film, "video"), (cut_sound, "audio")):
        with pytest.raises(BadMedia, match=f"row 1: the recording has no {kind} from 5 to 6 s") as caught:
            cut(tmp_path / "whole.mp4", 5, 6, tmp_path / "cut", where="row 1")
        assert caught.value.reason == f"empty {kind}"
        (tmp_path / "noise.mp4").write_bytes(b"noise")
        with pytest.raises(BadMedia, match="cannot be decoded"):
            cut(tmp_path / "noise.mp4", 0, 1, tmp_path / "cut", where="row 1")
    assert not (tmp_path / "cut").exists()

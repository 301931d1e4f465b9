"""Frames come one by one, at a stated rate, and a damaged clip is refused before any is given."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.descriptors.pose import Spool, frames
from hba_ray.errors import BadMedia
from tests.helpers.films import film, turned_mp4

from .conftest import movie, wav


def numbers(clip, fps=None) -> list[int]:
    return [round((float(image.mean()) - 20) / 5) for image in frames(clip, fps, where="row 1")]


def test_every_frame_comes_once_and_in_order():
    assert numbers(movie(30)) == list(range(30))
    assert next(iter(frames(movie(3), None, where="row 1"))).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("fps", "expected"), [(10, list(range(20))), (5, list(range(0, 20, 2))), (3, [0, 4, 7, 10, 14, 17]), (0.5, [0]), (99, list(range(20)))]
)
def test_a_rate_takes_the_first_frame_at_or_after_each_of_its_moments(fps, expected):
    assert numbers(movie(20), fps) == expected


@given(fps=st.floats(0.2, 60), count=st.integers(1, 45))
@settings(max_examples=25, deadline=None)
def test_no_frame_comes_twice_and_the_first_always_comes(fps, count):
    taken = numbers(movie(count), fps)
    assert taken[0] == 0
    assert taken == sorted(set(taken))
    assert len(taken) <= count
    assert abs(len(taken) - min(count, count / 10 * fps)) <= 1


def test_a_path_gives_the_same_frames(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(movie(4))
    assert numbers(tmp_path / "a.mp4") == [0, 1, 2, 3]


def test_frames_are_decoded_when_they_are_asked_for():
    given_frames = frames(movie(40), None, where="row 1")
    assert float(next(given_frames).mean()) < float(next(given_frames).mean())
    given_frames.close()


def test_a_clip_that_a_phone_marked_as_turned_is_looked_at_upright(tmp_path: Path):
    clip = film(tmp_path / "made.mp4", "libx264", 6, g="3")
    turned = list(frames(turned_mp4(clip, (0, 1, -1, 0)), None, where="row 1"))
    assert len(turned) == 6
    for stored_HWC, upright_HWC in zip(frames(clip, None, where="row 1"), turned, strict=True):
        np.testing.assert_array_equal(upright_HWC, np.rot90(stored_HWC, -1))


@pytest.mark.parametrize(
    ("clip", "reason"),
    [(b"", "empty file"), (b"no video at all" * 99, "corrupt video"), (wav(0.2), "no video stream"), (movie(20)[:-300], "corrupt video")],
)
def test_a_bad_clip_gives_no_frame_but_its_reason(clip, reason):
    with pytest.raises(BadMedia) as refused:
        list(frames(clip, None, where="row 7"))
    assert refused.value.reason == reason and refused.value.where == "row 7"


def test_a_spool_gives_back_what_was_added():
    rows = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    with Spool(5) as spool:
        assert spool.rows().shape == (0, 5)
        for given_row in rows:
            spool.add(given_row)
        assert len(spool) == 100
        assert np.array_equal(spool.rows(), rows)

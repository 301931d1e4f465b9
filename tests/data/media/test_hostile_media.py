"""Damaged clips are decoded or refused, never anything else: no other error, no hang, no memory without bound."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.media import decode_audio, decode_image, decode_video, probe_audio, probe_video
from hba_ray.errors import BadMedia
from tests.helpers.hostile import Outcome, hostile, outcome
from tests.helpers.hostile_media import IMAGES, SOUNDS, VIDEOS, clips, damaged_clips

SECONDS, PICTURES, PIXELS = 0.2, 4, 56 * 56


def hear(clip: bytes | Path) -> None:
    samples_T = decode_audio(clip, SECONDS, where="row 1")
    assert samples_T.dtype == np.float32 and 0 < len(samples_T) <= SECONDS * 16_000 and np.isfinite(samples_T).all()
    assert probe_audio(clip, where="row 1") >= 0


def watch(clip: bytes | Path) -> None:
    frames_TCHW, rate = decode_video(clip, PICTURES, PIXELS, where="row 1")
    assert frames_TCHW.dtype == np.uint8 and frames_TCHW.shape == (PICTURES, 3, 56, 56) and 0 < rate < np.inf
    assert probe_video(clip, where="row 1").frames > 0


def look(clip: bytes | Path) -> None:
    image_CHW = decode_image(clip, PIXELS, where="row 1")
    assert image_CHW.dtype == np.uint8 and image_CHW.shape == (3, 56, 56)


READERS = {"audio": hear, "video": watch, "image": look}
MEANT = {name: watch for name in VIDEOS} | {name: hear for name in SOUNDS} | {f"image/{name}": look for name in IMAGES}


@pytest.mark.parametrize("name", MEANT)
def test_the_clips_that_are_damaged_below_are_good_before(name: str):
    assert outcome(lambda: MEANT[name](clips()[name])) == Outcome.ACCEPTED


@hostile("media")
@given(clip=damaged_clips(), kind=st.sampled_from(sorted(READERS)), as_file=st.booleans())
def test_a_damaged_clip_is_decoded_or_refused(clip: bytes, kind: str, as_file: bool, tmp_path: Path):
    file = tmp_path / "clip"
    file.write_bytes(clip)

    def read() -> None:
        try:
            READERS[kind](file if as_file else clip)
        except BadMedia as error:
            assert error.where == "row 1" and (kind in error.reason or error.reason.endswith("file")), error
            raise

    outcome(read)

"""How large clips are shown: ours scale down alone, the released code enlarges small ones, too."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from hba_ray.data.clips import decode_clips
from hba_ray.data.media import frame_size
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.specs import ExperimentSpec, MediaSpec


def video(file: Path, side: tuple[int, int]) -> Path:
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *side, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((*side, 3), 90, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return file


def shown(clips: dict[str, tuple[bytes | Path, ...]], budget: MediaSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(H, W) of the video and of the image."""
    row = Row("one", "one", DATASETS["toy_tone"], "Why?", answer="low", label="low", media=clips)
    decoded = decode_clips(row, budget, where="row")
    return decoded["video"][0][0].shape[2:], decoded["image"][0].shape[1:]


@given(height=st.integers(28, 2000), width=st.integers(28, 2000), least=st.sampled_from([65_536, 147_456]))
def test_small_pictures_are_enlarged_as_the_released_code_does(height, width, least):
    """Up to multiples of 28 pixels, by the rule that the released loader takes from qwen_vl_utils, written out here."""
    assume(max(height, width) < 100 * min(height, width))
    most = 524_288
    rounded = [round(side / 28) * 28 for side in (height, width)]
    if rounded[0] * rounded[1] < least:
        grown = (least / (height * width)) ** 0.5
        assert frame_size(height, width, most, least) == tuple(math.ceil(side * grown / 28) * 28 for side in (height, width))
    else:
        assert frame_size(height, width, most, least) == frame_size(height, width, most)


def test_small_clips_have_the_released_size_where_the_spec_says_so(tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGB", (100, 80)).save(file, "PNG")
    clips: dict[str, tuple[bytes | Path, ...]] = {"video": (video(tmp_path / "a.mp4", (120, 160)),), "image": (file.getvalue(),)}
    authors = ExperimentSpec.model_validate({"name": "x", "compat": "authors", "atlas": {"source": "toy"}}).atlas.media
    assert shown(clips, MediaSpec()) == ((112, 168), (84, 112))
    assert shown(clips, authors) == ((336, 448), (252, 308)), "384 tokens of a video of 4 frames, not 96"
    assert shown(clips, MediaSpec(video_pixels=3136, video_min_pixels=147_456))[0] == (56, 56), "never above the budget"
    assert shown(clips, MediaSpec(image_pixels=3136))[1] == (56, 56)

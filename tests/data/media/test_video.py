"""The frames that are shown are those of a full decode, whatever the container, codec, order, times and marks."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st

from hba_ray.data.media import decode_video, every_frame
from hba_ray.errors import BadMedia
from tests.helpers.films import SIDE, film, number_in, numbered, turned_mp4

H264 = ("libx264", {"bf": "2", "preset": "ultrafast"})
OPEN = ("libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=2", "preset": "ultrafast"})
MPEG2, MPEG1, MPEG4 = ("mpeg2video", {"bf": "2"}), ("mpeg1video", {"bf": "2"}), ("mpeg4", {"bf": "2"})
VP8 = ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"})
KINDS = [
    *[(suffix, *codec) for suffix in (".mp4", ".mov", ".mkv", ".avi", ".ts") for codec in (H264, OPEN, MPEG4)],
    *[(suffix, *codec) for suffix in (".vob", ".mpg", ".ts", ".mkv") for codec in (MPEG2, MPEG1)],
    (".flv", *H264), (".flv", "flv", {}), (".wmv", "wmv2", {}), (".asf", *H264), (".webm", *VP8), (".webm", "libvpx-vp9", {}),
    (".mov", "mjpeg", {}), (".ogv", *VP8),
]  # fmt: skip


def full_decode(path: Path) -> list[int]:
    """The numbers of all frames that PyAV gives from the start."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        return [number_in(frame.to_ndarray(format="rgb24").transpose(2, 0, 1)) for frame in container.decode(stream)]


def shown(clip: bytes | Path, frames: int) -> list[int]:
    return [number_in(picture_CHW) for picture_CHW in decode_video(clip, frames, SIDE * SIDE, where="row 1")[0]]


def asked(whole: list[int], frames: int) -> list[int]:
    return [whole[index] for index in np.linspace(0, len(whole) - 1, frames).round().astype(int)]


@pytest.mark.parametrize(("suffix", "codec", "options"), KINDS)
def test_every_container_and_codec_shows_the_frames_of_a_full_decode(tmp_path, suffix, codec, options):
    path = tmp_path / f"made{suffix}"
    clip = film(path, codec, 30, rate=25, g="8", **options)
    whole = full_decode(path)
    assert whole == list(range(30))
    for frames in (4, 8, 14):
        assert shown(clip, frames) == asked(whole, frames)
    rate = decode_video(clip, 8, SIDE * SIDE, where="row 1")[1]
    assert rate == pytest.approx(7 / (29 / 25), rel=0.01)
    assert [number_in(frame.to_ndarray(format="rgb24").transpose(2, 0, 1)) for _, frame in every_frame(clip, where="row 1")] == whole


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_times_and_groups_show_the_frames_of_a_full_decode(tmp_path_factory, data):
    """Edit lists (a start before 0), late starts, frames of unequal length, groups of any length, with and without sound or index."""
    suffix = data.draw(st.sampled_from([".mp4", ".mov", ".mkv", ".ts", ".flv", ".avi"]))
    codec, options = data.draw(st.sampled_from([H264, OPEN]))
    count = data.draw(st.integers(1, 24))
    path = tmp_path_factory.mktemp("films") / f"made{suffix}"
    gaps = data.draw(
        st.none() if suffix == ".avi" else st.one_of(st.none(), st.lists(st.integers(10, 400), min_size=count, max_size=count))
    )
    starts = (-300, 0, 700) if suffix in (".mp4", ".mov") else (0,) if suffix == ".avi" else (0, 700)
    fragments = {"movflags": "frag_keyframe+empty_moov"} if suffix == ".mp4" and data.draw(st.booleans()) else {}
    clip = film(
        path,
        codec,
        count,
        times=None if gaps is None else np.cumsum(gaps).tolist(),
        start=data.draw(st.sampled_from(starts)),
        container=fragments,
        sound=suffix in (".mp4", ".mkv") and data.draw(st.booleans()),
        g=str(data.draw(st.sampled_from([1, 3, 8, 250]))),
        **options,
    )
    whole = full_decode(path)
    frames = data.draw(st.sampled_from([2, 4, 8]))
    if whole:
        assert shown(clip, frames) == asked(whole, frames)
    else:  # the edit list leaves nothing
        with pytest.raises(BadMedia):
            shown(clip, frames)


def test_a_recording_that_begins_within_a_group_is_shown_from_its_first_key_frame(tmp_path):
    clip = film(tmp_path / "made.ts", "mpeg4", 40, rate=25, g="8")
    late = clip[: 3 * 188] + clip[30 * 188 :]
    numbers = shown(late, 4)
    assert -1 not in numbers and numbers[0] % 8 == 0 and numbers[-1] == 39


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "mpeg4"), (".ts", "libx264"), (".vob", "mpeg2video"), (".mkv", "libx264")])
def test_a_whole_clip_of_a_single_group_is_not_taken_for_a_cut_one(tmp_path, suffix, codec):
    assert shown(film(tmp_path / f"made{suffix}", codec, 30, rate=25, g="999"), 4) == [0, 10, 19, 29]


def test_an_avi_without_its_index_is_read(tmp_path):
    clip = film(tmp_path / "made.avi", "mpeg4", 30, g="8")
    assert shown(clip.replace(b"idx1", b"JUNK"), 4) == [0, 10, 19, 29]
    assert shown(clip[: clip.index(b"idx1")], 4) == [0, 10, 19, 29]


def test_a_live_recording_without_a_length_is_read(tmp_path):
    assert shown(film(tmp_path / "made.webm", "libvpx", 30, g="8", container={"live": "1"}), 4) == [0, 10, 19, 29]


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
        ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
        ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
        ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
        ((1, 0, 0, -1), lambda picture: picture[::-1]),
        ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    ],
)
def test_marks_of_rotation_and_mirroring_are_applied(tmp_path, matrix, turn):
    """The expected picture is that of the same film without the mark, turned by numpy: (x, y) is shown at (a x + c y, b x + d y)."""
    clip = film(tmp_path / "made.mp4", "libx264", 6, g="3")
    stored, turned = (decode_video(one, 2, SIDE * SIDE, where="row 1")[0] for one in (clip, turned_mp4(clip, matrix)))
    for before, after in zip(stored, turned, strict=True):
        np.testing.assert_array_equal(after.transpose(1, 2, 0), turn(before.transpose(1, 2, 0)))


def test_the_picture_of_a_cover_is_not_the_video(tmp_path):
    path = tmp_path / "made.mp4"
    with av.open(str(path), "w") as made:
        cover: Any = made.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        stream: Any = made.add_stream("libx264", rate=10)
        stream.width = stream.height = SIDE
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24")
        packets = [*cover.encode(picture), *cover.encode()]
        packets += [packet for index in range(10) for packet in stream.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24"))]
        for packet in [*packets, *stream.encode()]:
            made.mux(packet)
    assert shown(path, 4) == [0, 3, 6, 9]


def test_the_default_stream_is_shown_and_not_the_first(tmp_path):
    path = tmp_path / "made.mkv"
    with av.open(str(path), "w") as made:
        streams: list[Any] = [made.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, disposition in zip(streams, (Disposition.comment, Disposition.default), strict=True):
            stream.width = stream.height = SIDE
            stream.disposition = disposition
        packets = []
        for place, stream in enumerate(streams):
            for index in range(10):
                packets += stream.encode(av.VideoFrame.from_ndarray(numbered(100 * place + index), format="rgb24"))
            packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts):
            made.mux(packet)
    assert shown(path, 2) == [100, 109]


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".flv", ".avi"])
def test_a_film_that_was_cut_is_refused(tmp_path, suffix):
    clip = film(tmp_path / f"made{suffix}", "libx264", 40, g="8")
    for share in (0.4, 0.7, 0.85):
        length = int(len(clip) * share) | 1
        with pytest.raises(BadMedia) as refused:
            shown(clip[:length], 4)
        assert refused.value.reason == "truncated video"

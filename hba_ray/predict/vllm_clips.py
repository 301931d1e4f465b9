"""Hands decoded clips to vLLM's chat: a message names them by URLs, and our media connector returns the clips for these.

Connectors are vLLM's extension point for where clips come from. A message is read in the thread that
sends it, so the URLs are known only while it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from hba_ray.data.clips import as_picture, video_metadata
from hba_ray.data.media import SAMPLE_RATE

CONNECTOR = "hba_ray"
"""Our connector's name in vLLM's registry."""
_PARTS = {"audio": "audio_url", "video": "video_url", "image": "image_url", "frame": "image_url"}
"""Kind of a clip -> the part of a message that holds it in the OpenAI protocol. A frame is of a video that is shown as images."""

Clip = tuple[str, Any]
"""(kind, the object that vLLM takes for a clip of it)."""

_given_out: dict[str, Any] = {}


def as_clips(modality: str, array: Any, *, as_images: bool = False) -> Iterator[Clip]:
    """A clip that `data.clips.decode_clips` made, as vLLM takes it.

    Args:
        array: the decoded clip; of a video with its rate.
        as_images: give the frames of a video one by one.
    """
    if modality == "audio":
        yield "audio", (array, SAMPLE_RATE)
    elif modality == "image":
        yield "image", as_picture(array)
    else:
        frames_TCHW, rate = array
        if as_images:
            yield from (("frame", as_picture(frame_CHW)) for frame_CHW in frames_TCHW)
        else:
            yield "video", (np.ascontiguousarray(frames_TCHW.transpose(0, 2, 3, 1)), video_metadata(len(frames_TCHW), rate))


@contextmanager
def handed_over(clips: Iterable[Clip]) -> Iterator[Mapping[str, Iterator[str]]]:
    """Kind -> URLs of its clips. Inside the block our connector returns the clips for them."""
    urls: dict[str, list[str]] = {kind: [] for kind in _PARTS}
    for number, (kind, clip) in enumerate(clips):
        urls[kind].append(f"{CONNECTOR}:{number}")
        _given_out[urls[kind][-1]] = clip
    try:
        yield {kind: iter(found) for kind, found in urls.items()}
    finally:
        _given_out.clear()


def content_of(parts: Sequence[Mapping[str, Any]], urls: Mapping[str, Iterator[str]]) -> list[dict[str, Any]]:
    """The content of a turn in the OpenAI protocol, where each `{"type": kind}` has become the URL of the next clip of that kind."""
    return [
        dict(part) if part["type"] == "text" else {"type": _PARTS[part["type"]], _PARTS[part["type"]]: {"url": next(urls[part["type"]])}}
        for part in parts
    ]


@lru_cache(maxsize=1)
def register_connector() -> None:
    """Makes our connector known to vLLM in this process; VLLM_MEDIA_CONNECTOR chooses it."""
    from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector

    @MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
    class Decoded(MediaConnector):
        """Returns clips that are decoded already."""

        def fetch_audio(self, audio_url: str) -> Any:
            return _given_out[audio_url]

        def fetch_image(self, image_url: str, **_: Any) -> Any:
            return _given_out[image_url]

        def fetch_video(self, video_url: str, **_: Any) -> Any:
            return _given_out[video_url]

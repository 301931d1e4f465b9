"""Decoded clips on their way into vLLM's chat: a message names them by URL, and our media connector gives them out.

Connectors are vLLM's extension point for where clips come from. A message is read in the thread that
asks it, so what the URLs mean is known only for that long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from hba_ray.data.media import SAMPLE_RATE

CONNECTOR = "hba_ray"
"""Our connector's name in vLLM's registry."""
_PARTS = {"audio": "audio_url", "video": "video_url", "image": "image_url", "frame": "image_url"}
"""Kind of a clip -> the part of a message that holds it in the OpenAI protocol. A frame is of a video that is shown as images."""

Clip = tuple[str, Any]
"""(kind, what vLLM takes for it)."""

_given_out: dict[str, Any] = {}


def as_clips(modality: str, array: Any, *, as_images: bool = False) -> Iterator[Clip]:
    """What vLLM takes for a clip that `data.batches.decode_clips` made.

    Args:
        as_images: give the frames of a video one by one.
    """
    if modality == "audio":
        yield "audio", (array, SAMPLE_RATE)
    elif modality == "image":
        yield "image", Image.fromarray(array.transpose(1, 2, 0))
    else:
        frames_TCHW, rate = array
        frames_THWC = np.ascontiguousarray(frames_TCHW.transpose(0, 2, 3, 1))
        if as_images:
            yield from (("frame", Image.fromarray(frame)) for frame in frames_THWC)
        else:
            count = len(frames_THWC)
            facts = {"total_num_frames": count, "fps": rate, "duration": count / rate, "frames_indices": list(range(count))}
            yield "video", (frames_THWC, {**facts, "video_backend": CONNECTOR, "do_sample_frames": False})


@contextmanager
def handed_over(clips: Iterable[Clip]) -> Iterator[Mapping[str, Iterator[str]]]:
    """Kind -> URLs of its clips, which our connector knows inside the block."""
    urls: dict[str, list[str]] = {kind: [] for kind in _PARTS}
    for number, (kind, clip) in enumerate(clips):
        urls[kind].append(f"{CONNECTOR}:{number}")
        _given_out[urls[kind][-1]] = clip
    try:
        yield {kind: iter(found) for kind, found in urls.items()}
    finally:
        _given_out.clear()


def content_of(parts: Sequence[Mapping[str, Any]], urls: Mapping[str, Iterator[str]]) -> list[dict[str, Any]]:
    """The content of a turn in the OpenAI protocol: each `{"type": kind}` becomes the next clip of the kind."""
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
        """Gives out clips that are decoded already."""

        def fetch_audio(self, audio_url: str) -> Any:
            return _given_out[audio_url]

        def fetch_image(self, image_url: str, **_: Any) -> Any:
            return _given_out[image_url]

        def fetch_video(self, video_url: str, **_: Any) -> Any:
            return _given_out[video_url]

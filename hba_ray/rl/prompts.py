"""A row of the atlas, ready for the processor: the chat message and the decoded clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hba_ray.data.media import decode_audio, decode_image, decode_video
from hba_ray.data.prompts import chat_message
from hba_ray.rl.dataset import RowSettings, read_row
from hba_ray.rl.omni import mean_rate


@dataclass(frozen=True)
class Prompt:
    """A row, ready for the processor.

    Attributes:
        media: verl's names: `images` (PIL), `videos` (uint8 [T, 3, H, W] with its rate), `audios` (float32 [T] at 16 kHz).
    """

    sample_id: str
    messages: list[dict[str, Any]]
    media: dict[str, list[Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """What vLLM's processor has to be told of these clips; `omni.RolloutProcessor` knows it by itself."""
        settings: dict[str, Any] = {"do_resize": False, "do_sample_frames": False}
        if "videos" in self.media:
            settings["fps"] = mean_rate([facts for _, facts in self.media["videos"]])
        return settings


def make_prompt(file: str, line: int, settings: RowSettings) -> Prompt:
    """
    Raises:
        DataError: the row or a clip of it cannot be read.
    """
    row = read_row(file, line, settings)
    where, budget = f"{Path(file).name} row {row.sample_id} ({row.dataset.id})", settings.media_spec
    media: dict[str, list[Any]] = {}
    for clip in row.media.get("image", ()):
        pixels_CHW = decode_image(clip, budget.video_pixels, where=where)
        media.setdefault("images", []).append(Image.fromarray(pixels_CHW.transpose(1, 2, 0)))
    for clip in row.media.get("video", ()):
        frames_TCHW, rate = decode_video(clip, budget.video_frames, budget.video_pixels, where=where)
        count = len(frames_TCHW)
        facts = {"fps": rate, "total_num_frames": count, "frames_indices": list(range(count)), "video_backend": "pyav"}
        media.setdefault("videos", []).append((torch.from_numpy(frames_TCHW), facts))
    for clip in row.media.get("audio", ()):
        media.setdefault("audios", []).append(decode_audio(clip, budget.audio_seconds, where=where))
    return Prompt(row.sample_id, chat_message(row), media)

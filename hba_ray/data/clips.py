"""A row's clips, decoded once and handed on: to the processor of our own models, and in the form that other libraries take.

Training, prediction and reinforcement learning all decode with `decode_clips` and call the processor
through `process`, so a row gives every model the same tokens and the same pixels.

Shapes: T frames or samples, C colours, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image

from hba_ray.data.media import SHORTEST_AUDIO, decode_audio, decode_image, decode_video, probe_audio, probe_video
from hba_ray.data.packed import PackedClip
from hba_ray.data.rows import Clip, Row
from hba_ray.specs import MediaSpec

Clips = dict[str, list[Any]]
"""Modality -> decoded clips: `audio` float32 [T] at 16 kHz, `image` uint8 [3, H, W], `video` (uint8 [T, 3, H, W], frames per second)."""

ALREADY_SIZED = {"do_resize": False, "do_sample_frames": False}
"""Arguments of a processor's call: frames are chosen already, and have the size that they shall have; its defaults would enlarge them."""


def decode_clips(row: Row, budget: MediaSpec, *, where: str) -> Clips:
    """The row's clips within the budget, under all three modalities.

    Raises:
        BadMedia: a clip cannot be decoded, or is too short for the audio tower; the error names `where`.
    """
    return {name: [decode(name, clip, budget, where=where) for clip in row.media.get(name, ())] for name in ("audio", "video", "image")}


def decode(modality: str, clip: Clip, budget: MediaSpec, *, where: str) -> Any:
    """One clip within the budget, in the form of `Clips`.

    Raises:
        BadMedia: see `decode_clips`.
    """
    if isinstance(clip, PackedClip):
        return clip.decoded(where)
    if modality == "audio":
        return decode_audio(clip, budget.audio_seconds, where=where, shortest=SHORTEST_AUDIO)
    if modality == "video":
        sizes = {"max_pixels": budget.video_pixels, "min_pixels": budget.video_min_pixels}
        return decode_video(clip, budget.video_frames, where=where, **sizes)
    return decode_image(clip, budget.image_pixels or budget.video_pixels, where=where, min_pixels=budget.image_min_pixels)


def length_of(modality: str, clip: Clip, *, where: str) -> float:
    """From the header of a clip: seconds of a sound, pixels of a stored frame of a video; 0 of an image, whose header is not read.

    Raises:
        BadMedia: the header is damaged.
    """
    if isinstance(clip, PackedClip):
        return clip.length(where)
    if modality == "audio":
        return probe_audio(clip, where=where)
    if modality == "video":
        info = probe_video(clip, where=where)
        return float(info.width * info.height)
    return 0.0


@dataclass(frozen=True)
class PixelScale:
    """How a processor makes floats of the bytes of pictures.

    Attributes:
        mean, std: of each colour, where white is 1.
        white: value of a white byte times this is 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float

    @classmethod
    def of(cls, picture_processor: Any) -> PixelScale:
        """That of an image or video processor."""
        return cls(tuple(picture_processor.image_mean), tuple(picture_processor.image_std), picture_processor.rescale_factor)

    def floats(self, patches_NP: torch.Tensor) -> torch.Tensor:
        """Patches of bytes [patches, colours x values] as the processor itself would have made them, bit for bit, on their device."""
        mean, std = (torch.tensor(values, device=patches_NP.device)[:, None] * (1.0 / self.white) for values in (self.mean, self.std))
        values_NCV = patches_NP.to(torch.float32).view(len(patches_NP), len(self.mean), -1)
        return values_NCV.sub_(mean).div_(std).view(patches_NP.shape)


def pixel_scales(processor: Any) -> dict[str, PixelScale]:
    """Name of the thinker's argument -> the scale of its pixels."""
    return {
        "pixel_values": PixelScale.of(processor.image_processor),
        "pixel_values_videos": PixelScale.of(processor.video_processor),
    }


def process(
    processor: Any,
    prompts: list[str],
    clips: Mapping[str, list[Any]],
    call: Callable[..., Mapping[str, Any]] | None = None,
    *,
    as_bytes: bool = False,
) -> dict[str, Any]:
    """Token ids of each prompt and tensors of all clips, by Qwen2.5-Omni's processor.

    Three defaults of the processor do not fit us: it would resize the frames, give all videos one rate,
    and pad audio to the longest clip that the model could take. Audio is padded by a second of silence at least,
    which lets the last window of the longest clip end in silence, as it does in the processor's own padding.

    Args:
        prompts: with the chat template applied; placeholders stand for the clips, in their order.
        clips: of all prompts, in order.
        call: the processor's call, where it is not `processor` itself.
        as_bytes: leave pixels as uint8, a quarter of the size; `PixelScale.floats` makes of them what the model takes.

    Returns:
        `input_ids`, a list of ids for each prompt; and where there are clips, under the names of the
        thinker's arguments, tensors: `input_features`, `feature_attention_mask`, `pixel_values(_videos)`,
        `image_grid_thw`, `video_grid_thw`, `video_second_per_grid`.
    """
    arguments: dict[str, Any] = {"text": prompts, "padding": False, **ALREADY_SIZED}
    if as_bytes:
        arguments |= {"do_rescale": False, "do_normalize": False}
    if clips["audio"]:
        arguments["audio"] = clips["audio"]
        extractor = processor.feature_extractor
        seconds = ceil(max(map(len, clips["audio"])) / extractor.sampling_rate) + 1
        arguments["audio_kwargs"] = {"max_length": min(seconds * extractor.sampling_rate, extractor.n_samples)}
    if clips["image"]:
        arguments["images"] = [torch.from_numpy(image_CHW) for image_CHW in clips["image"]]
    if clips["video"]:
        arguments["videos"] = [torch.from_numpy(frames_TCHW) for frames_TCHW, _ in clips["video"]]
    made = dict((call or processor)(**arguments))
    made.pop("attention_mask", None)
    if "feature_attention_mask" in made:
        mask = torch.as_tensor(np.asarray(made["feature_attention_mask"]), dtype=torch.long)
        longest = int(mask.sum(-1).max())
        made["feature_attention_mask"] = mask[:, :longest]
        made["input_features"] = torch.as_tensor(np.asarray(made["input_features"]), dtype=torch.float32)[..., :longest].contiguous()
    if clips["video"]:
        frames_per_grid = processor.video_processor.temporal_patch_size
        made["video_second_per_grid"] = torch.tensor([frames_per_grid / rate for _, rate in clips["video"]], dtype=torch.float32)
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        if name in made:
            made[name] = torch.as_tensor(made[name])
    return made


def as_picture(image_CHW: np.ndarray) -> Image.Image:
    """A decoded image, or a frame of a video, for libraries that take Pillow's images."""
    return Image.fromarray(image_CHW.transpose(1, 2, 0))


def video_metadata(frames: int, rate: float) -> dict[str, Any]:
    """What vLLM and verl want to know of a decoded video: its frames were chosen here, and none is to be left out.

    Args:
        rate: frames per second.
    """
    return {
        "total_num_frames": frames,
        "fps": rate,
        "duration": frames / rate,
        "frames_indices": list(range(frames)),
        "video_backend": "hba_ray",
        "do_sample_frames": False,
    }

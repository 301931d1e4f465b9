"""The atlas as verl reads it: what is asked of each row, in an order that depends on seed and step alone.

verl's trainer holds the questions; clips stay in the atlas until a rollout worker needs them
(`rollouts.ClipLoop`), are decoded there, and are written nowhere.

A row of the atlas, ready for the processor: the chat message and the decoded clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.media import decode_audio, decode_image, decode_video
from hba_ray.data.prompts import ReasoningPrompt, chat_message, withhold
from hba_ray.data.rows import Row
from hba_ray.errors import DataError
from hba_ray.rl.omni import mean_rate
from hba_ray.rl.patches import AGENT
from hba_ray.specs.atlas import MediaSpec

SECTION = "hba"
"""Section of verl's `data` that holds `RowSettings`."""


@dataclass(frozen=True)
class RowSettings:
    """How rows become prompts; plain values, since they travel inside verl's configuration.

    Attributes:
        media: `MediaSpec` as JSON.
        template: reasoning instructions around a row's own prompt.
        modality_batches: make each batch of rows with the same modalities.
        failures: file that notes rows which cannot become prompts, a JSON object a line.
        drop_bad_rows: leave such rows out and go on.
        log_rollouts: responses of each step that are kept for people.
    """

    media: Mapping[str, Any]
    modalities: tuple[str, ...]
    template: str
    seed: int
    modality_batches: bool
    failures: str
    drop_bad_rows: bool
    log_rollouts: int

    @classmethod
    def of(cls, data: Any) -> RowSettings:
        """From verl's `data` section."""
        values = {str(key): value for key, value in data[SECTION].items()}
        return cls(**{**values, "modalities": tuple(values["modalities"])})

    @property
    def media_spec(self) -> MediaSpec:
        return MediaSpec.model_validate(dict(self.media))


class AtlasDataset(Dataset[dict[str, Any]]):
    """The rows of one split (`data.custom_cls` of verl 0.9.1). A row is its question and truth; see `rollouts` for its clips.

    Args:
        data_files: `FOLDER/SPLIT`: the folder of an atlas index and a split, alone or in a list of one.
        config: verl's `data` section.
    """

    def __init__(self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1, **_: Any):
        self.file = str(data_files if isinstance(data_files, str) else next(iter(data_files)))
        self.settings = RowSettings.of(config)
        index = atlas_index(self.file)
        lines = index.rows_of(Path(self.file).name)
        self.lines = lines if max_samples < 0 else lines[:max_samples]
        self.signatures = index.table.column("modality_signature").to_numpy(zero_copy_only=False)[self.lines]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = read_row(self.file, int(self.lines[item]), self.settings, light=True)
        return {
            "raw_prompt": [{"role": "user", "content": row.problem}],
            "data_source": row.dataset.id,
            "reward_model": {"style": "rule", "ground_truth": row.answer},
            "extra_info": {
                "task": row.dataset.task.id,
                "dataset": row.dataset.id,
                "is_open": row.dataset.task.is_open,
            },
            "index": int(self.lines[item]),
            "split_file": self.file,
            "agent_name": AGENT,
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),  # a batch of verl must hold one
        }

    def batch(self, number: int, size: int) -> list[int]:
        """Items of a batch, counted from 0 over all epochs; the same for the same seed, whatever ran before."""
        per_epoch = len(self) // size
        epoch, place = divmod(number, per_epoch)
        groups = self.signatures if self.settings.modality_batches else np.zeros(len(self), dtype=int)
        return _epoch(tuple(groups.tolist()), size, self.settings.seed, epoch)[place]


@cache
def atlas_index(file: str) -> AtlasIndex:
    return AtlasIndex.load(Path(file).parent)


def read_row(file: str, line: int, settings: RowSettings, *, light: bool = False) -> Row:
    """
    Args:
        light: without its clips, and without a look whether they are there.

    Raises:
        DataError: the row is not what it should be, or a clip of it is not there.
    """
    row = next(read_rows(atlas_index(file), [line], light=light))
    if isinstance(row, DataError):
        raise row
    return ReasoningPrompt(template=settings.template).ask(withhold(row, settings.modalities))


_EPOCHS: dict[tuple[int, int, int, int], list[list[int]]] = {}


def _epoch(groups: tuple[Any, ...], size: int, seed: int, epoch: int) -> list[list[int]]:
    """All batches of an epoch, the last computed epoch remembered."""
    key = (hash(groups), size, seed, epoch)
    if key not in _EPOCHS:
        _EPOCHS.clear()
        _EPOCHS[key] = batches(groups, size, seed, epoch)
    return _EPOCHS[key]


def batches(groups: tuple[Any, ...], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Cuts an epoch into `len(groups) // size` batches of items of one group, as far as they go.

    What is left of the groups makes mixed batches, and what is left of those rests for this epoch.

    >>> sorted(map(sorted, batches(("a", "b", "a", "b", "a"), size=2, seed=0, epoch=0)))[0] in ([0, 2], [0, 4], [1, 3], [2, 4])
    True
    """
    generator = np.random.default_rng([seed, epoch])
    names, kinds = np.unique(np.array(groups), return_inverse=True)
    whole: list[list[int]] = []
    left: list[int] = []
    for kind in range(len(names)):
        items = generator.permutation(np.flatnonzero(kinds == kind)).tolist()
        cut = len(items) - len(items) % size
        whole += [items[start : start + size] for start in range(0, cut, size)]
        left += items[cut:]
    left = generator.permutation(np.array(left, dtype=int)).tolist()
    whole += [left[start : start + size] for start in range(0, len(left) - size + 1, size)]
    return [whole[place] for place in generator.permutation(len(whole))]


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

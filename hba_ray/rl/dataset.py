"""The atlas as verl reads it: the rows of a split without their clips, and one row's prompt with its clips decoded.

verl's trainer holds the rows (`AtlasDataset`), in an order that depends on seed and step alone. Clips stay
in the atlas until a rollout worker (`rollouts.ClipLoop`) makes the prompt of a row; they are decoded there
and written nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.clips import ALREADY_SIZED, decode_clips
from hba_ray.data.prompts import ReasoningPrompt, chat_message, withhold
from hba_ray.data.rows import Row
from hba_ray.errors import DataError
from hba_ray.rl import AGENT
from hba_ray.rl.omni import mean_rate, verl_media
from hba_ray.specs.sections.atlas import MediaSpec
from hba_ray.specs.wording import Layout, Wording

SECTION = "hba"
"""Section of verl's `data` that holds `RowSettings`."""


@dataclass(frozen=True)
class RowSettings:
    """How rows become prompts. All values are plain, since verl's configuration carries them.

    Attributes:
        media: `MediaSpec` as JSON.
        template: reasoning instructions with {problem} where a row's own prompt goes.
        seed: of the order of the rows.
        modality_batches: whether the rows of a batch have the same modalities.
        failures: file of the rows that could not become prompts, a JSON object a line.
        drop_bad_rows: whether such rows are left out, or end the run.
        log_rollouts: responses of each step that are kept for people to read.
        layout, system: of `specs.wording.Wording`.
    """

    media: Mapping[str, Any]
    modalities: tuple[str, ...]
    template: str
    seed: int
    modality_batches: bool
    failures: str
    drop_bad_rows: bool
    log_rollouts: int
    layout: Layout = "trimmed"
    system: str | None = None

    @classmethod
    def of(cls, data: Any) -> RowSettings:
        """The settings in verl's `data` section."""
        values = {str(key): value for key, value in data[SECTION].items()}
        return cls(**{**values, "modalities": tuple(values["modalities"])})

    @property
    def media_spec(self) -> MediaSpec:
        return MediaSpec.model_validate(dict(self.media))


class AtlasDataset(Dataset[dict[str, Any]]):
    """The rows of one split, without their clips (`data.custom_cls` of verl 0.9.1).

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
        """Items of the batch with this number, counted from 0 over all epochs. They depend on the seed and on nothing that ran before."""
        per_epoch = len(self) // size
        epoch, place = divmod(number, per_epoch)
        groups = self.signatures if self.settings.modality_batches else np.zeros(len(self), dtype=int)
        return _epoch(tuple(groups.tolist()), size, self.settings.seed, epoch)[place]


@cache
def atlas_index(file: str) -> AtlasIndex:
    """The index of `FOLDER/SPLIT`, read once in a process."""
    return AtlasIndex.load(Path(file).parent)


def read_row(file: str, line: int, settings: RowSettings, *, light: bool = False) -> Row:
    """One row, within the modalities that are shown and with the reasoning instructions around its prompt.

    Args:
        file: `FOLDER/SPLIT` of an atlas index; `line` is a line of it.
        light: leave its clips out, and do not look whether they are there.

    Raises:
        DataError: the row is not what it should be, or a clip of it is not there.
    """
    row = next(read_rows(atlas_index(file), [line], light=light))
    if isinstance(row, DataError):
        raise row
    return ReasoningPrompt(template=settings.template).ask(withhold(row, settings.modalities, settings.layout))


_EPOCHS: dict[tuple[int, int, int, int], list[list[int]]] = {}


def _epoch(groups: tuple[Any, ...], size: int, seed: int, epoch: int) -> list[list[int]]:
    """All batches of an epoch; the last epoch that was asked for is remembered."""
    key = (hash(groups), size, seed, epoch)
    if key not in _EPOCHS:
        _EPOCHS.clear()
        _EPOCHS[key] = batches(groups, size, seed, epoch)
    return _EPOCHS[key]


def batches(groups: tuple[Any, ...], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Cuts an epoch into `len(groups) // size` batches, each of items of one group as far as the groups allow.

    Items left over from the groups make mixed batches. Fewer than `size` items are then left, and are
    not shown in this epoch; the next epoch shuffles anew.

    Args:
        groups: the group of each item.

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
        messages: one user turn in the chat template's form, behind a system turn where the spec gives one.
        media: the decoded clips under verl's names; see `omni.verl_media`.
    """

    sample_id: str
    messages: list[dict[str, Any]]
    media: dict[str, list[Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """What vLLM's processor has to be told of these clips; `omni.RolloutProcessor` does the same unasked."""
        settings: dict[str, Any] = dict(ALREADY_SIZED)
        if "videos" in self.media:
            settings["fps"] = mean_rate([metadata for _, metadata in self.media["videos"]])
        return settings


def make_prompt(file: str, line: int, settings: RowSettings) -> Prompt:
    """The prompt of one row, its clips decoded.

    Args:
        file: `FOLDER/SPLIT` of an atlas index; `line` is a line of it.

    Raises:
        DataError: the row or a clip of it cannot be read.
    """
    row = read_row(file, line, settings)
    clips = decode_clips(row, settings.media_spec, where=f"{Path(file).name} row {row.sample_id} ({row.dataset.id})")
    return Prompt(row.sample_id, chat_message(row, Wording(settings.layout, settings.system)), verl_media(clips))

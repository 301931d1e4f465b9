"""What a supervised stage is to the code that starts it: a job, which knows how one of its workers trains."""

from __future__ import annotations

from dataclasses import Field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.batches import BatchSettings
from hba_ray.specs import ExperimentSpec
from hba_ray.training.hooks import CheckpointStore
from hba_ray.training.loop import MakeBatches, State


class StageJob(Protocol):
    """Everything that a worker of a stage needs; a dataclass that can be pickled.

    Attributes:
        backbone: folder or hub id whose processor makes the micro-batches.
        index: the rows to train on and to validate with.
        checkpoint: folder of a checkpoint besides those of the store; see `hooks.Checkpoints.other`.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def spec(self) -> ExperimentSpec: ...
    @property
    def backbone(self) -> str: ...
    @property
    def index(self) -> AtlasIndex: ...
    @property
    def checkpoint(self) -> str | None: ...
    def settings_for(self, split: str) -> BatchSettings:
        """How a split's rows become micro-batches."""
        ...

    def train(self, make_batches: MakeBatches, store: CheckpointStore, rank: int = 0, world: int = 1) -> State:
        """Trains in one worker, from the newest checkpoint or from the start, to the end."""
        ...


Stage = tuple[StageJob, Path]
"""A job, and the folder of what it leaves."""

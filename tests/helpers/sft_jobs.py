"""A spec small enough to train in seconds, and a way to train it in this process."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from hba_ray.data.atlas import AtlasIndex
from hba_ray.specs import ExperimentSpec
from hba_ray.training.sft import SftJob

SMALL = {
    "name": "small",
    "atlas": {"source": "toy", "media": {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}},
    "model": {"backbone": "tiny", "train": "all"},
    "sft": {"epochs": 2, "batch": 8, "lr": 1e-3, "warmup_steps": 2, "max_gradient_norm": 1.0, "shuffle_window": 12},
    "compute": {"workers": 0, "micro_batch": 4, "fork": True},
}


def small_spec(**sections: dict) -> ExperimentSpec:
    raw = {name: value | sections.get(name, {}) if isinstance(value, dict) else value for name, value in SMALL.items()}
    return ExperimentSpec.model_validate(raw | {name: value for name, value in sections.items() if name not in SMALL})


@dataclass(frozen=True)
class Workshop:
    """Makes jobs in a folder of the test's own."""

    index: AtlasIndex
    backbone: Path
    folder: Path

    def job(self, spec: ExperimentSpec, name: str = "job") -> SftJob:
        return SftJob(spec, str(self.backbone), self.index, str(self.folder / f"{name}.jsonl"))

    def with_index(self, index: AtlasIndex) -> "Workshop":
        return replace(self, index=index)


def lines(log: Path) -> list[dict]:
    """The lines of a step log."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def losses(log: Path) -> list[float]:
    """The loss of every step and of every validation, in order."""
    return [line.get("loss", line.get("validation_loss")) for line in lines(log)]

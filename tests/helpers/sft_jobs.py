"""A spec small enough to train in seconds, and a way to train it in this process."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.feed.batches import BatchMaker, MicroBatch
from hba_ray.data.feed.order import Window
from hba_ray.data.feed.stream import make_here
from hba_ray.models.backbone import load_processor
from hba_ray.specs import ExperimentSpec
from hba_ray.training.deepspeed import join_process_group, start_engine
from hba_ray.training.loop import Feed, Run, fit
from hba_ray.training.sft import SftJob, build_model

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


class Cut(Exception):
    """Stands for a killed process."""


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


class _FirstGradient(Exception):
    """Ends training before its first optimiser step.

    Attributes:
        gradient: of all trained weights, in one row.
    """

    def __init__(self, gradient: torch.Tensor):
        self.gradient = gradient


class _Stopped:
    """A DeepSpeed engine that gives its gradient away in place of its first optimiser step."""

    def __init__(self, engine: Any):
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def step(self) -> None:
        if not self.engine.is_gradient_accumulation_boundary():
            return self.engine.step()
        trained = [weight for weight in self.engine.module.parameters() if weight.requires_grad]
        raise _FirstGradient(torch.cat([safe_get_full_grad(weight).flatten() for weight in trained]))


def first_gradient(job: SftJob) -> torch.Tensor:
    """The gradient of the first optimiser step of a job in this process, in fp32."""
    torch.manual_seed(job.spec.seed)
    model = build_model(job.spec, job.backbone, bf16=False)
    join_process_group(gpu=False)
    engine = start_engine(model, job.spec, steps=job.schedule_steps, bf16=False)
    processor = load_processor(job.backbone)

    def make_batches(split: str, windows: Sequence[Window]) -> Iterator[MicroBatch]:
        return make_here(BatchMaker(job.index, job.settings_for(split), processor, split), windows)

    feed = Feed(job.index, job.order(0, 1), make_batches)
    compute = job.spec.compute
    run = Run(_Stopped(engine), feed, epochs=1, accumulation=job.spec.accumulation, micro_batch=compute.micro_batch, seed=job.spec.seed)
    try:
        fit(run)
    except _FirstGradient as found:
        return found.gradient
    finally:
        engine.destroy()
    raise AssertionError("no optimiser step was taken")

"""A whole spec: all sections together, the rules that hold between them, and the settings of the released code."""

from __future__ import annotations

from math import gcd
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Added, Seed, Spec, has_key, once_each
from hba_ray.specs.paper import PaperSpec
from hba_ray.specs.sections.atlas import AtlasSpec
from hba_ray.specs.sections.bam import AUTHORS_BAM, BamSpec
from hba_ray.specs.sections.compute import ComputeSpec, ReportSpec, TrackingSpec
from hba_ray.specs.sections.descriptors import DescriptorsSpec
from hba_ray.specs.sections.evaluate import EvaluateSpec
from hba_ray.specs.sections.grpo import AUTHORS_GRPO, GrpoSpec
from hba_ray.specs.sections.model import MADE, ModelSpec, Precision
from hba_ray.specs.sections.sft import SftSpec, TransferSpec
from hba_ray.specs.sections.sweep import SweepSpec

AUTHORS: dict[str, dict[str, Any]] = {
    "atlas": {"media": {"video_min_pixels": 147_456, "image_pixels": 524_288, "image_min_pixels": 65_536}},
    "model": {"media_to_backbone": False, "lora": {"scope": "all"}, "prompt_layout": "released"},
    "sft": {"mode": "staged", "scheduler_horizon": "micro_batches", "answer_case": "lower", "epochs": 10},
    "bam": AUTHORS_BAM,
    "grpo": AUTHORS_GRPO,
    "evaluate": {"matching": "exact", "sentiment_merging": "with_weakly"},
}
"""The settings of the released code, which `compat: authors` takes for all keys that the spec does not set."""


class ExperimentSpec(Spec):
    """One experiment. Defaults are the paper's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the experiment and its run folder: letters, digits, dots, dashes, underscores."""
    seed: Seed = 0
    """Seed of initial weights, of the order of rows and of dropout."""
    compat: Literal["paper", "authors"] = "paper"
    """`authors` takes the settings of the released code where they differ from the paper's and the spec does not set them."""
    stages: tuple[Literal["sft", "bam", "transfer", "grpo"], ...] = ("sft",)
    """What is trained, in this order. The list may be empty where `evaluate.baselines` names models to evaluate."""
    atlas: AtlasSpec
    """Which rows are used, and how much of each clip."""
    descriptors: DescriptorsSpec = DescriptorsSpec()
    """Which behavioural descriptors are extracted, and how."""
    model: ModelSpec = ModelSpec()
    """The backbone, and what of it is trained."""
    sft: SftSpec = SftSpec()
    """Supervised fine-tuning."""
    bam: BamSpec = BamSpec()
    """Behavioral Adapter Modules on the SFT model."""
    transfer: TransferSpec = TransferSpec()
    """Fine-tuning on held-out datasets."""
    grpo: GrpoSpec = GrpoSpec()
    """Reinforcement learning."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """What is predicted and how it is scored."""
    sweep: SweepSpec | None = None
    """Which variants of this experiment are run; null runs just this one."""
    paper: PaperSpec | None = None
    """The published table beside which the results are shown. It changes no result."""
    compute: ComputeSpec = ComputeSpec()
    """Where it runs."""
    tracking: TrackingSpec = TrackingSpec()
    """Where it is recorded."""
    report: Annotated[ReportSpec, Added(before=ReportSpec())] = ReportSpec()
    """What is shown of people's texts."""

    @model_validator(mode="before")
    @classmethod
    def _compat(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("compat") == "authors":
            return _fill(raw, AUTHORS)
        return raw

    @field_validator("stages")
    @classmethod
    def _once_each(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        return once_each(stages, "a stage")

    @field_validator("stages")
    @classmethod
    def _bam_has_its_model(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        if "bam" in stages and "sft" not in stages[: stages.index("bam")]:
            raise ValueError("no stage 'sft' comes before 'bam', whose adapters are trained on the SFT model: add it")
        return stages

    @field_validator("paper")
    @classmethod
    def _settings_exist(cls, paper: PaperSpec | None) -> PaperSpec | None:
        for column, measured in (paper.arms if paper else {}).items():
            against = measured.against if measured and isinstance(measured.against, dict) else {}
            for name, keys in (("where", measured.where if measured else {}), ("against", against)):
                if unknown := [key for key in keys if not has_key(cls, key)]:
                    raise ValueError(f"arms.{column}.{name}: a spec has no key '{unknown[0]}'")
        return paper

    @model_validator(mode="after")
    def _evaluates_something(self) -> ExperimentSpec:
        if not self.stages and not self.evaluate.baselines:
            raise ValueError("stages is empty and evaluate.baselines too, so there is nothing to evaluate: name a stage or a baseline")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> ExperimentSpec:
        rows = self.compute.micro_batch * max(1, self.compute.workers)
        if "sft" in self.stages and self.sft.batch % rows:
            raise ValueError(
                f"sft.batch {self.sft.batch} is not a multiple of compute.micro_batch x compute.workers = {rows}: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _flash_attention_has_bf16(self) -> ExperimentSpec:
        if self.model.attention == "flash_attention_2" and not (self.uses_bf16 and self.compute.gpus_per_worker):
            raise ValueError("model.attention is 'flash_attention_2', which computes in bf16 on GPUs only: leave it out, or give 'sdpa'")
        return self

    @model_validator(mode="after")
    def _released_adapters_have_their_model(self) -> ExperimentSpec:
        if "bam" in self.stages and self.bam.checkpoints and self.sft.checkpoint is None:
            raise ValueError("bam.checkpoints were trained on a model that this spec does not name: give its folder as sft.checkpoint")
        return self

    @model_validator(mode="after")
    def _transfer_has_datasets(self) -> ExperimentSpec:
        if "transfer" in self.stages and not self.atlas.held_out:
            raise ValueError("the stage 'transfer' trains on held-out datasets, and atlas.held_out names none: name them")
        return self

    @model_validator(mode="after")
    def _nodes_see_the_atlas(self) -> ExperimentSpec:
        roots = [part.root for part in self.atlas.parts if "://" in (part.root or "")]
        if roots and self.compute.address != "local" and not self.compute.on_one_node:
            raise ValueError(
                f"atlas.root {roots[0]} is in a bucket and compute.storage is not: the nodes of a cluster fetch an atlas only where "
                "each step is done whole on one of them: give a storage in a bucket, too, or an atlas folder that all nodes see"
            )
        return self

    @model_validator(mode="after")
    def _grpo_fits(self) -> ExperimentSpec:
        if "grpo" not in self.stages:
            return self
        grpo, workers = self.grpo, max(1, self.compute.workers)
        before = self.stages[: self.stages.index("grpo")]
        if grpo.init == "sft" and "sft" not in before:
            raise ValueError(
                f"grpo.init is 'sft', and no stage 'sft' comes before 'grpo' in {list(self.stages)}: add it, or start from 'backbone'"
            )
        if grpo.nodes > 1 and self.compute.on_one_node:
            raise ValueError(
                "grpo.nodes is above 1 and compute.storage is in a bucket, with which each step is done whole on one node of the "
                "cluster: set grpo.nodes=1, or give a storage folder that all nodes see"
            )
        for name, shares in (("nodes", grpo.nodes), ("tensor_parallel", grpo.tensor_parallel)):
            if workers % shares:
                raise ValueError(f"compute.workers {workers} is not a multiple of grpo.{name} {shares}: change one of them")
        if self.compute.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"compute.gpus_per_worker is {self.compute.gpus_per_worker:g}; in the stage 'grpo' a worker has one whole GPU: give 1, or 0"
            )
        responses, held = grpo.mini_batch * grpo.rollouts, grpo.micro_batch * workers
        if responses % held:
            raise ValueError(
                f"grpo.mini_batch x grpo.rollouts = {responses} is not a multiple of grpo.micro_batch x compute.workers = {held}: "
                "change one of them"
            )
        return self

    @model_validator(mode="after")
    def _baselines_can_be_served(self) -> ExperimentSpec:
        for name in {*MADE} & {*self.evaluate.baselines} - {self.model.backbone}:
            raise ValueError(f"evaluate.baselines names '{name}', but model.backbone is '{self.model.backbone}': name that one")
        return self

    @property
    def precision(self) -> Precision:
        """What `model.precision` comes to on the workers' devices; a CPU has no TF32."""
        gpu = self.compute.gpus_per_worker > 0
        if self.model.precision == "auto":
            return "bf16" if gpu else "fp32"
        return "fp32" if self.model.precision == "tf32" and not gpu else self.model.precision

    @property
    def uses_bf16(self) -> bool:
        """Whether the model computes in bf16."""
        return self.precision == "bf16"

    def fitted_to(self, batch: int, **changes: Any) -> ExperimentSpec:
        """The spec with another `sft.batch` and other changes of `sft`, and with fewer workers and smaller micro-batches where the
        batch is too small for them."""
        micro_batch = gcd(self.compute.micro_batch, batch)
        workers = gcd(self.compute.workers, batch // micro_batch) if self.compute.workers else 0
        compute = self.compute.model_copy(update={"micro_batch": micro_batch, "workers": workers})
        return self.model_copy(update={"sft": self.sft.model_copy(update={"batch": batch, **changes}), "compute": compute})

    @property
    def accumulation(self) -> int:
        """Micro-batches that a worker accumulates for one optimiser step."""
        return self.sft.batch // (self.compute.micro_batch * max(1, self.compute.workers))


def _fill(raw: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`raw` with those keys of `defaults` added that it lacks, at every depth."""
    filled = dict(raw)
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(filled.get(key, {}), dict):
            filled[key] = _fill(filled.get(key, {}), value)
        else:
            filled.setdefault(key, value)
    return filled

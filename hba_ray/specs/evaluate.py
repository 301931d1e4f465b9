"""The `evaluate` section: which rows are predicted, how answers are decoded and graded, and which models stand beside ours untrained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from hba_ray.specs.atlas import Split
from hba_ray.specs.base import Seed, Spec
from hba_ray.specs.judge import JudgeSpec

AFTERWARDS = frozenset({"baselines", "generation", "judge", "retention", "robustness"})
"""Fields that are about other arms, or about what is done with predictions."""


class GenerationSpec(Spec):
    """How a model without classifier heads is asked, and how it decodes: baselines, and models trained by `grpo`."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`vllm` serves any multimodal model that vLLM knows; `transformers` decodes Qwen2.5-Omni on the path that training uses."""
    prompt: Literal["auto", "plain", "reasoning"] = "auto"
    """`plain`: the row's own prompt and, where it does not list the labels, these; `reasoning`: the prompt of reinforcement
    learning, which asks for a thought and a boxed answer; `auto`: `reasoning` for a model trained by `grpo`, else `plain`."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens of a response at most, its thoughts included."""
    context: int | None = Field(default=None, ge=64)
    """Tokens of prompt and response together at most; null is what the model and, with vLLM, the memory allow.
    A longer prompt is a bad row."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of the probability that sampling draws from."""
    seed: Seed = 0
    """Seed of the sampling."""


class EvaluateSpec(Spec):
    """Prediction and metrics. Decoding settings are part of a result's identity."""

    split: Split = "test"
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an open answer of a model with heads at most; its decoding is greedy."""
    baselines: tuple[str, ...] = ()
    """Models evaluated as they are, by hub id or folder; `tiny` is the spec's own tiny model before training."""
    generation: GenerationSpec = GenerationSpec()
    judge: JudgeSpec | None = None
    """Language model that grades open answers (paper appendix A.5); null scores them by exact match, a stricter measure."""
    retention: bool = False
    """Measure how open answers are written (Table 17): perplexity under the untrained backbone and, where there is a judge,
    fluency, coherence and relevance from 1 to 5."""
    robustness: tuple[Literal["audio", "video", "image"], ...] = ()
    """Modalities to withhold from the trained model, one at a time; each makes an arm of its own, "sft without audio"."""

    @field_validator("robustness")
    @classmethod
    def _no_modality_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"a modality is named twice in {list(names)}")
        return names

    @field_validator("baselines")
    @classmethod
    def _once_each(cls, baselines: tuple[str, ...]) -> tuple[str, ...]:
        if empty := [name for name in baselines if not name.strip()]:
            raise ValueError(f"a baseline is {empty[0]!r}; give a hub id such as owner/name, a folder, or tiny")
        if len(set(baselines)) != len(baselines):
            raise ValueError(f"a baseline is named twice in {list(baselines)}")
        return baselines

    def identity(self) -> dict[str, Any]:
        """What the predictions of a model with heads depend on."""
        return self.model_dump(mode="json", exclude=set(AFTERWARDS))

"""The `evaluate` section: which rows are predicted, how answers are decoded and graded, and which models stand beside ours untrained.

The `evaluate.judge` section names the language model that grades open answers.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from hba_ray.specs.atlas import Split
from hba_ray.specs.base import Seed, Spec, identity_values

REACHED_BY = frozenset({"base_url", "key_env", "concurrency", "retries", "timeout_seconds", "batch", "poll_seconds", "price"})
"""Fields that say how the judge is reached. They change no verdict and enter no fingerprint."""


class PriceSpec(Spec):
    """What the endpoint charges, US dollars per million tokens; with `batch`, its batch price."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class JudgeSpec(Spec):
    """A judge behind any endpoint that speaks the OpenAI chat-completions protocol."""

    model: str = Field(default="gpt-5-nano-2025-08-07", min_length=1)
    """Model that grades (paper appendix A.5: GPT-5-nano); give a dated name, so that it stays the same one."""
    base_url: str = "https://api.openai.com/v1"
    """Endpoint, up to and with its `/v1`; a local vLLM server is `http://localhost:8000/v1`."""
    key_env: str | None = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; null for an endpoint that asks for none."""
    prompts: str = Field(default="standard", min_length=1)
    """`standard`, `paraphrased` (the same criteria, reordered and reworded), or a YAML file in their form."""
    reply_format: Literal["auto", "schema", "text"] = "auto"
    """How the verdict is asked for: held to a JSON schema, in words, or the first of them that the endpoint takes."""
    max_tokens: int = Field(default=2048, ge=1)
    """Tokens of a reply at most, a reasoning model's thoughts included."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; null leaves it to the model, since reasoning models refuse it."""
    reasoning_effort: str | None = None
    """Effort of a reasoning model, as its endpoint names it (`minimal`, `low`); null leaves it to the model."""
    concurrency: int = Field(default=50, ge=1, le=1000)
    """Requests under way at a time."""
    retries: int = Field(default=5, ge=0, le=20)
    """Times that a request is repeated after 429, 5xx, a time-out, a lost connection or a damaged reply."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest wait for one reply."""
    batch: bool = False
    """Use the endpoint's Batch API: half the price at OpenAI, ready within a day, picked up again after an interruption."""
    poll_seconds: float = Field(default=60.0, gt=0)
    """Seconds between two looks at a batch."""
    price: PriceSpec | None = None
    """Price of the tokens, to show what grading costs; null shows tokens only."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url is {url!r}; give http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url holds a user, a password or a query; a spec is written to disk, so give secrets through key_env")
        return url.rstrip("/")

    def identity(self) -> dict[str, Any]:
        """Who judges, without how the judge is reached. A prompts file enters by its name here, by its content in `judge_fingerprint`."""
        return identity_values(self, exclude=REACHED_BY)


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
        return identity_values(self, exclude=AFTERWARDS)

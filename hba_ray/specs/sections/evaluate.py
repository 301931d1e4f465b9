"""The `evaluate` section: which split is predicted, how answers are decoded, which untrained models are evaluated as baselines,
and, under `judge`, which language model grades open answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from hba_ray.specs.base import Added, Seed, Spec, identity_values, once_each
from hba_ray.specs.reading.secrets import holds_secret, masked
from hba_ray.specs.sections.atlas import Split

REACHED_BY = frozenset({"base_url", "key_env", "concurrency", "retries", "timeout_seconds", "batch", "poll_seconds", "price"})
"""Fields of `JudgeSpec` that say how the judge is reached. They change no verdict and enter no fingerprint."""


class PriceSpec(Spec):
    """What the endpoint charges, in US dollars per million tokens; where `batch` is set, its price for batches."""

    input: float = Field(ge=0)
    """Price of the tokens of requests."""
    output: float = Field(ge=0)
    """Price of the tokens of replies."""


class JudgeSpec(Spec):
    """A language model that grades open answers, behind any endpoint with OpenAI's chat-completions protocol."""

    model: str = Field(default="gpt-5-nano-2025-08-07", min_length=1)
    """Name of the model (paper appendix A.5: GPT-5-nano). Give one with a date, which stays the same model."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the endpoint including `/v1`; that of a local vLLM server is `http://localhost:8000/v1`."""
    key_env: str | None = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; null for an endpoint that needs none."""
    prompts: str = Field(default="standard", min_length=1)
    """What the judge is asked: `standard`, `paraphrased` (the same criteria in other words and order), or a YAML file of that form."""
    reply_format: Literal["auto", "schema", "text"] = "auto"
    """How the verdict comes: `schema` holds the reply to a JSON schema, `text` asks for it in words, `auto` takes the first of
    these that the endpoint accepts."""
    max_tokens: int = Field(default=2048, ge=1)
    """Most tokens of a reply, including the thoughts of a reasoning model."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; null leaves it to the endpoint, since reasoning models refuse one."""
    reasoning_effort: str | None = None
    """Effort of a reasoning model, in the endpoint's words (`minimal`, `low`); null leaves it to the endpoint."""
    concurrency: int = Field(default=50, ge=1, le=1000)
    """Most requests under way at a time."""
    retries: int = Field(default=5, ge=0, le=20)
    """How often a request is repeated after status 429 or 5xx, a time-out, a lost connection or a damaged reply."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Seconds to wait for one reply."""
    batch: bool = False
    """Use the endpoint's Batch API, which at OpenAI costs half and replies within a day. After an interruption the batch is
    picked up again."""
    poll_seconds: float = Field(default=60.0, gt=0)
    """Seconds between two questions whether a batch is ready."""
    price: PriceSpec | None = None
    """Price of tokens, for the cost that reports show; null shows tokens only."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        in_url = "base_url holds a user, a password or a query; a spec is written to disk, so give secrets through key_env"
        if holds_secret(url):
            raise ValueError(in_url)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url is {masked(url)!r}; give http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(in_url)
        return url.rstrip("/")

    def identity(self) -> dict[str, Any]:
        """The fields that verdicts depend on. `prompts` is a name here; `judge.grade` puts the content of the prompts in its place."""
        return identity_values(self, exclude=REACHED_BY)


NOT_OF_HEADS = frozenset({"bag_of_words", "baselines", "generation", "judge", "matching", "retention", "robustness"})
"""Fields of `EvaluateSpec` on which the predictions of a model with classifier heads do not depend: they are about other models, or
about what is done with predictions later."""


class GenerationSpec(Spec):
    """How models without classifier heads, baselines and those trained by `grpo`, are prompted and decoded."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`vllm` runs any multimodal model that vLLM knows; `transformers` runs Qwen2.5-Omni with the code that training uses."""
    prompt: Literal["auto", "plain", "reasoning"] = "auto"
    """`plain` is the row's own prompt, with the labels added where it does not list them; `reasoning` is the prompt of
    reinforcement learning, which asks for a thought and a boxed answer; `auto` is `reasoning` for a model trained by `grpo` and
    `plain` for all others."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Most tokens of a response, including its thoughts."""
    context: int | None = Field(default=None, ge=64)
    """Most tokens of prompt and response together; null is what the model and, with vLLM, the memory allow. A row whose prompt is
    too long is a bad row (`atlas.on_bad_row`)."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability."""
    seed: Seed = 0
    """Seed of sampling."""


class EvaluateSpec(Spec):
    """What is predicted and how it is graded."""

    split: Split = "test"
    """Split that is predicted and scored."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of an open answer of a model with classifier heads, which decodes greedily."""
    baselines: tuple[str, ...] = ()
    """Models that are evaluated without training, by hub id or folder; `tiny` is the spec's own tiny model, untrained."""
    bag_of_words: Annotated[bool, Added(before=False)] = False
    """Also train and score a linear classifier on the words of the prompt, as the arm `probe words`: the floor of a language model."""
    generation: GenerationSpec = GenerationSpec()
    """Prompts and decoding of models without classifier heads."""
    matching: Annotated[Literal["lenient", "exact"], Added(before="lenient")] = "lenient"
    """When a response of a model without classifier heads names a class: `lenient` looks past punctuation and quotes around it and
    knows the spellings of the sources; `exact` takes the label alone, whatever the case of letters, as the released code does.
    The report says where the two differ."""
    sentiment_merging: Annotated[Literal["with_highly", "with_weakly"], Added(before="with_highly")] = "with_highly"
    """Which of the five sentiment classes of Table 19 takes in `negative` (and `positive`): `with_highly`, that of `highly
    negative`; `with_weakly`, that of `weakly negative`, as in the released code (helper_senti.py). The paper names no rule."""
    judge: JudgeSpec | None = None
    """Language model that grades open answers (paper appendix A.5); null scores them by exact match, which is stricter."""
    retention: bool = False
    """Also measure how open answers are written (Table 17): their perplexity under the untrained backbone and, where there is a
    judge, fluency, coherence and relevance from 1 to 5."""
    robustness: tuple[Literal["audio", "video", "image"], ...] = ()
    """Modalities that are withheld from the trained model, one at a time; each makes an arm such as "sft without audio"."""

    @field_validator("robustness")
    @classmethod
    def _no_modality_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return once_each(names, "a modality")

    @field_validator("baselines")
    @classmethod
    def _once_each(cls, baselines: tuple[str, ...]) -> tuple[str, ...]:
        if empty := [name for name in baselines if not name.strip()]:
            raise ValueError(f"a baseline is {empty[0]!r}; give a hub id such as owner/name, a folder, or tiny")
        return once_each(baselines, "a baseline")

    def identity(self) -> dict[str, Any]:
        """The fields that the predictions of a model with classifier heads depend on."""
        return identity_values(self, exclude=NOT_OF_HEADS)

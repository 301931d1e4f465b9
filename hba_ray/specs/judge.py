"""The judge of open answers: which language model grades them, with which prompts, and how it is reached."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from hba_ray.specs.base import Spec

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
        return self.model_dump(mode="json", exclude=set(REACHED_BY))

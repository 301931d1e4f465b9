"""The `evaluate` section: which rows are predicted, and how open answers are decoded."""

from __future__ import annotations

from pydantic import Field

from hba_ray.specs.atlas import Split
from hba_ray.specs.base import Spec


class EvaluateSpec(Spec):
    """Prediction and metrics. Decoding settings are part of a result's identity."""

    split: Split = "test"
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an open answer at most; decoding is greedy."""

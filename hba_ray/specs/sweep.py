"""The `sweep` section: which variants of an experiment are run, and how many at once.

Trials are all combinations of arms, axes, drawn points and seeds (specs/trials.py makes them).
Keys are dotted, `bam.hidden`, or nested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Seed, Spec

RANGES = ("uniform", "loguniform", "choice")


class DrawSpec(Spec):
    """How a value is drawn, in the words of Ray Tune; one of them is stated."""

    uniform: tuple[float, float] | None = None
    """From, to."""
    loguniform: tuple[float, float] | None = None
    """From, to; every decade is as likely as another."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_range(self) -> DrawSpec:
        stated = [name for name in RANGES if getattr(self, name) is not None]
        if len(stated) != 1:
            raise ValueError(f"state one of {', '.join(RANGES)}")
        low, high = self.uniform or self.loguniform or (0.0, 1.0)
        if low >= high:
            raise ValueError(f"{stated[0]} goes from {low:g} to {high:g}; the first has to be the smaller")
        if self.loguniform and low <= 0:
            raise ValueError(f"loguniform starts at {low:g}; it has to be above 0")
        return self


class AshaSpec(Spec):
    """Stops the worse trials early: asynchronous successive halving (Li et al., MLSys 2020), as Ray Tune does it."""

    metric: str = Field(default="sft/validation_loss", min_length=1)
    """A metric that training reports, under the name that MLflow shows."""
    mode: Literal["min", "max"] = "min"
    grace: int = Field(default=1, ge=1)
    """Reports of the metric before a trial can be stopped."""
    most: int = Field(default=100, ge=1)
    """Reports of the metric after which a trial is not compared any more."""
    reduction: float = Field(default=4, gt=1)
    """One trial in so many goes on at each look."""

    @model_validator(mode="after")
    def _grace_ends(self) -> AshaSpec:
        if self.grace > self.most:
            raise ValueError(f"grace {self.grace} is beyond most {self.most}, so no trial would ever be stopped")
        return self


class SweepSpec(Spec):
    """Variants of one experiment. Those that differ in nothing but later steps share the earlier ones."""

    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> what this arm sets; `{}` is the spec as it stands."""
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Key -> values; all combinations are run."""
    search: dict[str, DrawSpec] = Field(default_factory=dict)
    """Key -> range to draw from, `samples` times; reproducible, and a larger `samples` keeps the points of a smaller one."""
    samples: int | None = Field(default=None, ge=1)
    """Points drawn from `search`; equal ones count once."""
    seeds: tuple[Seed, ...] = ()
    """Seeds of each variant; none: the spec's own."""
    concurrent: int | None = Field(default=None, ge=1)
    """Trials at once at most; null is as many as the cluster's declared resources hold. Trials with `grpo` go one by one."""
    asha: AshaSpec | None = None
    """Early stopping; null lets every trial end."""

    @field_validator("axes", "search", mode="before")
    @classmethod
    def _dotted(cls, raw: Any) -> Any:
        return flat(raw) if isinstance(raw, Mapping) else raw

    @field_validator("arms", mode="before")
    @classmethod
    def _arms_dotted(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {name: flat(sets) if isinstance(sets, Mapping) else {} if sets is None else sets for name, sets in raw.items()}

    @field_validator("arms")
    @classmethod
    def _named(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in arms:
            if not name.strip() or len(name) > 80 or not set(name) <= _NAME:
                raise ValueError(f"the arm '{name}' needs a name of at most 80 letters, digits, spaces and any of {_SIGNS}")
        return arms

    @field_validator("axes")
    @classmethod
    def _axes_have_values(cls, axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in axes.items():
            if not values:
                raise ValueError(f"the axis '{key}' has no values")
        return axes

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"a seed is named twice in {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _sweeps_over_something(self) -> SweepSpec:
        if not (self.arms or self.axes or self.search or self.seeds):
            raise ValueError("the sweep varies nothing: give axes, arms, search or seeds")
        if bool(self.search) != (self.samples is not None):
            missing = (
                "search needs samples, the number of points to draw" if self.search else "samples are drawn from search, which is missing"
            )
            raise ValueError(missing)
        return self


_SIGNS = "+-_.,=()/"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 " + _SIGNS)


def flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; a range to draw from counts as one value.

    >>> flat({"sft": {"lr": [1, 2]}, "bam.hidden": [256]})
    {'sft.lr': [1, 2], 'bam.hidden': [256]}
    >>> flat({"sft": {"lr": {"uniform": [0, 1]}}})
    {'sft.lr': {'uniform': [0, 1]}}
    """
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not set(value) <= set(RANGES):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves

"""The `sweep` section: which variants of an experiment are run, and how many side by side.

A sweep's trials are all combinations of its arms, axes, drawn points and seeds (`specs/trials.py` makes them).
Keys of the spec are dotted, as in `bam.hidden`, or nested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Added, Seed, Spec, flat, once_each

RANGES = ("uniform", "loguniform", "choice")
"""Fields of `DrawSpec`."""


class DrawSpec(Spec):
    """A range to draw a value from, in the words of Ray Tune. Exactly one of the fields is given."""

    uniform: tuple[float, float] | None = None
    """Lower and upper bound; all values between are equally likely."""
    loguniform: tuple[float, float] | None = None
    """Lower and upper bound; all decades between are equally likely."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Values, of which each is equally likely."""

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
    """Early stopping of the worse trials: asynchronous successive halving (Li et al., MLSys 2020) by Ray Tune."""

    metric: str = Field(default="sft/validation_loss", min_length=1)
    """Metric that trials are compared by, under the name that MLflow shows."""
    mode: Literal["min", "max"] = "min"
    """Whether small or large values of the metric are good."""
    grace: int = Field(default=1, ge=1)
    """Values of the metric that a trial reports before it can be stopped."""
    most: int = Field(default=100, ge=1)
    """Values of the metric after which a trial is no longer compared."""
    reduction: float = Field(default=4, gt=1)
    """At each comparison one trial in so many goes on."""

    @model_validator(mode="after")
    def _grace_ends(self) -> AshaSpec:
        if self.grace > self.most:
            raise ValueError(f"grace {self.grace} is beyond most {self.most}, so no trial would ever be stopped")
        return self


class SweepSpec(Spec):
    """Variants of one experiment. Variants share all steps that do not depend on what differs between them."""

    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name of an arm -> the keys that it sets; `{}` is the spec as it stands."""
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Key -> its values; all combinations are run."""
    search: dict[str, DrawSpec] = Field(default_factory=dict)
    """Key -> range from which `samples` values are drawn. Draws are reproducible, and more samples keep the points of fewer."""
    samples: int | None = Field(default=None, ge=1)
    """Points drawn from `search`; equal points are run once."""
    seeds: tuple[Seed, ...] = ()
    """Seeds with which each variant is run; an empty list means the spec's own."""
    concurrent: int | None = Field(default=None, ge=1)
    """Most trials at a time; null is as many as fit on the cluster. Trials with the stage `grpo` run one by one, but
    for those whose steps have a Ray each, since the storage is in a bucket."""
    asha: AshaSpec | None = None
    """Early stopping of the worse trials; null lets every trial end."""
    budget: Annotated[str | None, Added(before=None)] = Field(default=None, pattern=r"^\d+(\.\d+)?(gpuh|usd)$")
    """What the trials may cost together, in GPU-hours as 20gpuh or, where prices of nodes are stated, in US dollars as 300usd. Once it is
    spent no trial is started any more, and those that run go on to their end. The same command with a larger budget goes on."""

    @field_validator("axes", "search", mode="before")
    @classmethod
    def _dotted(cls, raw: Any) -> Any:
        return flat(raw, whole=_is_range) if isinstance(raw, Mapping) else raw

    @field_validator("arms", mode="before")
    @classmethod
    def _arms_dotted(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {
            name: flat(sets, whole=_is_range) if isinstance(sets, Mapping) else {} if sets is None else sets for name, sets in raw.items()
        }

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
        return once_each(seeds, "a seed")

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


def _is_range(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping says how a value is drawn, and so is one value of the sweep.

    >>> flat({"sft": {"lr": {"uniform": [0, 1]}}, "bam.hidden": [256]}, whole=_is_range)
    {'sft.lr': {'uniform': [0, 1]}, 'bam.hidden': [256]}
    """
    return set(value) <= set(RANGES)

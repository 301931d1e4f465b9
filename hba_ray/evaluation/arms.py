"""An arm is a variant of the model that is evaluated for itself: what it was trained by, and what is withheld from it.

Reports name arms, so an arm is printed and parsed here, and nowhere else:

    sft, sft+bam, transfer        trained by these stages, in this order
    sft+bam without audio         evaluated without this modality
    sft without media             evaluated without audio and video
    zero-shot Qwen2.5-Omni-7B     a baseline, as it is published
    probe pose, probe words       a linear classifier on one stream of descriptors, or on the words of the prompt
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hba_ray.specs import ExperimentSpec

MEDIA = ("audio", "video")
"""The modalities that `bam.raw_media: false` withholds from the model (paper Table 10)."""
GENERATIVE_STAGES = frozenset({"grpo"})
"""Stages whose models have no heads and answer every question by generation."""

_WITHOUT, _AND, _ALL_MEDIA, _BASELINE, _PROBE = " without ", " and ", "media", "zero-shot ", "probe "


@dataclass(frozen=True)
class Arm:
    """A variant of the model.

    Attributes:
        stages: that trained it, in order; none for a baseline and a probe.
        withheld: modalities that it is not shown when it is evaluated.
        baseline: a published model that is evaluated untrained: the last part of its name, or all of it where two end alike.
        probe: the stream of descriptors, or `words`, that a linear classifier reads.
    """

    stages: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    baseline: str | None = None
    probe: str | None = None

    @classmethod
    def parse(cls, name: str) -> Arm:
        """
        >>> Arm.parse("sft+bam without audio")
        Arm(stages=('sft', 'bam'), withheld=('audio',), baseline=None, probe=None)
        >>> str(Arm.parse("sft without media")), Arm.parse("zero-shot tiny").baseline
        ('sft without media', 'tiny')
        """
        if name.startswith(_BASELINE):
            return cls(baseline=name.removeprefix(_BASELINE))
        if name.startswith(_PROBE):
            return cls(probe=name.removeprefix(_PROBE))
        stages, _, withheld = name.partition(_WITHOUT)
        return cls(tuple(stages.split("+")), MEDIA if withheld == _ALL_MEDIA else tuple(withheld.split(_AND)) if withheld else ())

    def __str__(self) -> str:
        if self.baseline is not None:
            return f"{_BASELINE}{self.baseline}"
        if self.probe is not None:
            return f"{_PROBE}{self.probe}"
        withheld = _ALL_MEDIA if self.withheld == MEDIA else _AND.join(self.withheld)
        return "+".join(self.stages) + (f"{_WITHOUT}{withheld}" if withheld else "")

    @property
    def last_stage(self) -> str | None:
        """The stage whose model predicts; None for a baseline and a probe."""
        return self.stages[-1] if self.stages else None

    @property
    def has_adapters(self) -> bool:
        return "bam" in self.stages

    @property
    def is_transferred(self) -> bool:
        """Whether each held-out dataset is predicted by a model of its own."""
        return self.last_stage == "transfer"

    @property
    def is_generative(self) -> bool:
        """Whether it answers by generation alone, without heads."""
        return self.baseline is not None or self.last_stage in GENERATIVE_STAGES

    @property
    def whole(self) -> Arm:
        """The same variant with nothing withheld."""
        return replace(self, withheld=())

    def adds_to(self, other: Arm) -> bool:
        """Whether it has one stage more than the other arm, whatever is withheld from each.

        >>> Arm.parse("sft+bam").adds_to(Arm.parse("sft without media")), Arm.parse("sft+bam").adds_to(Arm.parse("sft+bam without audio"))
        (True, False)
        """
        return len(self.stages) > 1 and self.stages[:-1] == other.stages


SFT = Arm(("sft",))
ADAPTED = Arm(("sft", "bam"))
"""The SFT model with the adapters of BAM."""


def arms_of(spec: ExperimentSpec) -> list[Arm]:
    """The arms that a spec evaluates, in the order of its reports: those of its stages, the same without what
    `evaluate.robustness` names, and its baselines. Probes, of `descriptors.probe` and `evaluate.bag_of_words`, are not among them."""
    made: list[Arm] = []
    for stage in spec.stages:
        if stage == "bam":
            made += [ADAPTED] if spec.bam.raw_media else [adapted_model(spec), ADAPTED]
        else:
            made.append(transferred(spec) if stage == "transfer" else Arm((stage,)))
    shown_media = [arm for arm in made if arm == SFT or (arm == ADAPTED and spec.bam.raw_media)]
    robustness = [replace(arm, withheld=(modality,)) for arm in shown_media for modality in spec.evaluate.robustness]
    return [*made, *robustness, *baselines(spec)]


def adapted_model(spec: ExperimentSpec) -> Arm:
    """The SFT model, shown what it is shown beside its adapters: where these have nothing to add, its answers stand."""
    return SFT if spec.bam.raw_media else replace(SFT, withheld=MEDIA)


def transferred(spec: ExperimentSpec) -> Arm:
    """`sft+transfer` where the stage `sft` comes before, else `transfer`, which starts from the backbone."""
    return Arm(("sft", "transfer") if "sft" in spec.stages[: spec.stages.index("transfer")] else ("transfer",))


def baselines(spec: ExperimentSpec) -> dict[Arm, str]:
    """Arm -> hub id, folder or `tiny`, of each model in `evaluate.baselines`."""
    ends = Counter(last_part(model) for model in spec.evaluate.baselines)
    return {Arm(baseline=last_part(model) if ends[last_part(model)] == 1 else model): model for model in spec.evaluate.baselines}


def last_part(model: str) -> str:
    """The name of a model without its owner or folder."""
    return Path(model).name or model


def held_against(spec: ExperimentSpec, arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The arm that another one is compared with: an arm from which something is withheld with the whole one, adapters
    with the model that they adapt, every other arm with the first.

    Args:
        arms: all arms of the report, in order.

    Returns:
        None for the first arm.
    """
    if arm.withheld and arm.whole in arms:
        return arm.whole
    if arm == ADAPTED:
        return adapted_model(spec)
    return None if arm == arms[0] else arms[0]

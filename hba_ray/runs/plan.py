"""Spec -> steps, in order. Each step is named by the fingerprint of all that its result depends on.

`compute` and `tracking` are no part of it: the same experiment on another machine is the same
experiment. Steps that two specs share have the same fingerprint, and are done once.

An arm is a variant of the model that is evaluated for itself; reports list the arms side by side.
"""

from __future__ import annotations

from hba_ray.errors import SpecError
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.steps import atlas, backbone, bam, compare, describe, evaluate, generation, grpo, judge, probe, retention, sft, transfer
from hba_ray.steps.base import Draft, Step
from hba_ray.store.folders import Storage

STAGES = {"sft": sft.plan, "bam": bam.plan, "transfer": transfer.plan, "grpo": grpo.plan}
"""Stage of a spec -> what adds its steps to a plan."""


def plan(spec: ExperimentSpec, storage: Storage) -> list[Step]:
    """The steps of an experiment, in order.

    Raises:
        SpecError: a stage has no steps, or the judge's prompts are not in order.
        DataError: the atlas or a converter's files are not there.
        CheckpointError: the backbone is a folder that is not there.
    """
    draft = Draft(spec, storage)
    atlas.plan(draft)
    describe.plan(draft)
    backbone.plan(draft)
    for stage in spec.stages:
        if stage not in STAGES:
            raise SpecError("stages", f"no steps for '{stage}' are there yet", f"there are: {', '.join(STAGES)}")
        STAGES[stage](draft)
    for arm in arms(spec):
        evaluate.plan(draft, arm)
    predicted = [step for step in draft.steps if step.arm]
    for step in predicted:
        judge.plan(draft, step)
    for step in predicted:
        compare.plan(draft, step.arm or "")
    probe.plan(draft)
    for step in predicted:
        retention.plan(draft, step)
    return draft.steps


def arms(spec: ExperimentSpec) -> list[str]:
    """The arms that a spec's stages make, as reports name them, those without what `evaluate.robustness` names, and its baselines."""
    several = {"bam": bam.arms, "transfer": lambda of: [transfer.arm(of)]}
    made = [arm for stage in spec.stages for arm in (several[stage](spec) if stage in several else [stage])]
    less = [f"{arm}{evaluate.WITHOUT}{name}" for arm in evaluate.seeing(spec, made) for name in spec.evaluate.robustness]
    return [*made, *less, *generation.baselines(spec)]


def run_fingerprint(steps: list[Step]) -> str:
    """Names the experiment: what its results, those of its last steps, depend on."""
    return fingerprint([step.fingerprint for step in steps if step.arm])

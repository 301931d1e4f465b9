"""What steps that train say before they begin: where they go on from, and whether a shorter run of the same settings is finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Draft, Step
from hba_ray.store.folders import read_lines


def begins(name: str, reached: int, total: int, log: Path, way_out: str) -> str | None:
    """A line on where a step goes on from; None where nobody has begun it before.

    Args:
        reached: optimiser steps that the checkpoint holds which training goes on from; 0 where there is none.
        log: of the step, as an earlier attempt left it.
        way_out: how checkpoints are written earlier.

    >>> begins("sft", 40, 120, Path("metrics.jsonl"), "")
    'sft: continues at step 40 of 120'
    """
    if reached:
        return f"{name}: continues at step {reached} of {total}"
    steps = max((int(line["step"]) for line in read_lines(log) if "step" in line), default=0)
    return f"{name}: an earlier attempt ended at step {steps}, before its first checkpoint; starts again ({way_out})" if steps else None


def shorter(context: Context, key: str) -> tuple[int, Step] | None:
    """The longest finished step that differs from the context's in nothing but its length; None where there is none.

    Args:
        key: dotted key of the length, a whole number, for example `sft.epochs`.

    Returns:
        Its length, and the step.
    """
    section, name = key.split(".")
    length: int = getattr(getattr(context.spec, section), name)
    kind = context.step.kind
    before = [step for step in context.earlier.values() if step.kind != kind]
    for fewer in range(length - 1, 0, -1):
        draft = Draft(_with(context.spec, section, name, fewer), context.storage, list(before))
        kind.plan(draft)
        if (step := draft[context.step.name]).is_done:
            return fewer, step
    return None


def _with(spec: ExperimentSpec, section: str, name: str, value: int) -> ExperimentSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update={name: value})})


def mention(context: Context, key: str, why_not: str) -> str | None:
    """A line on the finished step that `shorter` finds, and why it is not continued; None where there is none."""
    found = shorter(context, key)
    if found is None:
        return None
    length, step = found
    return f"{context.step.name}: the same with {key}={length} is finished in {step.folder}; it is not continued, since {why_not}"


def always_zero(lines: Iterable[Mapping[str, float]], name: str) -> bool:
    """Whether a gradient's norm or a learning rate was 0 in every line of a step's log, so that nothing can have been learnt.

    Args:
        name: in the log. A log of a former version, which did not tell it, says nothing.
    """
    values = [line[name] for line in lines if name in line]
    return bool(values) and not any(values)

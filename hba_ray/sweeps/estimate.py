"""What a sweep will need: resources at a time, and time, as far as finished steps tell."""

from __future__ import annotations

from statistics import median

from hba_ray.runtime.session import local_cpus, rollout_cpus
from hba_ray.runtime.storage import Storage, done
from hba_ray.sweeps.shared import SweepPlan
from hba_ray.sweeps.steps.base import training_resources


def estimate(plan: SweepPlan) -> list[tuple[str, str]]:
    """What it is, what it needs, how much is shared and what is not done costs: (word, line) each, for people."""
    finished = sum(trial.report() is not None for trial in plan.trials)
    steps = plan.distinct()
    left = [step for step in steps if not step.is_done]
    unshared = sum(len(trial.steps) for trial in plan.trials)
    rollouts = any("grpo" in trial.spec.stages for trial in plan.trials)
    verl = f", verl beside them {rollout_cpus(plan.spec.compute)} CPUs" if rollouts else ""
    return [
        ("trials", f"{len(plan.trials)} = {_varied(plan)}; done: {finished}"),
        ("steps", f"{len(steps)} in place of {unshared}, since trials share them; to do: {len(left)}"),
        ("needs", f"a trial {training_resources(plan.spec)}{verl}; trials at a time: {_at_once(plan)}"),
        ("cost", _cost(plan, [step.kind for step in left])),
    ]


def _varied(plan: SweepPlan) -> str:
    """What the trials are the product of.

    For example `bam.hidden (2) x seeds (3)`.
    """
    sweep = plan.spec.sweep
    if sweep is None:
        return "1"
    counts = {"arms": len(sweep.arms), **{key: len(values) for key, values in sweep.axes.items()}}
    drawn = {f"points of {', '.join(sweep.search)}": sweep.samples or 0}
    counts |= {**(drawn if sweep.search else {}), "seeds": len(sweep.seeds)}
    return " x ".join(f"{name} ({count})" for name, count in counts.items() if count)


def _at_once(plan: SweepPlan) -> str:
    spec, sweep = plan.spec, plan.spec.sweep
    if not spec.compute.workers:
        return "1, as compute.workers is 0"
    if any("grpo" in trial.spec.stages for trial in plan.trials):
        return "1, as verl takes a cluster to itself"
    most = f", sweep.concurrent is {sweep.concurrent}" if sweep and sweep.concurrent else ""
    if spec.compute.address != "local":
        return f"as many as the cluster's declared resources hold{most}"
    compute = spec.compute
    fits = int(local_cpus(compute) / (compute.workers * (compute.cpus_per_worker + compute.loaders * compute.cpus_per_loader)) + 1e-9)
    return f"{min(fits, sweep.concurrent or fits) if sweep else fits} (CPUs here: {local_cpus(compute)}{most})"


def _cost(plan: SweepPlan, kinds: list[str]) -> str:
    """Of the steps that are left, by the median of those of their kind that are done in this storage."""
    if not kinds:
        return "none, all is done"
    seconds = measured_seconds(plan.storage)
    unknown = sorted({kind for kind in kinds if kind not in seconds})
    hours = sum(seconds[kind] for kind in kinds if kind in seconds) / 3600
    compute = plan.spec.compute
    gpus = compute.workers * compute.gpus_per_worker
    if not hours:
        return "unknown until such steps have been done in this storage; the head of a shipped spec has an estimate"
    price = f"about {_time(hours)} one after the other" + (f", {hours * gpus:.2g} GPU-hours" if gpus else "")
    rest = f"; not counted, as none is done here yet: {', '.join(unknown)}" if unknown else ""
    return f"{price}, as long as such steps took here{rest}"


def _time(hours: float) -> str:
    """
    >>> _time(0.05), _time(30)
    ('3 min', '30 h')
    """
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h"


def measured_seconds(storage: Storage) -> dict[str, float]:
    """Kind of a step -> median wall time of those that are done in this storage."""
    times: dict[str, list[float]] = {}
    for folder in (storage.folder / "steps").glob("*-*"):
        facts = done(folder)
        if facts and "seconds" in facts:
            times.setdefault(folder.name.rpartition("-")[0], []).append(facts["seconds"])
    return {kind: median(values) for kind, values in times.items()}

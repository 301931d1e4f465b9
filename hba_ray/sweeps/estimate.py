"""What a sweep will need: resources at a time, and time, as far as finished steps tell."""

from __future__ import annotations

from statistics import median

from hba_ray.runtime.session import local_cpus
from hba_ray.runtime.storage import Storage, done
from hba_ray.sweeps.shared import SweepPlan
from hba_ray.sweeps.steps.base import training_resources


def estimate(plan: SweepPlan) -> list[str]:
    """Lines for people: trials, resources, and the cost of what is not done."""
    finished = sum(trial.report() is not None for trial in plan.trials)
    steps = plan.distinct()
    left = [step for step in steps if not step.is_done]
    unshared = sum(len(trial.steps) for trial in plan.trials)
    return [
        f"{len(plan.trials)} trials, {finished} done; {len(steps)} steps in place of {unshared}, {len(left)} of them to do",
        f"a trial needs {training_resources(plan.spec)}; at a time: {_at_once(plan)}",
        _cost(plan, [step.kind for step in left]),
    ]


def _at_once(plan: SweepPlan) -> str:
    spec, sweep = plan.spec, plan.spec.sweep
    if not spec.compute.workers:
        return "1 (compute.workers is 0)"
    if any("grpo" in trial.spec.stages for trial in plan.trials):
        return "1 (trials with grpo go one by one)"
    most = f", {sweep.concurrent} at most" if sweep and sweep.concurrent else ""
    if spec.compute.address != "local":
        return f"as many as the cluster's declared resources hold{most}"
    compute = spec.compute
    fits = int(local_cpus(compute) / (compute.workers * (compute.cpus_per_worker + compute.loaders * compute.cpus_per_loader)) + 1e-9)
    return f"{min(fits, sweep.concurrent or fits) if sweep else fits} ({local_cpus(compute)} CPUs{most})"


def _cost(plan: SweepPlan, kinds: list[str]) -> str:
    """Of the steps that are left, by the median of those of their kind that are done in this storage."""
    if not kinds:
        return "nothing is left to do"
    seconds = measured_seconds(plan.storage)
    unknown = sorted({kind for kind in kinds if kind not in seconds})
    hours = sum(seconds[kind] for kind in kinds if kind in seconds) / 3600
    compute = plan.spec.compute
    gpus = compute.workers * compute.gpus_per_worker
    price = f"about {hours:.2g} hours one after the other" + (f", {hours * gpus:.2g} GPU-hours" if gpus else "")
    rest = f"; no step like {', '.join(unknown)} is done here yet, so those are not counted" if unknown else ""
    return f"cost: {price}, as long as such steps took here{rest}" if hours else f"cost: unknown{rest}"


def measured_seconds(storage: Storage) -> dict[str, float]:
    """Kind of a step -> median wall time of those that are done in this storage."""
    times: dict[str, list[float]] = {}
    for folder in (storage.folder / "steps").glob("*-*"):
        facts = done(folder)
        if facts and "seconds" in facts:
            times.setdefault(folder.name.rpartition("-")[0], []).append(facts["seconds"])
    return {kind: median(values) for kind, values in times.items()}

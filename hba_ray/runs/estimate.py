"""What is left of a plan will need and cost, for people who look at it before they start it.

Costs come from a model of costs: rows, tokens and operations (models/size/estimates.py), on the kind of GPU that is here or, where
none is, on the paper's. Where steps of the same model have been done in this storage on the same processors, their rate is taken.
Runs of another model say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from hba_ray.cluster.machine import gpus
from hba_ray.cluster.session import fitting_trials, local_cpus
from hba_ray.models.size.estimates import ASSUMED, FP32_SLOWER, GpuKind, gpu_named
from hba_ray.rl.settings import cpus_needed
from hba_ray.runs.plan import Experiment
from hba_ray.runs.preflight import in_a_line
from hba_ray.runs.sweep_plan import SweepPlan
from hba_ray.steps.base import training_resources
from hba_ray.steps.run import WORK, rows_of, setting_of
from hba_ray.store.folders import Storage, done


def estimate(plan: SweepPlan) -> list[tuple[str, str]]:
    """(word, line) pairs for people: the trials, the shared steps, the resources, and the cost of what is not done yet."""
    finished = sum(trial.report() is not None for trial in plan.trials)
    steps = plan.distinct()
    left = [step for step in steps if not step.is_done]
    unshared = sum(len(trial.steps) for trial in plan.trials)
    rollouts = max(cpus_needed(trial.spec).total for trial in plan.trials)
    verl = f", verl beside them {rollouts} CPUs" if rollouts else ""
    return [
        ("trials", f"{len(plan.trials)} = {_varied(plan)}; done: {finished}"),
        ("steps", f"{len(steps)} in place of {unshared}, since trials share them; to do: {len(left)}"),
        ("needs", f"a trial {training_resources(plan.spec)}{verl}; trials at a time: {_at_once(plan)}"),
        *outlook(plan.trials),
    ]


def _varied(plan: SweepPlan) -> str:
    """The axes and counts whose product the trials are.

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
    if any("grpo" in trial.spec.stages for trial in plan.trials) and not spec.compute.on_one_node:
        return "1, as verl takes a cluster to itself"
    most = f", sweep.concurrent is {sweep.concurrent}" if sweep and sweep.concurrent else ""
    if spec.compute.address != "local":
        return f"as many as the cluster's declared resources hold{most}"
    compute = spec.compute
    fits = fitting_trials(compute, local_cpus(compute), len(gpus()))
    return f"{min(fits, sweep.concurrent or fits) if sweep else fits} (CPUs here: {local_cpus(compute)}{most})"


def outlook(trials: Sequence[Experiment]) -> list[tuple[str, str]]:
    """(word, line) pairs on what is left of an experiment, or of several that share steps: rows, cost, and what is missing here."""
    spec, atlas = trials[0].spec, trials[0].step("atlas")
    rows = rows_of(spec, atlas)
    counted = f"{sum(map(sum, rows.counts.values())):,} by {rows.source}".replace(",", " ")
    waiting = "; fingerprints change when the data are there" if trials[0].absent else ""
    absent = [("not there", f"{error.where}: {error.what}{waiting}") for error in trials[0].absent]
    return [*absent, ("rows", counted), ("cost", cost(trials).in_words()), ("doctor", in_a_line(trials))]


@dataclass(frozen=True)
class PlanCost:
    """The cost of what is left.

    Attributes:
        hours: of wall time, one step after the other.
        gpu_hours: of the GPUs that workers hold meanwhile.
        gpu: their kind; None on CPUs.
        is_here: whether this machine has such a GPU, or else it is assumed.
        measured, estimated, unknown: kinds of steps, by where their cost comes from; of the last none is known.
        left: whether any step is left.
    """

    hours: float
    gpu_hours: float
    gpu: str | None
    is_here: bool
    measured: frozenset[str]
    estimated: frozenset[str]
    unknown: frozenset[str]
    left: bool

    def in_words(self) -> str:
        if not self.left:
            return "none, all is done"
        unknown = f"not known: {', '.join(sorted(self.unknown))}, of which none is done here with this model" if self.unknown else ""
        if not self.hours:
            return unknown or "no step is left in which a model trains or answers"
        price = f"about {amount(self.gpu_hours)} {self.gpu}-hours, {_time(self.hours)}" if self.gpu else f"about {_time(self.hours)}"
        assumed = "" if self.is_here or not self.gpu else f"; {self.gpu} GPUs are assumed, as none is here"
        sources = [f"estimated by operations: {', '.join(sorted(self.estimated))}"] if self.estimated else []
        sources += [f"as fast as this model was here: {', '.join(sorted(self.measured))}"] if self.measured else []
        return "; ".join([f"{price} one step after the other ({'; '.join(sources)}{assumed})", *([unknown] if unknown else [])])


def cost(trials: Sequence[Experiment], gpu: str | None = None) -> PlanCost:
    """The cost of the steps of experiments that are not done yet, those that several share once.

    Args:
        gpu: kind of GPU; by default that of this machine or, where it has none of a known kind, the paper's.
    """
    compute = trials[0].spec.compute
    kind, is_here = _kind(gpu)
    _, held_gpus = compute.held
    left = {step.fingerprint: (trial, step) for trial in trials for step in trial.steps if not step.is_done}
    rates: dict[tuple[str, str], float | None] = {}
    hours, sources = 0.0, {"measured": set(), "estimated": set(), "unknown": set()}
    for trial, step in left.values():
        spec, name = trial.spec, step.kind.name
        work = step.kind.work(step, rows_of(spec, trial.step("atlas")))
        if work is None:
            continue
        key = (name, setting_of(spec))
        if key not in rates:
            rates[key] = _rate(Storage(spec.compute.storage), *key)
        rate = rates[key]
        if not work.is_known:
            sources["unknown"].add(name)
        elif rate:
            sources["measured"].add(name)
            hours += rate * work.operations / 3600
        elif not compute.gpus_per_worker:
            sources["unknown"].add(name)
        else:
            sources["estimated"].add(name)
            on = kind if spec.uses_bf16 else replace(kind, operations=kind.operations / FP32_SLOWER)
            hours += on.seconds(work, held_gpus) / 3600
    named = kind.name if compute.gpus_per_worker else None
    found = {name: frozenset(kinds) for name, kinds in sources.items()}
    return PlanCost(hours, hours * held_gpus, named, is_here, left=bool(left), **found)


def _kind(asked: str | None) -> tuple[GpuKind, bool]:
    """A kind of GPU, and whether it is here."""
    found = [kind for gpu in ([] if asked else gpus()) if (kind := gpu_named(gpu.name))]
    kind = found[0] if found else gpu_named(asked or ASSUMED)
    if kind is None:
        raise ValueError(f"no kind of GPU is named {asked}")
    return kind, bool(found)


def _rate(storage: Storage, kind: str, setting: str) -> float | None:
    """Seconds an operation of the steps of a kind that are done in this storage with the same model on the same processors."""
    rates = list(_rates(storage, kind, setting))
    return median(rates) if rates else None


def _rates(storage: Storage, kind: str, setting: str) -> Iterable[float]:
    for folder in storage.steps_of(kind):
        said = done(folder) or {}
        work, seconds = said.get(WORK), said.get("seconds")
        if isinstance(work, dict) and work.get("setting") == setting and work.get("operations") and seconds:
            yield seconds / work["operations"]


def amount(hours: float) -> str:
    """Hours to two digits, as costs are written.

    >>> amount(0.034), amount(3.26), amount(618.2)
    ('0.034', '3.3', '620')
    """
    rounded = float(f"{hours:.2g}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:g}"


def _time(hours: float) -> str:
    """
    >>> _time(0.05), _time(30)
    ('3 min', '30 h')
    """
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h"

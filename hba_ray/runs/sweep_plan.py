"""What a sweep has to do: its trials' steps, those that several trials share, in which order, and what it will need.

Nothing is written, and of the storage only what is done is read. Steps that all trials share are done first, once; then,
side by side, those that some of them share; then the trials. Steps are locked, so the order is a matter of speed and not
of correctness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from hba_ray.cluster.session import fitting_trials, local_cpus, rollout_cpus
from hba_ray.errors import SpecError
from hba_ray.runs.plan import Experiment, plan
from hba_ray.specs import ExperimentSpec, fingerprint, trials
from hba_ray.specs.trials import in_words
from hba_ray.steps import KINDS
from hba_ray.steps.base import Step, StepKind, training_resources
from hba_ray.store.folders import Storage, done
from hba_ray.store.provenance import gpu_names


@dataclass(frozen=True)
class Assignment:
    """Work for one process: the first steps of a trial, or all of it.

    Attributes:
        steps: how many; None is the whole trial.
    """

    trial: Experiment
    steps: int | None = None

    @property
    def name(self) -> str:
        if self.steps is None:
            return self.trial.name
        return f"{self.trial.steps[self.steps - 1].name} of {self.trial.name}"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, planned."""

    spec: ExperimentSpec
    storage: Storage
    trials: tuple[Experiment, ...]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([trial.fingerprint for trial in self.trials])

    @property
    def folder(self) -> Path:
        return self.storage.run(self.spec.name, self.fingerprint)

    @cached_property
    def users(self) -> Counter[str]:
        """Step's fingerprint -> number of trials that need it."""
        return Counter(step.fingerprint for trial in self.trials for step in trial.steps)

    def shared(self) -> list[Step]:
        """The steps that more than one trial needs, each once, in order."""
        return [step for step in self.distinct() if self.users[step.fingerprint] > 1]

    def distinct(self) -> list[Step]:
        """All steps, each once, in the order in which trials first need them."""
        return list({step.fingerprint: step for trial in self.trials for step in trial.steps}.values())

    def users_of(self, step: Step) -> str:
        """A phrase that says which trials need a step: how many, and the settings that they have in common."""
        needing = [trial for trial in self.trials if any(one.fingerprint == step.fingerprint for one in trial.steps)]
        if len(needing) == len(self.trials):
            return "all"
        sets = [dict(trial.sets) for trial in needing]
        alike = {key: value for key, value in sets[0].items() if all(other.get(key) == value for other in sets)}
        settings = " ".join(f"{key}={in_words(value)}" for key, value in alike.items())
        return f"{len(needing)} with {settings}" if settings else str(len(needing))

    def for_all(self) -> Assignment | None:
        """The assignment that does the steps which all trials share; None where they are done."""
        first = self.trials[0]
        common = _leading(first, lambda step: self.users[step.fingerprint] == len(self.trials) > 1)
        return None if all(step.is_done for step in first.steps[:common]) else Assignment(first, common)

    def for_some(self) -> list[Assignment]:
        """Assignments that do the steps which some trials share: the first steps of one trial for each."""
        ends: dict[str, Assignment] = {}
        within: set[str] = set()
        for trial in self.trials:
            length = _leading(trial, lambda step: self.users[step.fingerprint] > 1)
            if not length or all(step.is_done for step in trial.steps[:length]):
                continue
            ends.setdefault(trial.steps[length - 1].fingerprint, Assignment(trial, length))
            within |= {step.fingerprint for step in trial.steps[: length - 1]}
        return [assignment for end, assignment in ends.items() if end not in within]


def plan_sweep(spec: ExperimentSpec) -> SweepPlan:
    """The plan of a spec that has a sweep.

    Raises:
        SpecError: two trials come to the same steps, so an axis changes nothing.
        DataError, CheckpointError: what the steps are made from is not there.
    """
    storage = Storage(spec.compute.storage)
    compute = spec.compute.model_copy(update={"storage": str(storage.folder)})  # trials have working folders of their own
    spec = spec.model_copy(update={"compute": compute})
    planned: dict[str, Experiment] = {}
    for trial in trials(spec):
        made = plan(trial.spec, storage, name=trial.name, sets=trial.sets)
        twin = planned.setdefault(made.fingerprint, made)
        if twin is not made:
            twins = f"the trials '{twin.name}' and '{trial.name}' come to the same steps"
            raise SpecError("sweep", twins, f"with stages {list(trial.spec.stages)} nothing depends on what they differ in")
    return SweepPlan(spec, storage, tuple(planned.values()))


def _leading(trial: Experiment, wanted: Callable[[Step], bool]) -> int:
    """The number of a trial's first steps before the first that is not wanted."""
    return next((place for place, step in enumerate(trial.steps) if not wanted(step)), len(trial.steps))


def estimate(plan: SweepPlan) -> list[tuple[str, str]]:
    """(word, line) pairs for people: the trials, the shared steps, the resources, and the cost of what is not done yet."""
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
        ("cost", _cost(plan, [step.kind.name for step in left])),
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
    if any("grpo" in trial.spec.stages for trial in plan.trials):
        return "1, as verl takes a cluster to itself"
    most = f", sweep.concurrent is {sweep.concurrent}" if sweep and sweep.concurrent else ""
    if spec.compute.address != "local":
        return f"as many as the cluster's declared resources hold{most}"
    compute = spec.compute
    fits = fitting_trials(compute, local_cpus(compute), len(gpu_names()))
    return f"{min(fits, sweep.concurrent or fits) if sweep else fits} (CPUs here: {local_cpus(compute)}{most})"


def _cost(plan: SweepPlan, kinds: list[str]) -> str:
    """An estimate for the steps that are left, from the median time of finished steps of their kind in this storage."""
    if not kinds:
        return "none, all is done"
    seconds = measured_seconds(plan.storage)
    unknown = sorted({kind for kind in kinds if kind not in seconds})
    hours = sum(seconds[kind] for kind in kinds if kind in seconds) / 3600
    gpus = plan.spec.compute.worker_gpus
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
    """Kind of a step -> median wall time, in seconds, of those that are done in this storage."""
    times = {name: [seconds for folder in storage.steps_of(name) if (seconds := _seconds(kind, folder))] for name, kind in KINDS.items()}
    return {kind: median(values) for kind, values in times.items() if values}


def _seconds(kind: StepKind[Any], folder: Path) -> float | None:
    return None if done(folder) is None else kind.said(folder).seconds

"""What a sweep has to do: its trials' steps, those that several trials share, in which order, and what it will need.

Nothing is written, and of the storage only what is done is read. Steps that all trials share are done first, once; then,
side by side, those that some of them share; then the trials. Steps are locked, so the order is a matter of speed and not
of correctness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hba_ray.errors import SpecError
from hba_ray.runs.plan import Experiment, plan
from hba_ray.specs import ExperimentSpec, fingerprint, trials
from hba_ray.specs.trials import in_words
from hba_ray.steps.base import Step
from hba_ray.store.folders import Storage
from hba_ray.store.scratch import stated


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
    def users(self) -> dict[str, list[Experiment]]:
        """Step's fingerprint -> the trials that need it."""
        needing: dict[str, list[Experiment]] = {}
        for trial in self.trials:
            for step in trial.steps:
                needing.setdefault(step.fingerprint, []).append(trial)
        return needing

    def shared(self) -> list[Step]:
        """The steps that more than one trial needs, each once, in order."""
        return [step for step in self.distinct() if len(self.users[step.fingerprint]) > 1]

    def distinct(self) -> list[Step]:
        """All steps, each once, in the order in which trials first need them."""
        return list({step.fingerprint: step for trial in self.trials for step in trial.steps}.values())

    def users_of(self, step: Step) -> str:
        """A phrase that says which trials need a step: how many, and the settings that they have in common."""
        needing = self.users[step.fingerprint]
        if len(needing) == len(self.trials):
            return "all"
        sets = [dict(trial.sets) for trial in needing]
        alike = {key: value for key, value in sets[0].items() if all(other.get(key) == value for other in sets)}
        settings = " ".join(f"{key}={in_words(value)}" for key, value in alike.items())
        return f"{len(needing)} with {settings}" if settings else str(len(needing))

    def for_all(self) -> Assignment | None:
        """The assignment that does the steps which all trials share; None where they are done."""
        first = self.trials[0]
        common = _leading(first, lambda step: len(self.users[step.fingerprint]) == len(self.trials) > 1)
        return None if all(step.is_done for step in first.steps[:common]) else Assignment(first, common)

    def for_some(self) -> list[Assignment]:
        """Assignments that do the steps which some trials share: the first steps of one trial for each."""
        ends: dict[str, Assignment] = {}
        within: set[str] = set()
        for trial in self.trials:
            length = _leading(trial, lambda step: len(self.users[step.fingerprint]) > 1)
            if not length or all(step.is_done for step in trial.steps[:length]):
                continue
            ends.setdefault(trial.steps[length - 1].fingerprint, Assignment(trial, length))
            within |= {step.fingerprint for step in trial.steps[: length - 1]}
        return [assignment for end, assignment in ends.items() if end not in within]


def plan_sweep(spec: ExperimentSpec, *, before_data: bool = False) -> SweepPlan:
    """The plan of a spec that has a sweep.

    Args:
        before_data: plan although data or models are not there yet; see `Experiment.absent`.

    Raises:
        SpecError: two trials come to the same steps, so an axis changes nothing.
        DataError, CheckpointError: what the steps are made from is not there.
    """
    storage = Storage(spec.compute.storage)
    compute = spec.compute.model_copy(update={"storage": stated(storage.folder)})  # trials have working folders of their own
    spec = spec.model_copy(update={"compute": compute})
    planned: dict[str, Experiment] = {}
    for trial in trials(spec):
        made = plan(trial.spec, storage, name=trial.name, sets=trial.sets, before_data=before_data)
        twin = planned.setdefault(made.fingerprint, made)
        if twin is not made:
            twins = f"the trials '{twin.name}' and '{trial.name}' come to the same steps"
            raise SpecError("sweep", twins, f"with stages {list(trial.spec.stages)} nothing depends on what they differ in")
    return SweepPlan(spec, storage, tuple(planned.values()))


def planned_trials(spec: ExperimentSpec) -> tuple[Experiment, ...]:
    """The trials of a spec's sweep or, where it has none, its only one, planned although data or models may not be there yet."""
    return (plan(spec, before_data=True),) if spec.sweep is None else plan_sweep(spec, before_data=True).trials


def _leading(trial: Experiment, wanted: Callable[[Step], bool]) -> int:
    """The number of a trial's first steps before the first that is not wanted."""
    return next((place for place, step in enumerate(trial.steps) if not wanted(step)), len(trial.steps))

"""What a sweep has to do: its trials' steps, those that several trials share, and in which order.

Pure but for reading what is done. Steps that all trials share are done first, once; then, side by
side, those that some of them share; then the trials. Steps are locked, so the order is a matter of
speed and not of correctness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hba_ray.errors import DataError, SpecError
from hba_ray.report.tables import Report, read_json
from hba_ray.runtime.storage import Storage, ledger
from hba_ray.specs import ExperimentSpec, Trial, fingerprint, trials
from hba_ray.specs.trials import in_words
from hba_ray.sweeps.plan import plan, run_fingerprint
from hba_ray.sweeps.steps.base import Step


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its steps.

    Attributes:
        folder: of its run, the same as if it were run alone.
    """

    trial: Trial
    steps: list[Step]
    fingerprint: str
    folder: Path

    @property
    def name(self) -> str:
        return self.trial.name

    @property
    def spec(self) -> ExperimentSpec:
        return self.trial.spec

    def report(self) -> Report | None:
        """The report of a finished trial. Its ledger says whether it is finished; a deleted report or result undoes that."""
        if not any(line.get("event") == "finished" and line.get("fingerprint") == self.fingerprint for line in ledger(self.folder)):
            return None
        file = self.folder / "report.json"
        if not file.is_file() or not all(step.is_done for step in self.steps if step.arm):
            return None
        try:
            return read_json(file.read_text(), where=str(file))
        except DataError:
            return None  # an older version's; making it again from the finished steps takes seconds


@dataclass(frozen=True)
class Part:
    """Work for one process: the first steps of a trial, or all of it.

    Attributes:
        steps: how many; None is the whole trial.
    """

    trial: PlannedTrial
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
    trials: tuple[PlannedTrial, ...]

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
        """Which trials need a step, in words: how many, and what those and no others have set."""
        needing = [trial for trial in self.trials if any(one.fingerprint == step.fingerprint for one in trial.steps)]
        if len(needing) == len(self.trials):
            return "all"
        sets = [dict(trial.trial.sets) for trial in needing]
        alike = {key: value for key, value in sets[0].items() if all(other.get(key) == value for other in sets)}
        settings = " ".join(f"{key}={in_words(value)}" for key, value in alike.items())
        return f"{len(needing)} with {settings}" if settings else str(len(needing))

    def for_all(self) -> Part | None:
        """The first steps, as far as all trials share them; None where they are done."""
        first = self.trials[0]
        common = _leading(first, lambda step: self.users[step.fingerprint] == len(self.trials) > 1)
        return None if all(step.is_done for step in first.steps[:common]) else Part(first, common)

    def for_some(self) -> list[Part]:
        """What gets the other shared steps done: for each, the first steps of one trial that leads to it."""
        ends: dict[str, Part] = {}
        within: set[str] = set()
        for trial in self.trials:
            length = _leading(trial, lambda step: self.users[step.fingerprint] > 1)
            if not length or all(step.is_done for step in trial.steps[:length]):
                continue
            ends.setdefault(trial.steps[length - 1].fingerprint, Part(trial, length))
            within |= {step.fingerprint for step in trial.steps[: length - 1]}
        return [part for end, part in ends.items() if end not in within]


def plan_sweep(spec: ExperimentSpec) -> SweepPlan:
    """The plan of a spec that has a sweep.

    Raises:
        SpecError: two trials come to the same steps, so an axis changes nothing.
        DataError, CheckpointError: what the steps are made from is not there.
    """
    storage = Storage(spec.compute.storage)
    planned: dict[str, PlannedTrial] = {}
    for trial in trials(spec):
        steps = plan(trial.spec, storage)
        name = run_fingerprint(steps)
        if name in planned:
            twins = f"the trials '{planned[name].name}' and '{trial.name}' come to the same steps"
            raise SpecError("sweep", twins, f"with stages {list(trial.spec.stages)} nothing depends on what they differ in")
        planned[name] = PlannedTrial(trial, steps, name, storage.run(spec.name, name))
    return SweepPlan(spec, storage, tuple(planned.values()))


def _leading(trial: PlannedTrial, wanted: Callable[[Step], bool]) -> int:
    """How many of a trial's first steps are wanted ones."""
    return next((place for place, step in enumerate(trial.steps) if not wanted(step)), len(trial.steps))

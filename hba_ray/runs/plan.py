"""Spec -> experiment: its steps, in order, each named by the fingerprint of all that its result depends on.

`tracking` is no part of a name, and of `compute` only what changes a result: the same experiment on another machine is
the same experiment. Steps that two specs share have the same fingerprint, and are done once.

An experiment is planned once, and passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.errors import DataError, HbaError
from hba_ray.evaluation.arms import Arm
from hba_ray.models.settings import settled
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.base import value_at
from hba_ray.steps import AFTER, BEFORE, STAGES
from hba_ray.steps.base import Context, Draft, Step
from hba_ray.store.folders import REPORT, Storage, ledger

if TYPE_CHECKING:
    from hba_ray.report.tables import Report


@dataclass(frozen=True)
class Experiment:
    """One experiment with its steps, as planned.

    Attributes:
        name: that people know it by: of its spec, or of a sweep's trial.
        folder: of its run, the same whether it is run alone or as a trial.
        fingerprint: of what its results depend on.
        sets: dotted key -> value: the settings by which a sweep makes this trial.
        absent: what is said of files that are not there yet, so that fingerprints are not the ones to come.
    """

    name: str
    spec: ExperimentSpec
    steps: tuple[Step, ...]
    folder: Path
    fingerprint: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[HbaError, ...] = ()

    def step(self, kind: str, arm: Arm | None = None) -> Step | None:
        """The step of a kind that looks at an arm."""
        return next((step for step in self.steps if step.kind.name == kind and step.arm == arm), None)

    def finished(self, kind: str, arm: Arm) -> Path | None:
        """The folder of such a step, where it is done; see `Step.whole` for the errors."""
        step = self.step(kind, arm)
        return step.whole() if step is not None and step.is_done else None

    def has(self, arm: Arm, where: Mapping[str, Any]) -> bool:
        """Whether it predicts with this arm and has these settings, by dotted key."""
        return all(value_at(self.spec, key) == value for key, value in where.items()) and self.step("evaluate", arm) is not None

    def finished_steps(self) -> dict[str, Step]:
        """Name -> step, of all steps.

        Raises:
            HbaError: one is not finished.
        """
        for step in self.steps:
            if not step.is_done:
                raise HbaError(str(self.folder), f"its step '{step.name}' is not finished", "run the spec again, which goes on with it")
        return {step.name: step for step in self.steps}

    def context(self, name: str) -> Context:
        """The context of the step of this name, when all steps are finished."""
        steps = self.finished_steps()
        return Context(self.spec, steps[name], steps)

    def report(self) -> Report | None:
        """The report of a finished experiment; None where it did not finish, or where its report or a result was deleted."""
        from hba_ray.report.tables import read_json

        if not any(line.get("event") == "finished" and line.get("fingerprint") == self.fingerprint for line in ledger(self.folder)):
            return None
        file = self.folder / REPORT
        if not file.is_file() or not all(step.is_done for step in self.steps if step.arm):
            return None
        try:
            return read_json(file.read_bytes(), where=str(file))
        except DataError:
            return None  # an older version's; making it again from the finished steps takes seconds


def plan(
    spec: ExperimentSpec,
    storage: Storage | None = None,
    *,
    name: str = "",
    sets: Mapping[str, Any] | None = None,
    before_data: bool = False,
) -> Experiment:
    """The experiment of a spec without a sweep, with the settings of the checkpoints that it names.

    Args:
        storage: that of the spec by default.
        name: that of the spec by default.
        sets: settings by which a sweep makes this trial, by dotted key.
        before_data: plan although data or models are not there yet; see `Experiment.absent`.

    Raises:
        SpecError: a step's settings are not in order, such as the judge's prompts, or not those of a checkpoint that it names.
        DataError: the atlas or a converter's files are not there.
        CheckpointError: a model is a folder that is not there.
    """
    spec = settled(spec)
    storage = storage or Storage(spec.compute.storage)
    draft = Draft(spec, storage, absent={} if before_data else None)
    for kind in (*BEFORE, *(STAGES[stage] for stage in spec.stages), *AFTER):
        kind.plan(draft)
    named = run_fingerprint(draft.steps)
    absent = tuple((draft.absent or {}).values())
    return Experiment(name or spec.name, spec, tuple(draft.steps), storage.run(spec.name, named), named, sets or {}, absent)


def run_fingerprint(steps: list[Step] | tuple[Step, ...]) -> str:
    """A fingerprint of all that the results of an experiment depend on: of its steps that look at an arm."""
    return fingerprint([step.fingerprint for step in steps if step.arm])

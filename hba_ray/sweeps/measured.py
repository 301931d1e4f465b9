"""What finished trials measured of a table's columns: predictions, verdicts of judges, and facts that are no scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.errors import DataError, SpecError
from hba_ray.evaluation.columns import FACTS, ArmResult, Column, Fact
from hba_ray.runtime.read_back import read_parquet
from hba_ray.runtime.storage import Storage
from hba_ray.specs import ExperimentSpec, MeasuredBy, PaperSpec, trials
from hba_ray.specs.base import value_at
from hba_ray.sweeps import facts
from hba_ray.sweeps.judging import labels_of
from hba_ray.sweeps.plan import plan
from hba_ray.sweeps.steps.base import Step, rows_used
from hba_ray.sweeps.steps.evaluate import PREDICTIONS
from hba_ray.sweeps.steps.judge import verdicts_in
from hba_ray.sweeps.steps.retention import WRITTEN

if TYPE_CHECKING:
    from hba_ray.evaluation.latency import Latency

PERSON = "person"


@dataclass(frozen=True)
class PlannedArms:
    """One trial of a table's spec, planned."""

    name: str
    spec: ExperimentSpec
    steps: Sequence[Step]

    def step(self, kind: str, arm: str) -> Step | None:
        """The step of a kind that looks at an arm."""
        return next((step for step in self.steps if step.kind == kind and step.arm == arm), None)

    def finished(self, kind: str, arm: str) -> Path | None:
        """The folder of such a step, where it is done."""
        step = self.step(kind, arm)
        return step.folder if step is not None and step.is_done else None

    def is_meant(self, arm: str, where: Mapping[str, Any]) -> bool:
        """Whether it has this arm and these settings."""
        return all(value_at(self.spec, key) == value for key, value in where.items()) and self.step("evaluate", arm) is not None


def planned_arms(spec: ExperimentSpec) -> list[PlannedArms]:
    """The trials of a spec, or the one that it is."""
    storage = Storage(spec.compute.storage)
    made = [(trial.name, trial.spec) for trial in trials(spec)] or [(spec.name, spec)]
    plain = [(name, one.model_copy(update={"paper": None})) for name, one in made]  # the table is nothing that a trial depends on
    return [PlannedArms(name, one, plan(one, storage)) for name, one in plain]


def check_columns(spec: ExperimentSpec, planned: Sequence[PlannedArms]) -> None:
    """Refuses a table with a column that no trial would measure.

    Raises:
        SpecError: names the column, and the arms that there are.
    """
    for column, measured in (spec.paper.arms if spec.paper else {}).items():
        if measured is None:
            continue
        other = [measured.against] if isinstance(measured.against, dict) else []
        for where in [measured.where, *other]:
            if not any(trial.is_meant(measured.arm, where) for trial in planned):
                arms = dict.fromkeys(step.arm for trial in planned for step in trial.steps if step.kind == "evaluate" and step.arm)
                settings = "".join(f", {key}={value}" for key, value in where.items())
                what = f"no trial measures the column '{column}': arm '{measured.arm}'{settings}"
                raise SpecError(f"{spec.name}: paper.arms", what, f"arms here: {', '.join(arms)}; is its setting among those of sweep?")


def measured_columns(paper: PaperSpec, planned: Sequence[PlannedArms], latency: Latency | None = None) -> dict[str, Column]:
    """Column -> what finished trials measured of it; columns that no trial measures are left out.

    Args:
        latency: what adapters cost on this machine, where the table asks for it.

    Raises:
        DataError: predictions are damaged, two trials measure one cell, or a person's labels are not in order.
    """
    columns = {}
    for name, measured in paper.arms.items():
        if measured is None or (measured.against == PERSON and paper.labels is None):
            continue
        asked = {row.partition("/")[0] for row in paper.published[name]} & FACTS.keys()
        found = _each_once(_results(measured, planned, _Facts(paper, planned, asked, latency)))
        if found:
            is_toy = any(trial.spec.atlas.source == "toy" for trial in planned)
            columns[name] = Column(found, toy=is_toy)
    return columns


def _each_once(results: Iterable[tuple[str, str, ArmResult]]) -> tuple[ArmResult, ...]:
    """An arm that several trials share counts once.

    Args:
        results: (what the predictions are, what the verdicts are, they themselves).

    Raises:
        DataError: trials share predictions that two judges have graded.
    """
    found: dict[str, tuple[str, ArmResult]] = {}
    for predictions, verdicts, result in results:
        known, first = found.setdefault(predictions, (verdicts, result))
        if known != verdicts:
            what = f"{first.trial} and {result.trial} have other verdicts on the same answers"
            raise DataError(result.arm, what, "narrow the column's `where`", reason="two trials for one cell")
    return tuple(result for _, result in found.values())


@dataclass(frozen=True)
class _Facts:
    """Facts of a column's arms.

    Attributes:
        asked: what its rows are about, of `FACTS`.
    """

    paper: PaperSpec
    planned: Sequence[PlannedArms]
    asked: set[str]
    latency: Latency | None

    def of(self, measured: MeasuredBy, trial: PlannedArms, predictions: Path) -> dict[str, Fact]:
        found: dict[str, Fact] = {}
        if "cost" in self.asked and self.latency is not None:
            found |= facts.cost(self.latency, measured.arm)
        clips = facts.clips_in(predictions) if {"answers", "agreement"} & self.asked else {}
        retained = trial.finished("retention", measured.arm)
        if "answers" in self.asked and retained is not None:
            found |= facts.written(retained / WRITTEN, clips)
        judged = trial.finished("judge", measured.arm)
        if "agreement" in self.asked and judged is not None:
            other = self._other_grader(measured, trial, judged)
            found |= {} if other is None else facts.agreement(judged, other, clips)
        return found

    def _other_grader(self, measured: MeasuredBy, trial: PlannedArms, judged: Path) -> Path | dict[str, bool | None] | None:
        """Whom a judge is held against: the folder of another's verdicts on the same answers, or a person's labels."""
        if measured.against == PERSON:
            return labels_of(Path(self.paper.labels or ""), facts.labels_in(judged))
        answers = trial.step("evaluate", measured.arm)
        against = measured.against if isinstance(measured.against, dict) else None
        for other in self.planned:
            if against is not None and other.is_meant(measured.arm, against) and other.step("evaluate", measured.arm) == answers:
                return other.finished("judge", measured.arm)
        return None


def _results(measured: MeasuredBy, planned: Sequence[PlannedArms], of: _Facts) -> Iterator[tuple[str, str, ArmResult]]:
    """(what the predictions are, what the verdicts are, they themselves) of each trial that is meant."""
    for trial in planned:
        folder = trial.finished("evaluate", measured.arm) if trial.is_meant(measured.arm, measured.where) else None
        if folder is None:
            continue
        judged = trial.finished("judge", measured.arm)
        yield (
            folder.name,
            "" if judged is None else judged.name,
            ArmResult(
                trial=trial.name,
                arm=measured.arm,
                seed=_seed(trial.spec, measured.arm),
                predictions=read_parquet(folder / PREDICTIONS),
                sizes={dataset: sum(splits.values()) for dataset, splits in rows_used(trial.steps).items()},
                verdicts=None if judged is None else verdicts_in(judged),
                facts=of.of(measured, trial, folder / PREDICTIONS),
            ),
        )


def _seed(spec: ExperimentSpec, arm: str) -> int:
    """What tells repetitions of an arm apart."""
    own: Any = value_at(spec, "bam.seed") if "bam" in arm.split("+") else None
    return spec.seed if own is None else int(own)

"""Does an assignment of a sweep in this process, whoever started the process: the driver, or Ray Tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hba_ray.runs.run import do_steps, run_experiment, run_lock
from hba_ray.runs.sweep_plan import Assignment
from hba_ray.store.journal import FILE, JournalTracker

Ended = Literal["done", "failed", "stopped", "unstarted"]


@dataclass(frozen=True)
class Outcome:
    """How an assignment ended.

    Attributes:
        status: `stopped` is the scheduler's doing: others were better. `unstarted` is that of a budget that was spent.
        message: the error where it failed.
    """

    assignment: Assignment
    status: Ended
    message: str = ""


class ReportingJournal(JournalTracker):
    """A journal that also reports the values of one metric, by which a scheduler compares trials.

    Args:
        report: takes a value and how many there have been, those of earlier attempts counted.
    """

    def __init__(self, file: Path, metric: str, report: Callable[[float, int], None]):
        super().__init__(file)
        self._metric, self._report = metric, report

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        is_new = self._metric in metrics and (self._metric, step) not in self._known
        super().log_metrics(metrics, step)
        if is_new:
            self._report(metrics[self._metric], sum(name == self._metric for name, _ in self._known))


def do_assignment(
    assignment: Assignment, say: Callable[[str], None], metric: str = "", report: Callable[[float, int], None] | None = None
) -> None:
    """Does the steps of an assignment that are not done.

    Args:
        metric: what early stopping looks at.
        report: takes its values: (value, number of the report).

    Raises:
        HbaError: what a step could not do.
    """
    trial = assignment.trial
    if assignment.steps is not None:
        with run_lock(trial.folder, say):
            do_steps(trial, lambda metrics, step: None, say, first=assignment.steps)
        return
    journal = trial.folder / FILE
    tracker = JournalTracker(journal) if report is None else ReportingJournal(journal, metric, report)
    run_experiment(trial, say, tracker)

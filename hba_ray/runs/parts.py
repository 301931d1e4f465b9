"""Does one part of a sweep in this process, whoever started the process: the driver, or Ray Tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hba_ray.runs.run import alone_in, do_steps, run_experiment
from hba_ray.runs.sweep_plan import Part
from hba_ray.store.journal import FILE, JournalTracker

Status = Literal["done", "failed", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """What a part came to.

    Attributes:
        status: `stopped` is the scheduler's doing: others were better.
        message: the error of a failed part.
    """

    part: Part
    status: Status
    message: str = ""


class ReportingJournal(JournalTracker):
    """A journal that also tells the values of one metric to somebody who compares trials.

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


def do_part(part: Part, say: Callable[[str], None], metric: str = "", report: Callable[[float, int], None] | None = None) -> None:
    """
    Args:
        metric: what early stopping looks at.
        report: takes its values: (value, number of the report).

    Raises:
        HbaError: what a step could not do.
    """
    trial = part.trial
    if part.steps is not None:
        with alone_in(trial.folder, say):
            do_steps(trial.spec, trial.steps[: part.steps], trial.folder, lambda metrics, step: None, say)
        return
    journal = trial.folder / FILE
    tracker = JournalTracker(journal) if report is None else ReportingJournal(journal, metric, report)
    run_experiment(trial.spec, say, tracker)

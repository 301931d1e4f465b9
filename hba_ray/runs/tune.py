"""Assignments of a sweep side by side, on Ray Tune: a function trainable is a light driver of Ray Train workers.

Tune schedules, compares (ASHA) and restarts what crashed. What is finished is known from the ledger
and from the steps' own marks, so Tune's experiment state is thrown away and `Tuner.restore` is not
used: it would have to be kept true beside them, unpickles what it finds, and after a crash offers
only what the steps offer anyway, to go on from the last checkpoint.
"""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from hba_ray.cluster.failures import MISTAKES, as_final
from hba_ray.cluster.growth import whole_here
from hba_ray.cluster.nodes import HEAD
from hba_ray.cluster.session import Session, fitting_trials
from hba_ray.environ import variables
from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.escaping import visible
from hba_ray.rl.settings import cpus_needed
from hba_ray.runs.assignments import Outcome, do_assignment
from hba_ray.runs.sweep_plan import Assignment
from hba_ray.specs import AshaSpec, ExperimentSpec

ON_HEAD = {HEAD: 0.001}
"""A trial's driver sits on the head, which is no spot node, and takes no CPU from the workers."""
MOST_AT_ONCE = 500
"""Drivers that `ON_HEAD` lets onto the head."""
DRIVER_BYTES = 1.1 * 2**30
"""Memory of a driver, with torch and what else it imports to start its workers."""
REPORTS, VALUE = "reports", "value"
DoAssignment = Callable[[Assignment, Callable[[str], None], str, Callable[[float, int], None] | None], None]
"""See `do_assignment`."""
SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a spec mean the same in a trial
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial's last word is whether it failed
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, as everywhere
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # its state is not read again
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Tune reads its settings from the environment."""


def trials_at_once(spec: ExperimentSpec, session: Session, asked: int | None) -> int:
    """How many trials the declared resources hold at a time, and how many drivers the head's memory; those with `grpo`, which verl runs
    one a Ray, go one by one, but for steps that have a Ray each.

    Raises:
        EnvironmentMissing: not even one fits.
    """
    compute = spec.compute
    if compute.on_one_node:
        held = whole_here(compute, cpus_needed(spec).total)
        fits = int(min(session.cpus / held["CPU"], session.gpus / held["GPU"] if "GPU" in held else float("inf")))
    else:
        fits = fitting_trials(compute, session.cpus, session.gpus)
    if fits < 1:
        cpus, gpus = compute.worker_cpus + compute.loader_cpus, compute.worker_gpus
        there = f"{session.cpus:g} CPUs and {session.gpus:g} GPUs"
        raise EnvironmentMissing("compute", f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs; there are {there}", "lower compute.workers")
    if "grpo" in spec.stages and not compute.on_one_node:
        return 1
    return min(fits, asked or fits, MOST_AT_ONCE, max(1, int(min(session.head_memory / DRIVER_BYTES, MOST_AT_ONCE))))


def run_assignments(
    assignments: Sequence[Assignment],
    at_once: int,
    folder: Path,
    note: Callable[[str, Assignment, Outcome | None], None],
    asha: AshaSpec | None = None,
    do: DoAssignment = do_assignment,
    may_start: Callable[[], bool] = lambda: True,
) -> list[Outcome]:
    """Does all assignments, at most `at_once` at a time.

    Args:
        folder: for what Tune writes; emptied.
        note: told of a assignment that has started, and of its outcome when it has ended.
        do: does one, in a process of its own.
        may_start: asked before each is started; from the first no on, none is.

    Returns:
        Outcomes in the order of the assignments.
    """
    shutil.rmtree(folder, ignore_errors=True)
    outcomes: dict[int, Outcome] = {}
    metric, queue = asha.metric if asha else "", _Queue(len(assignments), may_start)
    with variables(SETTINGS):
        trainable = tune.with_resources(tune.with_parameters(_do, assignments=list(assignments), metric=metric, do=do), ON_HEAD)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=queue,
                num_samples=len(assignments),
                max_concurrent_trials=at_once,
                reuse_actors=asha is None,  # a start costs seconds; one that ASHA stops is stopped by its end
                scheduler=_scheduler(asha),
                trial_name_creator=lambda trial: assignments[trial.config["place"]].name,
                trial_dirname_creator=lambda trial: f"{trial.config['place']:04d}",
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                callbacks=[_Watch(assignments, outcomes, note)],
                failure_config=tune.FailureConfig(
                    max_failures=max(assignment.trial.spec.compute.max_failures for assignment in assignments)
                ),
            ),
        )
        tuner.fit()
    for place in range(len(assignments)):
        lost = ("failed", "it was not run to its end") if place < queue.begun else ("unstarted", "")
        outcomes.setdefault(place, Outcome(assignments[place], *lost))
    return [outcomes[place] for place in range(len(assignments))]


class _Queue(Searcher):
    """Gives Tune one assignment after the other, when there is room for it, as long as more may be started.

    Attributes:
        begun: how many it has given.
    """

    def __init__(self, count: int, may_start: Callable[[], bool]):
        super().__init__()
        self.begun, self._count, self._may_start = 0, count, may_start

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.begun == self._count or not self._may_start():
            return Searcher.FINISHED
        self.begun += 1
        return {"place": self.begun - 1}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learnt from a trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is restored; see the module's docstring."""


def _do(config: dict[str, Any], assignments: list[Assignment], metric: str, do: DoAssignment) -> dict[str, Any]:
    """The function trainable of Ray Tune. Our own errors and mistakes in the code are results: they would only come again. A crash is
    tried again."""
    assignment = assignments[config["place"]]

    def report(value: float, number: int) -> None:
        tune.report({VALUE: value, REPORTS: number})

    try:
        do(assignment, _say, metric, report if metric and assignment.steps is None else None)
    except (HbaError, *MISTAKES) as error:
        traceback.print_exc()  # into the process's own log
        return {"failed": str(as_final(error, assignment.name))}
    return {"failed": ""}


def _say(line: str) -> None:
    sys.stderr.write(visible(line) + "\n")  # into the process's own log


def _scheduler(asha: AshaSpec | None) -> TrialScheduler:
    if asha is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=REPORTS,
        metric=VALUE,
        mode=asha.mode,
        max_t=asha.most,
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
        stop_last_trials=False,
    )


class _Watch(tune.Callback):
    """Tells the driver of every assignment that starts or ends."""

    def __init__(
        self, assignments: Sequence[Assignment], outcomes: dict[int, Outcome], note: Callable[[str, Assignment, Outcome | None], None]
    ):
        self.assignments, self.outcomes, self.note = assignments, outcomes, note

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune writes callbacks down for a restore, which never happens; this one belongs to its driver."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.note("started", self.assignments[trial.config["place"]], None)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        assignment = self.assignments[trial.config["place"]]
        failed = (trial.last_result or {}).get("failed")
        if failed is None:
            self._end(trial, Outcome(assignment, "stopped"))
        else:
            self._end(trial, Outcome(assignment, "failed" if failed else "done", failed))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        file = Path(trial.error_file or "")  # of this machine; Tune's own getters look into the storage, where it comes later
        lines = file.read_text(encoding="utf-8").strip().splitlines() if file.is_file() else []
        message = lines[-1].strip() if lines else "its process was lost"
        self._end(trial, Outcome(self.assignments[trial.config["place"]], "failed", f"{message} (see the logs folder of the sweep)"))

    def _end(self, trial: TuneTrial, outcome: Outcome) -> None:
        self.outcomes[trial.config["place"]] = outcome
        self.note(outcome.status, outcome.assignment, outcome)

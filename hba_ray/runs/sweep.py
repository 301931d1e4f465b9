"""A sweep from spec to report: shared steps once, then the trials; what is finished is never done again.

The truth about what is finished lies with the results: a step's mark, written last and at once, and a
trial's ledger, which is only added to. Both are read before anything starts, so a killed driver, a
lost cluster or a second command at the same time need no repair: the same command does the rest.
Whoever works on a sweep, a trial or a step holds its lock, which the system frees when it dies.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from hba_ray.cluster.growth import grown
from hba_ray.cluster.session import check_store, ray_session
from hba_ray.errors import HbaError, SpecError, TrialsFailed
from hba_ray.report.sections import score_file
from hba_ray.report.tables import Report, render_markdown
from hba_ray.rl.settings import cpus_needed
from hba_ray.runs.assignments import Ended, Outcome, do_assignment
from hba_ray.runs.meter import Budget, Meter, budget_of
from hba_ray.runs.plan import Experiment
from hba_ray.runs.preflight import check_first, check_nodes
from hba_ray.runs.results import PAGE, TABLE, labels, write_report
from hba_ray.runs.run import needs_ray, run_lock, write_origin
from hba_ray.runs.sweep_plan import Assignment, SweepPlan
from hba_ray.specs import fingerprint
from hba_ray.specs.base import flat
from hba_ray.steps.run import done_again
from hba_ray.store.folders import ledger, note, write_text
from hba_ray.store.journal import FILE, Forwarder, JournalTracker, Record, forwarding
from hba_ray.store.mlflow import PARENT, MlflowTracker, Status, standard_tags
from hba_ray.store.spending import Spent

ROLE, SWEEP, STAGE = "hba.role", "hba.sweep", "hba.stage"
"""Tags: sweep or trial; the sweep's fingerprint; the stages that a trial trains."""
STATUS: dict[str, Status] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""How a trial ended -> the status of its record; one that was not started has none."""


@dataclass(frozen=True)
class FinishedSweep:
    """How a sweep ended.

    Attributes:
        reports: of the finished trials, by name.
        outcomes: of all trials, by name.
        report: the trials side by side; None where none has finished.
    """

    folder: Path
    plan: SweepPlan
    reports: dict[str, Report]
    outcomes: dict[str, Outcome]
    report: Report | None
    mlflow: str

    @property
    def table(self) -> Path:
        return self.folder / TABLE

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    def check(self) -> None:
        """
        Raises:
            TrialsFailed: some trials failed, or were not started since the budget is spent; the others are kept.
            HbaError: all of them failed.
        """
        failed = [outcome for outcome in self.outcomes.values() if outcome.status == "failed"]
        left = unstarted(self.outcomes)
        if not failed and not left:
            return
        said, count = [], len(self.outcomes)
        if failed:
            reasons = "; ".join(f"{outcome.assignment.name}: {outcome.message}" for outcome in failed[:3])
            said.append(f"{len(failed)} of {count} trials failed: {reasons}")
        if left:
            said.append(f"{len(left)} of {count} trials were not started, since {left[0].message}: {_names(left[:3])}")
        kind = TrialsFailed if len(failed) < count else HbaError
        way_out = f"what is finished is kept; the same command {'with a larger budget' if left else 'tries the rest again'}"
        raise kind(str(self.folder), "; ".join(said), way_out + (" goes on" if left else ""))


def unstarted(outcomes: Mapping[str, Outcome]) -> list[Outcome]:
    """Those of the outcomes whose trials were not started, since the budget is spent."""
    return [outcome for outcome in outcomes.values() if outcome.status == "unstarted"]


def _names(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(outcome.assignment.name for outcome in outcomes)


def run_sweep(plan: SweepPlan, say: Callable[[str], None]) -> FinishedSweep:
    """Does those trials that are not done yet, and writes the report of all. Failed trials do not end a sweep; see `FinishedSweep.check`.

    Raises:
        HbaError: what cannot work for any trial, before it starts: axes, capacity, the store, a step that all trials share.
    """
    _check(plan)
    for line in done_again(plan.distinct(), plan.storage):
        say(line)
    meter = Meter([trial.folder for trial in plan.trials], plan.spec.compute)
    budget = budget_of(plan.spec, meter)
    with ExitStack() as stack:
        stack.enter_context(run_lock(plan.folder, say))
        run_assignments = stack.enter_context(_runner(plan, say, budget))
        origin = write_origin(plan.spec, plan.folder)
        mlflow = MlflowTracker(plan.spec.tracking, plan.storage.folder)
        forwarder = stack.enter_context(forwarding(mlflow, say))
        driver = _Driver(plan, say, forwarder, run_assignments, budget)
        with driver.recorded():
            with meter.telling(say, driver.tracker.log_metrics):
                outcomes = driver.run()
            reports = {trial.name: report for trial in plan.trials if (report := trial.report())}
            report = combined(plan, reports, outcomes, meter.spent()) if reports else None
            driver.record(report, reports, outcomes, origin)
    return FinishedSweep(plan.folder, plan, reports, outcomes, report, plan.spec.tracking.shown or mlflow.uri)


RunAssignments = Callable[[Sequence[Assignment], "Note"], list[Outcome]]
Note = Callable[[str, Assignment, Outcome | None], None]


@contextmanager
def _runner(plan: SweepPlan, say: Callable[[str], None], budget: Budget) -> Iterator[RunAssignments]:
    """What does assignments, as long as the budget lasts: Ray Tune, or this process, one after the other, where `compute.workers` is 0."""
    spec = plan.spec
    if not any(needs_ray(spec, trial.steps) for trial in plan.trials):
        yield lambda assignments, note: [Outcome(one, "unstarted") if budget.is_spent else _do_here(one, say, note) for one in assignments]
        return
    from hba_ray.runs.tune import run_assignments, trials_at_once

    with ExitStack() as stack:
        session = stack.enter_context(ray_session(spec.compute, plan.folder / "logs", rollouts=cpus_needed(spec).total))
        check_store(spec.tracking, session)
        if spec.compute.address != "local":
            stack.enter_context(grown(spec.compute, say, cpus_needed(spec).total))
            check_nodes(plan.trials, (session.cpus, session.gpus), head_leads=True)
        sweep = spec.sweep
        at_once = min(trials_at_once(trial.spec, session, sweep.concurrent if sweep else None) for trial in plan.trials)
        say(f"{len(plan.trials)} trials, {at_once} at a time")
        asha = sweep.asha if sweep else None
        yield lambda assignments, note: run_assignments(
            assignments, at_once, plan.folder / "tune", note, asha, may_start=lambda: not budget.is_spent
        )


def _do_here(assignment: Assignment, say: Callable[[str], None], note: Note) -> Outcome:
    note("started", assignment, None)
    try:
        do_assignment(assignment, lambda line: say(f"  {line}"))
        outcome = Outcome(assignment, "done")
    except HbaError as error:
        outcome = Outcome(assignment, "failed", str(error))
    note(outcome.status, assignment, outcome)
    return outcome


class _Driver:
    """The process that holds the sweep's lock: starts assignments, keeps the ledger, and has the record written."""

    def __init__(self, plan: SweepPlan, say: Callable[[str], None], forwarder: Forwarder, run_assignments: RunAssignments, budget: Budget):
        self.plan, self.say, self.forwarder, self.run_assignments, self.budget = plan, say, forwarder, run_assignments, budget
        self.journal = plan.folder / FILE
        self.tracker = JournalTracker(self.journal)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Opens the sweep's record, which is the parent of its trials' records, and closes it as finished, failed or killed."""
        plan = self.plan
        swept = {key for trial in plan.trials for key in trial.sets}
        fixed = {
            key: value
            for key, value in flat(plan.spec.model_dump(mode="json")).items()
            if key not in swept and key.split(".")[0] not in NOT_PARAMETERS
        }
        tags = standard_tags(plan.fingerprint, plan.spec.seed) | {ROLE: "sweep", SWEEP: plan.fingerprint}
        self.forwarder.add(self.journal)
        self.tracker.start(plan.spec.name, fixed, tags)
        self.forwarder.flush()  # a store that is not there is found now
        parent = self.forwarder.run_id(self.journal)
        for trial in plan.trials:
            self.forwarder.add(trial.folder / FILE, self._record(trial, parent))
        status: Status = "KILLED"
        try:
            yield
            status = "FINISHED"
        except HbaError:
            status = "FAILED"
            raise
        finally:
            self.tracker.end(status)

    def run(self) -> dict[str, Outcome]:
        """Outcome of every trial, by name."""
        lines = ledger(self.plan.folder)
        stopped = {line["fingerprint"] for line in lines if line.get("event") == "stopped" and line.get("asha") == self._asha}
        outcomes = {trial.name: Outcome(Assignment(trial), "stopped") for trial in self.plan.trials if trial.fingerprint in stopped}
        outcomes |= {trial.name: Outcome(Assignment(trial), "done") for trial in self.plan.trials if trial.report()}
        for name, outcome in outcomes.items():
            self.say(f"{name}: {outcome.status} before")
            self.forwarder.end(outcome.assignment.trial.folder / FILE, STATUS[outcome.status])
        todo = [Assignment(trial) for trial in self.plan.trials if trial.name not in outcomes]
        if todo:
            if not self.budget.is_spent:
                self._share()
            outcomes |= {outcome.assignment.name: outcome for outcome in self.run_assignments(todo, self._note)}
        if left := unstarted(outcomes):
            outcomes |= {one.assignment.name: replace(one, message=self.budget.in_words()) for one in left}
            self.say(f"{self.budget.in_words()}; not started: {_names(left)}")
            note(self.plan.folder, event="unstarted", budget=self.budget.text, left=[one.assignment.name for one in left])
        return {trial.name: outcomes[trial.name] for trial in self.plan.trials}

    @property
    def _asha(self) -> str | None:
        """A fingerprint of the rules of early stopping; under other rules, a stopped trial gets another chance."""
        sweep = self.plan.spec.sweep
        return None if sweep is None or sweep.asha is None else fingerprint(sweep.asha.identity())

    def _share(self) -> None:
        """Does the steps that several trials need first, so that trials do not wait for each other."""
        first = self.plan.for_all()
        if first is not None:
            self.say(f"shared by all trials: {', '.join(step.name for step in first.trial.steps[: first.steps])}")
            self.budget.meter.begin(first.trial.folder)
            do_assignment(first, self.say)
            self.budget.meter.end(first.trial.folder)
        some = self.plan.for_some()
        if some:
            self.run_assignments(some, self._note)

    def _note(self, event: str, assignment: Assignment, outcome: Outcome | None) -> None:
        """Tells people, the ledger and the record what has become of an assignment."""
        (self.budget.meter.begin if outcome is None else self.budget.meter.end)(assignment.trial.folder)
        self.say(f"{assignment.name}: {event}" + (f": {outcome.message}" if outcome and outcome.message else ""))
        if assignment.steps is None:
            by = {"asha": self._asha} if event == "stopped" else {}
            note(self.plan.folder, event=event, trial=assignment.name, fingerprint=assignment.trial.fingerprint, **by)
            if outcome is not None:
                self.forwarder.end(assignment.trial.folder / FILE, STATUS[outcome.status])

    def _record(self, trial: Experiment, parent: str) -> Record:
        tags = standard_tags(trial.fingerprint, trial.spec.seed)
        tags |= {PARENT: parent, ROLE: "trial", SWEEP: self.plan.fingerprint, STAGE: "+".join(trial.spec.stages)}
        return Record(trial.name, trial.sets, tags)

    def record(self, report: Report | None, reports: dict[str, Report], outcomes: dict[str, Outcome], files: list[str]) -> None:
        """Writes the report and adds it to the sweep's record."""
        folder = self.plan.folder
        trials = {trial.name: trial.fingerprint for trial in self.plan.trials if trial.name in reports}
        before = [line.get("trials") for line in ledger(folder) if line.get("event") == "finished"]
        counts = {f"trials/{status}": sum(outcome.status == status for outcome in outcomes.values()) for status in get_args(Ended)}
        if not before or before[-1] != trials:  # a point each time that the sweep ends with other trials
            self.tracker.log_metrics({**counts, "trials/total": len(outcomes)}, step=len(before))
        if report is not None:
            named = labels(reports, {trial.name: trial.steps for trial in self.plan.trials})
            finished = [(trial, named[trial.name]) for trial in self.plan.trials if trial.name in named]
            files = [*files, *write_report(folder, report, finished, self.plan.spec.evaluate.split), "scores.svg"]
            write_text(folder / "scores.svg", score_file(report))
            self.tracker.log_table(list(_rows(self.plan, report, named)), "table.csv")
            self.tracker.describe(render_markdown(report))
        for file in files:
            self.tracker.log_artifact(folder / file)
        note(folder, event="finished", fingerprint=self.plan.fingerprint, trials=trials)


NOT_PARAMETERS = ("sweep", "paper")
"""Sections that are no parameters."""


def combined(plan: SweepPlan, reports: dict[str, Report], outcomes: dict[str, Outcome], spent: Spent | None = None) -> Report:
    """One report with the arms of all finished trials; arms that all trials share come first.

    Args:
        spent: what all trials have cost, where that is known.
    """
    first = next(iter(reports.values()))
    named = labels(reports, {trial.name: trial.steps for trial in plan.trials})
    arms = [(label, arm, trial) for trial, of_trial in named.items() for arm, label in of_trial.items()]
    scores = {label: reports[trial].scores[arm] for label, arm, trial in sorted(arms, key=lambda one: one[0] != one[1])}
    said = [(name, line) for name, report in reports.items() for line in report.notes]
    for_all = {line for line, count in Counter(line for _, line in said).items() if count == len(reports)}
    notes = [line if line in for_all else f"{name}: {line}" for name, line in said]
    notes += [
        f"{name}: no result; {outcome.status} {outcome.message}".rstrip() + "."
        for name, outcome in outcomes.items()
        if name not in reports and outcome.status != "unstarted"
    ]
    if left := unstarted(outcomes):
        notes.append(f"Not started, since {left[0].message}: {_names(left)}.")
    rows = [(report.facts.rows_used, report.facts.rows_dropped) for report in reports.values()]
    alike = all(one == rows[0] for one in rows)
    if not alike:
        notes.append("Trials differ in the rows that they used: the report of each says which.")
    facts = type(first.facts)(
        model=plan.spec.model.backbone,
        seed=plan.spec.seed,
        fingerprint=plan.fingerprint,
        versions=first.facts.versions,
        rows_used=rows[0][0] if alike else {},
        rows_dropped=rows[0][1] if alike else {},
        spent=spent or None,
    )
    return Report(title=plan.spec.name, scores=scores, facts=facts, notes=tuple(dict.fromkeys(notes)))


def _rows(plan: SweepPlan, report: Report, named: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """A row a score, with the settings of its trial in columns; a score that trials share stands in a row of each."""
    for trial in plan.trials:
        for arm, label in named.get(trial.name, {}).items():
            for score in report.scores[label].datasets:
                low, high = score.interval or (None, None)
                settings = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in trial.sets.items()}
                measured = {"metric": score.metric, "score": score.value, "low": low, "high": high, "rows": score.counted}
                yield {"trial": trial.name, **settings, "arm": arm, "dataset": score.dataset, **measured}


def _check(plan: SweepPlan) -> None:
    sweep = plan.spec.sweep
    if sweep is None:
        raise SpecError("sweep", "the spec has none", "run it as an experiment")
    if sweep.asha and not plan.spec.compute.workers:
        raise SpecError(
            "sweep.asha", "compute.workers is 0, so trials run one after the other and none can be compared early", "leave it out"
        )
    check_first(plan.trials, uses_ray=any(needs_ray(trial.spec, trial.steps) for trial in plan.trials))

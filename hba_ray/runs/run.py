"""One experiment from spec to report: walks its steps, does those that are not done, records all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hba_ray.cluster.growth import grown
from hba_ray.cluster.session import check_store, ray_session
from hba_ray.data.predictions import without_texts
from hba_ray.errors import SpecError
from hba_ray.report.tables import Report
from hba_ray.rl.settings import cpus_needed
from hba_ray.runs.meter import Meter
from hba_ray.runs.plan import Experiment
from hba_ray.runs.preflight import check_first, check_nodes
from hba_ray.runs.results import PAGE, TABLE, make_report, score_metrics, write_report
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import flat
from hba_ray.specs.load import as_yaml
from hba_ray.steps import away
from hba_ray.steps.base import STEP_LOG, Context, Step
from hba_ray.steps.metrics import logged_metrics
from hba_ray.steps.results.compare import COMPARISON, DIFFERENCES
from hba_ray.steps.results.evaluate import PREDICTIONS, SCORES
from hba_ray.steps.results.judge import VERDICTS
from hba_ray.steps.run import do_step, done_again
from hba_ray.store import journal as journals
from hba_ray.store.files import read_parquet, write_parquet
from hba_ray.store.folders import LOCK_SECONDS, RESOLVED, Storage, claimed, note, share, write_text
from hba_ray.store.follow import Metrics
from hba_ray.store.mlflow import MlflowTracker, Status, standard_tags
from hba_ray.store.provenance import changes, environment

ARM_FILES = (SCORES, PREDICTIONS, VERDICTS, COMPARISON, *DIFFERENCES)
"""What steps leave of an arm for the tracker, where it is there."""
SHOWN = "shown"
"""Folder in a run's own for copies of tables that the tracker gets without the texts of sensitive datasets."""


@dataclass(frozen=True)
class Finished:
    """A finished experiment.

    Attributes:
        folder: of the run.
        table: Markdown report; `report.json` beside it says the same to programs.
        page: the report to look at, one HTML file.
        mlflow: tracking URI, without secrets.
    """

    folder: Path
    report: Report
    table: Path
    page: Path
    mlflow: str


def run_experiment(experiment: Experiment, say: Callable[[str], None], tracker: journals.JournalTracker | None = None) -> Finished:
    """Does those steps of an experiment that are not done yet, and writes its report.

    Args:
        say: takes a line for people.
        tracker: where to record; MLflow as the spec says by default.

    Raises:
        HbaError: what a step could not do; what is finished stays finished.
    """
    spec, folder = experiment.spec, experiment.folder
    if spec.sweep is not None:
        raise SpecError("sweep", "a sweep is many experiments, and this runs one", "run its trials")
    storage = Storage(spec.compute.storage)
    check_first([experiment], uses_ray=needs_ray(spec, experiment.steps))
    for line in done_again(experiment.steps, storage):
        say(line)
    with ExitStack() as stack:
        stack.enter_context(run_lock(folder, say))
        if spec.compute.address != "local" and needs_ray(spec, experiment.steps):
            session = stack.enter_context(ray_session(spec.compute, folder / "logs", rollouts=cpus_needed(spec).total))
            check_store(spec.tracking, session)
            stack.enter_context(grown(spec.compute, say, cpus_needed(spec).total))
            check_nodes([experiment], (session.cpus, session.gpus))
        origin = write_origin(spec, folder)
        is_trial = tracker is not None
        tracker = tracker or stack.enter_context(_through_a_journal(spec, storage, folder, say))
        stack.enter_context(_recorded(tracker, spec, experiment.fingerprint))
        meter = Meter([folder], spec.compute)
        meter.begin(folder)
        with meter.telling(_nothing if is_trial else say, tracker.log_metrics):
            do_steps(experiment, tracker.log_metrics, say, after=partial(_record_step, experiment=experiment, tracker=tracker))
        report = make_report(experiment, meter.spent())
        tracker.log_metrics(score_metrics(report), step=0)
        written = write_report(folder, report, [(experiment, {arm: arm for arm in report.scores})], spec.evaluate.split)
        for file in (*origin, *written):
            tracker.log_artifact(folder / file)
        note(folder, event="finished", fingerprint=experiment.fingerprint)
    return Finished(folder, report, folder / TABLE, folder / PAGE, spec.tracking.shown or storage.mlflow_uri)


def _nothing(line: str) -> None:
    """Of a trial, the sweep tells what it has spent."""


def write_origin(spec: ExperimentSpec, folder: Path) -> list[str]:
    """Writes what a result comes from: the resolved spec, versions, and the uncommitted changes of the source. Returns file names."""
    files = {
        RESOLVED: as_yaml(spec),
        "env.json": json.dumps(environment(), indent=1) + "\n",
    }
    if patch := changes():
        files["source.diff"] = patch
    for name, text in files.items():
        write_text(folder / name, text)
    return list(files)


def needs_ray(spec: ExperimentSpec, steps: Sequence[Step]) -> bool:
    """Whether a step that is still to be done needs Ray; see `steps.away.needs_ray`."""
    return any(away.needs_ray(spec, step) and not step.is_done for step in steps)


def do_steps(
    experiment: Experiment,
    log: Callable[[Metrics, int], None],
    say: Callable[[str], None],
    *,
    first: int | None = None,
    after: Callable[[Step], None] = lambda step: None,
) -> None:
    """Does those of an experiment's steps that are not done, in order; all of them are noted in its ledger.

    Args:
        log: takes metrics as they come.
        first: do so many steps; all by default.
        after: called when a step is done, also where it was done before.
    """
    spec, earlier = experiment.spec, dict[str, Step]()
    with ExitStack() as stack:
        for step in experiment.steps[:first]:
            if needs_ray(spec, [step]):
                stack.enter_context(ray_session(spec.compute, experiment.folder / "logs", rollouts=cpus_needed(spec).total))
            do_step(Context(spec, step, dict(earlier), log), say, run=experiment.folder)
            earlier[step.name] = step
            after(step)
            share(experiment.folder)


def run_lock(folder: Path, say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Holds the lock of a run's folder; where another driver holds it, says so and waits."""
    return claimed(
        folder,
        wait_seconds=LOCK_SECONDS,
        on_wait=lambda: say(f"{folder.name}: another process is running this experiment; waiting until it ends"),
    )


@contextmanager
def _through_a_journal(
    spec: ExperimentSpec, storage: Storage, folder: Path, say: Callable[[str], None]
) -> Iterator[journals.JournalTracker]:
    """A journal in the run's folder whose lines are forwarded to MLflow; while MLflow is away, they wait there."""
    journal = folder / journals.FILE
    with journals.forwarding(MlflowTracker(spec.tracking, storage.folder), say) as forwarder:
        forwarder.add(journal)
        yield journals.JournalTracker(journal)


@contextmanager
def _recorded(tracker: journals.JournalTracker, spec: ExperimentSpec, fingerprint: str) -> Iterator[None]:
    """Opens the record of a run, and closes it as finished, failed or killed."""
    tracker.start(spec.name, flat(spec.model_dump(mode="json", exclude={"paper"})), standard_tags(fingerprint, spec.seed))
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


def _record_step(step: Step, experiment: Experiment, tracker: journals.JournalTracker) -> None:
    """Adds the metrics and files of a done step, whichever run did it, to the record and to the run's folder."""
    run_folder, show_sensitive = experiment.folder, experiment.spec.report.show_sensitive
    for metrics, number in logged_metrics(step):
        tracker.log_metrics(metrics, number)  # keeps of a metric what it does not have
    if step.kind.name == "atlas":
        tracker.log_input("atlas", step.fingerprint, step.folder.relative_to(run_folder.parent).as_posix())
    if step.arm:
        for file in filter(step.has, ARM_FILES):
            shown = step.file(file) if show_sensitive else _without_texts(step, file, run_folder)
            tracker.log_artifact(shown, f"{step.kind.name}/{step.arm}")
    if step.kind.name == "compare":
        for file in DIFFERENCES:
            shutil.copyfile(step.file(file), run_folder / f"{step.name.replace(' ', '-')}-{file}")
    if step.has(STEP_LOG):
        tracker.log_artifact(step.file(STEP_LOG), step.kind.name)


def _without_texts(step: Step, file: str, run_folder: Path) -> Path:
    """The file of a step or, where it is a table with texts of sensitive datasets, its copy without them in the run's folder."""
    whole = step.file(file)
    if file not in (PREDICTIONS, VERDICTS):
        return whole
    table = read_parquet(whole)
    shown = without_texts(table)
    if shown.equals(table):
        return whole
    copy = run_folder / SHOWN / step.folder.name / file
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(shown, copy)
    return copy

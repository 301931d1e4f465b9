"""One experiment from spec to report: walks its steps, does those that are not done, records all of it."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from hba_ray.cluster.session import check_capacity, check_store, local_cpus, ray_session
from hba_ray.errors import HbaError, SpecError
from hba_ray.evaluation.pairs import PairScore, pairs_from_json, with_holm
from hba_ray.evaluation.scores import DatasetScore, Scores
from hba_ray.report.tables import Report, RunFacts, render_json, render_markdown
from hba_ray.runs.opened import Trained, write_page
from hba_ray.runs.plan import plan, run_fingerprint
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import CHECKS, MAKERS, NOTES
from hba_ray.steps.base import STEP_LOG, Context, Step, add_drops, join_losses, logged_metrics, rows_used
from hba_ray.steps.compare import COMPARISON, DIFFERENCES
from hba_ray.steps.evaluate import PREDICTIONS, SCORES
from hba_ray.steps.judge import VERDICTS
from hba_ray.store import journal as journals
from hba_ray.store.folders import LOCK_SECONDS, Storage, claimed, done, finish, note, write_text
from hba_ray.store.follow import Metrics
from hba_ray.store.mlflow import MlflowTracker, Status, Tracker, standard_tags
from hba_ray.store.provenance import changes, environment, gpu_names

ARM_FILES = (SCORES, PREDICTIONS, VERDICTS, COMPARISON, *DIFFERENCES)
"""What steps leave of an arm for the tracker, where it is there."""


@dataclass(frozen=True)
class Finished:
    """A finished experiment.

    Attributes:
        folder: of the run.
        table: Markdown report; `report.json` beside it says the same to programs.
        page: the report to look at, one HTML file.
        mlflow: tracking URI.
    """

    folder: Path
    report: Report
    table: Path
    page: Path
    mlflow: str


def run_experiment(spec: ExperimentSpec, say: Callable[[str], None], tracker: Tracker | None = None) -> Finished:
    """Does what is not done yet and reports.

    Args:
        say: takes a line for people.
        tracker: where to record; MLflow as the spec says by default.

    Raises:
        HbaError: what a step could not do; what is finished stays finished.
    """
    if spec.sweep is not None:
        raise SpecError("sweep", "a sweep is many experiments, and this runs one", "run its trials")
    storage = Storage(spec.compute.storage)
    steps = plan(spec, storage)
    check_first(spec, steps)
    name = run_fingerprint(steps)
    folder = storage.run(spec.name, name)
    with ExitStack() as stack:
        stack.enter_context(alone_in(folder, say))
        if spec.compute.address != "local" and needs_ray(spec, steps):
            check_store(spec.tracking, stack.enter_context(ray_session(spec.compute, folder / "logs", rollouts="grpo" in spec.stages)))
        origin = write_origin(spec, folder)
        tracker = tracker or stack.enter_context(_through_a_journal(spec, storage, folder, say))
        stack.enter_context(_recorded(tracker, spec, name))
        do_steps(spec, steps, folder, tracker.log_metrics, say, partial(_record_step, run_folder=folder, tracker=tracker))
        report = make_report(spec, steps)
        tracker.log_metrics(score_metrics(report), step=0)
        write_text(folder / "report.json", render_json(report))
        write_text(folder / "table.md", render_markdown(report))
        page = write_page(folder, report, [Trained("", steps, {arm: arm for arm in report.scores})], spec.evaluate.split)
        for file in (*origin, "table.md", "report.json", page.name):
            tracker.log_artifact(folder / file)
        note(folder, event="finished", fingerprint=name)
    return Finished(folder, report, folder / "table.md", page, spec.tracking.mlflow or storage.mlflow_uri)


def write_origin(spec: ExperimentSpec, folder: Path) -> list[str]:
    """What a result comes from: the whole spec, the versions and, where the source was changed since its commit, how."""
    files = {"resolved.yaml": yaml.safe_dump(spec.identity(), sort_keys=False), "env.json": json.dumps(environment(), indent=1) + "\n"}
    if patch := changes():
        files["source.diff"] = patch
    for name, text in files.items():
        write_text(folder / name, text)
    return list(files)


def needs_ray(spec: ExperimentSpec, steps: list[Step]) -> bool:
    """Whether a step that is to be done runs on Ray: with `compute.workers` 0 only verl's, which knows no other place."""
    return any(step.uses_ray and not step.is_done and (spec.compute.workers or step.kind == "grpo") for step in steps)


def do_steps(
    spec: ExperimentSpec,
    steps: list[Step],
    run_folder: Path,
    log: Callable[[Metrics, int], None],
    say: Callable[[str], None],
    after: Callable[[Step], None] = lambda step: None,
) -> None:
    """Does those of the steps that are not done, in order; all of them are noted in the run's ledger.

    Args:
        log: takes metrics as they come.
        after: called when a step is done, also where it was done before.
    """
    folders: dict[str, Path] = {}
    with ExitStack() as stack:
        for step in steps:
            if needs_ray(spec, [step]):
                stack.enter_context(ray_session(spec.compute, run_folder / "logs", rollouts="grpo" in spec.stages))
            _do(step, Context(spec, folders, step.folder, log, step.arm, step.part), run_folder, say)
            folders[step.name] = step.folder
            after(step)


def alone_in(folder: Path, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Holds a run's folder; waits for another driver that does, and then finds its work done."""
    return claimed(folder, wait_seconds=LOCK_SECONDS, on_wait=lambda: say(f"{folder.name}: another process is at it; waiting for its end"))


@contextmanager
def _through_a_journal(spec: ExperimentSpec, storage: Storage, folder: Path, say: Callable[[str], None]) -> Iterator[Tracker]:
    """MLflow as the spec says; where it goes away, its share waits in the run's folder."""
    journal = folder / journals.FILE
    with journals.forwarding(MlflowTracker(spec.tracking, storage.folder), say) as forwarder:
        forwarder.add(journal)
        yield journals.JournalTracker(journal)


def check_first(spec: ExperimentSpec, steps: list[Step]) -> None:
    """Refuses what could only fail later, before anything is done.

    Raises:
        EnvironmentMissing: a private Ray would lack the CPUs or GPUs, or a service that a step needs is not there.
        CheckpointError: the backbone's hub id cannot be reached.
    """
    if spec.compute.address == "local" and needs_ray(spec, steps):
        gpus = len(gpu_names()) if spec.compute.gpus_per_worker else 0
        check_capacity(spec.compute, local_cpus(spec.compute, rollouts="grpo" in spec.stages), gpus)
    for check in dict.fromkeys(CHECKS[step.kind] for step in steps if step.kind in CHECKS and not step.is_done):
        check(spec)


@contextmanager
def _recorded(tracker: Tracker, spec: ExperimentSpec, fingerprint: str) -> Iterator[None]:
    """The record of the run, closed as what it came to."""
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


def _do(step: Step, context: Context, run_folder: Path, say: Callable[[str], None]) -> None:
    if step.is_done:
        say(f"{step.name} {step.fingerprint}: done before")
        note(run_folder, event="reused", step=step.name, fingerprint=step.fingerprint)
        return
    with claimed(step.folder, wait_seconds=LOCK_SECONDS):
        if step.is_done:  # by the run that held the lock
            say(f"{step.name} {step.fingerprint}: done by another run")
            return
        say(f"{step.name} {step.fingerprint}: {step.what}")
        note(run_folder, event="started", step=step.name, fingerprint=step.fingerprint)
        began = time.monotonic()
        facts = MAKERS[step.kind](context)
        finish(step.folder, {**facts, "seconds": round(time.monotonic() - began, 1)})
        note(run_folder, event="done", step=step.name, fingerprint=step.fingerprint)


def _record_step(step: Step, run_folder: Path, tracker: Tracker) -> None:
    """What a step leaves for the record and for the run's folder, whether it was done now or before."""
    for metrics, number in logged_metrics(step):
        tracker.log_metrics(metrics, number)  # keeps of a metric what it does not have
    if step.kind == "atlas":
        tracker.log_input("atlas", step.fingerprint, str(step.folder))
    if step.arm:
        for file in ARM_FILES:
            if (step.folder / file).exists():
                tracker.log_artifact(step.folder / file, f"{step.kind}/{step.arm}")
    if step.kind == "compare":
        for file in DIFFERENCES:
            shutil.copyfile(step.folder / file, run_folder / f"{step.name.replace(' ', '-')}-{file}")
    if (step.folder / STEP_LOG).exists():
        tracker.log_artifact(step.folder / STEP_LOG, step.kind)


def make_report(spec: ExperimentSpec, steps: list[Step]) -> Report:
    """The report of finished steps, from what they left on disk."""
    facts = {step.name: _facts(step) for step in steps}
    lost = join_losses(fact["lost"] for fact in facts.values() if fact.get("lost"))
    packages = environment()["packages"]
    return Report(
        title=spec.name,
        scores={step.arm: read_scores(step.folder) for step in steps if step.arm and (step.folder / SCORES).exists()},
        facts=RunFacts(
            model=spec.model.backbone,
            seed=spec.seed,
            fingerprint=run_fingerprint(steps),
            versions={"python": platform.python_version(), **packages},
            rows_used=rows_used(steps),
            rows_dropped=add_drops([*(fact["drops"] for fact in facts.values() if fact.get("drops")), *lost.values()]),
        ),
        notes=_notes(spec, steps, facts),
        comparisons=with_holm(pair for step in steps if step.kind == "compare" for pair in read_comparison(step.folder)),
    )


def read_scores(folder: Path) -> Scores:
    """What an evaluate or a judge step left; of an arm that has both, the judge's count."""
    return Scores.from_json((folder / SCORES).read_text(), where=str(folder / SCORES))


def read_comparison(folder: Path) -> tuple[PairScore, ...]:
    """What a compare step left."""
    return pairs_from_json((folder / COMPARISON).read_text(), where=str(folder / COMPARISON))


def _facts(step: Step) -> dict[str, Any]:
    facts = done(step.folder)
    if facts is None:
        raise HbaError(str(step.folder), f"step {step.name} is not finished", "run the spec first")
    return facts


def _notes(spec: ExperimentSpec, steps: list[Step], facts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """What a reader of the table has to know, step by step, each thing once."""
    notes = [note for step in steps if step.kind in NOTES for note in NOTES[step.kind](spec, facts[step.name])]
    if spec.compat == "authors":
        notes.append("compat: authors, the released code's behaviour where it differs from the paper.")
    return tuple(dict.fromkeys(notes))


def score_metrics(report: Report) -> dict[str, float]:
    """Scores under the names that MLflow shows: `score/<arm>/<dataset>` and `score/<arm>/task/<task>`, with `_ci_lo`, `_ci_hi`
    and `_n`; MLflow takes no "+" in them."""
    metrics: dict[str, float] = {}
    for arm, scores in ((arm.replace("+", " "), scores) for arm, scores in report.scores.items()):
        for score in (*scores.datasets, *scores.tasks):
            if score.value is None:
                continue
            name = f"score/{arm}/" + (score.dataset if isinstance(score, DatasetScore) else f"task/{score.task}")
            metrics[name] = score.value
            if score.interval is not None:
                metrics[f"{name}_ci_lo"], metrics[f"{name}_ci_hi"] = score.interval
            if isinstance(score, DatasetScore):
                metrics[f"{name}_n"] = score.counted
    return metrics


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> flat({"sft": {"lr": 0.1}})
    {'sft.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves

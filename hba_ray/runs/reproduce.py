"""Reproduces a table of the paper: does or reads the trials of its spec, and sets what they measured beside what is published."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.errors import SpecError
from hba_ray.evaluation.arms import Arm, baselines
from hba_ray.report.differences import differences, sentences
from hba_ray.report.formats import write_named
from hba_ray.report.page import JudgedTable
from hba_ray.report.paper_table import document
from hba_ray.report.verdicts import TableVerdict, check_rows, give_verdicts, toy_row
from hba_ray.runs.measured import check_columns, cost_note, measured_columns
from hba_ray.runs.opened import rebuild_page
from hba_ray.runs.plan import Experiment, plan
from hba_ray.runs.results import write_verdict
from hba_ray.runs.sweep_plan import SweepPlan, plan_sweep
from hba_ray.specs import ExperimentSpec, MeasuredBy, PaperSpec, load_spec
from hba_ray.specs.sections.compute import CHANGE_NO_RESULT
from hba_ray.steps.inputs import describe
from hba_ray.store.journal import FILE, JournalTracker, forwarding
from hba_ray.store.mlflow import MlflowTracker

if TYPE_CHECKING:
    from hba_ray.evaluation.costs import Latency


@dataclass(frozen=True)
class Reproduced:
    """A table of the paper with what was measured and the verdicts.

    Attributes:
        differs: what is known of the spec's differences from the paper and the released code, and what this run did otherwise
            than the shipped spec.
        files: the table as Markdown, CSV, LaTeX and JSON.
        page: the run's report, the table in it.
    """

    verdict: TableVerdict
    differs: tuple[str, ...]
    files: tuple[Path, ...]
    page: Path


def read_table(file: Path, overrides: Sequence[str], *, toy: Path | None = None) -> ExperimentSpec:
    """A table's spec, at its own scale or at that of the toy overlay.

    Raises:
        SpecError: as `load_spec`; or it has no table, or a row that nothing could measure.
    """
    spec = load_spec(file, overrides)
    check_rows(_paper(spec, str(file)), str(file))
    return spec if toy is None else _at_toy_scale(file, spec, overrides, toy)


def _at_toy_scale(file: Path, spec: ExperimentSpec, overrides: Sequence[str], toy: Path) -> ExperimentSpec:
    """The same trials under the toy overlay: toy datasets stand in for held-out ones, and the untrained tiny model for baselines."""
    needs_ray = "grpo" in spec.stages or describe.settings(spec).streams  # verl's workers, and the extractors' own environments
    implied = [f"name={spec.name}-toy", f"compute.workers={int(bool(needs_ray))}"]
    if spec.atlas.held_out:
        stand_ins = dict.fromkeys(row for name in spec.atlas.held_out if (row := toy_row(name)))
        implied.append(f"atlas.held_out=[{', '.join(stand_ins)}]")
    if spec.evaluate.baselines:
        implied.append("evaluate.baselines=[tiny]")
    small, untrained = load_spec(file, [*implied, *overrides], over=[toy]), baselines(spec)
    paper = _paper(small, small.name)
    arms = {name: _stand_in(measured, untrained) for name, measured in paper.arms.items()}
    return small.model_copy(update={"paper": paper.model_copy(update={"arms": arms})})


def _stand_in(measured: MeasuredBy | None, untrained: Container[Arm]) -> MeasuredBy | None:
    if measured is None or Arm.parse(measured.arm) not in untrained:
        return measured
    return measured.model_copy(update={"arm": str(Arm(baseline="tiny"))})


def reproduce(spec: ExperimentSpec, say: Callable[[str], None], overrides: Sequence[str] = ()) -> Reproduced:
    """Does those trials that are not done yet, and sets what they measured beside the published table.

    Args:
        say: takes a line for people.
        overrides: of the command line, which the table names.

    Raises:
        HbaError: what a trial could not do; finished trials stay finished.
        SpecError: a column is measured by no trial.
    """
    paper = _paper(spec, spec.name)
    planned = plan_table(spec)
    trials = planned.trials if isinstance(planned, SweepPlan) else (planned,)
    if not _is_toy(spec):
        check_columns(spec, trials)
    folder = _run(planned, say)
    wants_cost = any(row.startswith("cost/") for rows in paper.published.values() for row in rows)
    latency = _latency(trials[0], say) if wants_cost else None
    found = give_verdicts(paper, measured_columns(paper, trials, latency), is_toy=_is_toy(spec))
    changed = [f"{word} (command line)" for word in overrides if word.partition(".")[0] not in CHANGE_NO_RESULT]
    known = () if _is_toy(spec) else _known_differences(trials[0].spec, overrides)
    notes = (*known, *changed, *((cost_note(latency),) if latency else ()))
    files = tuple(write_table(found, notes, folder))
    write_verdict(folder, JudgedTable(found, notes))
    page = rebuild_page(folder)
    _record(spec, folder, (*files, page), say)
    return Reproduced(found, notes, files, page)


def _known_differences(spec: ExperimentSpec, overrides: Sequence[str]) -> tuple[str, ...]:
    """What is known of a spec's differences; those that the command line makes are named by themselves."""
    named = {word.partition("=")[0] for word in overrides}
    return tuple(sentences(one for one in differences(spec) if one.key not in named))


def _record(spec: ExperimentSpec, folder: Path, files: Sequence[Path], say: Callable[[str], None]) -> None:
    """Adds files to the MLflow record of a finished run; the page there was written before the verdicts were known."""
    from hba_ray.runs.run import run_lock

    with run_lock(folder, say), forwarding(MlflowTracker(spec.tracking, folder.parent), say) as forwarder:
        tracker = JournalTracker(folder / FILE)
        for file in files:
            tracker.log_artifact(file)
        forwarder.add(folder / FILE)


def _latency(experiment: Experiment, say: Callable[[str], None]) -> Latency:
    """Latency and memory of adapters on this machine, as measured before or, where they were not, now."""
    from hba_ray.progress import progress
    from hba_ray.runs.cost import known_cost, measure_cost

    known = known_cost(experiment)
    if known is not None:
        say(f"latency and memory were measured before, on {known.device}")
        return known
    with progress("latency and memory", total=None) as bar:
        return measure_cost(experiment, on_row=bar.advance)[0]


def write_table(found: TableVerdict, differs: Sequence[str], folder: Path) -> Iterator[Path]:
    """Writes the table in all formats; gives the files."""
    yield from write_named(document(found, differs), folder, found.paper.table)


def plan_table(spec: ExperimentSpec) -> Experiment | SweepPlan:
    """The experiment or the sweep that a table is measured by, without the table: no trial depends on it."""
    plain = spec.model_copy(update={"paper": None})
    return plan(plain) if spec.sweep is None else plan_sweep(plain)


def _run(planned: Experiment | SweepPlan, say: Callable[[str], None]) -> Path:
    """Does what is not done yet. Returns the folder of the run."""
    if isinstance(planned, Experiment):
        from hba_ray.runs.run import run_experiment

        return run_experiment(planned, say).folder
    from hba_ray.runs.sweep import run_sweep

    swept = run_sweep(planned, say)
    swept.check()
    return swept.folder


def _paper(spec: ExperimentSpec, where: str) -> PaperSpec:
    if spec.paper is None:
        raise SpecError(where, "has no `paper` section, so there is nothing to set results beside", "use `hba run`")
    return spec.paper


def _is_toy(spec: ExperimentSpec) -> bool:
    return spec.model.backbone == "tiny" or spec.atlas.is_toy

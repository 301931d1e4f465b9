"""Reproduces a table of the paper: does or reads the trials of its spec, and sets what they measured beside what is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hba_ray.errors import SpecError
from hba_ray.evaluation.columns import ArmResult, Column
from hba_ray.report.formats import to_csv, to_latex
from hba_ray.report.html.page import Judged
from hba_ray.report.published import render_json, render_markdown, sheets
from hba_ray.report.verdicts import TableVerdict, check_rows, judge_table, toy_row
from hba_ray.runtime.storage import Storage, done, write_text
from hba_ray.specs import ExperimentSpec, MeasuredBy, PaperSpec, load_spec, trials
from hba_ray.specs.base import value_at
from hba_ray.sweeps.evidence import write_verdict
from hba_ray.sweeps.plan import plan
from hba_ray.sweeps.runs import rebuild_page
from hba_ray.sweeps.steps.base import Step
from hba_ray.sweeps.steps.evaluate import PREDICTIONS
from hba_ray.sweeps.steps.judge import verdicts_in


@dataclass(frozen=True)
class PlannedArms:
    """One trial of a table's spec, planned."""

    name: str
    spec: ExperimentSpec
    steps: Sequence[Step]

    def evaluated(self, arm: str) -> Step | None:
        """The step that predicts with an arm."""
        return next((step for step in self.steps if step.kind == "evaluate" and step.arm == arm), None)

    def judged(self, arm: str) -> Step | None:
        return next((step for step in self.steps if step.kind == "judge" and step.arm == arm), None)

    def is_meant(self, measured: MeasuredBy) -> bool:
        """Whether it has the settings and the arm that measure a column."""
        return all(value_at(self.spec, key) == value for key, value in measured.where.items()) and self.evaluated(measured.arm) is not None


@dataclass(frozen=True)
class Reproduced:
    """A table, judged.

    Attributes:
        differs: what this run did otherwise than the shipped spec.
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
    if spec.paper is None:
        raise SpecError(str(file), "has no `paper` section, so there is nothing to set results beside", "use `hba run`")
    check_rows(spec.paper, str(file))
    if toy is None:
        return spec
    implied = [f"name={spec.name}-toy", f"compute.workers={int('grpo' in spec.stages)}"]  # verl needs a Ray, the rest does without
    if spec.atlas.held_out:
        stand_ins = dict.fromkeys(row for name in spec.atlas.held_out if (row := toy_row(name)))
        implied.append(f"atlas.held_out=[{', '.join(stand_ins)}]")
    return load_spec(file, [*implied, *overrides], over=[toy])


def reproduce(spec: ExperimentSpec, say: Callable[[str], None], overrides: Sequence[str] = ()) -> Reproduced:
    """Does what is not done yet, and judges.

    Args:
        say: takes a line for people.
        overrides: of the command line, which the table names.

    Raises:
        HbaError: what a trial could not do; finished trials stay finished.
        SpecError: a column is measured by no trial.
    """
    paper = _paper(spec)
    planned = planned_arms(spec)
    if not _is_toy(spec):
        check_columns(spec, planned)
    folder = _run(spec, say)
    found = judge_table(paper, measured_columns(paper, planned), is_toy=_is_toy(spec))
    differs = tuple(f"{word} (command line)" for word in overrides)
    files = tuple(write_table(found, differs, folder))
    write_verdict(folder, Judged(found, differs))
    return Reproduced(found, differs, files, rebuild_page(folder))


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
    for column, measured in _paper(spec).arms.items():
        if measured is not None and not any(trial.is_meant(measured) for trial in planned):
            arms = dict.fromkeys(step.arm for trial in planned for step in trial.steps if step.kind == "evaluate" and step.arm)
            settings = "".join(f", {key}={value}" for key, value in measured.where.items())
            what = f"no trial measures the column '{column}': arm '{measured.arm}'{settings}"
            raise SpecError(f"{spec.name}: paper.arms", what, f"arms here: {', '.join(arms)}; is its setting among those of sweep?")


def measured_columns(paper: PaperSpec, planned: Sequence[PlannedArms]) -> dict[str, Column]:
    """Column -> what finished trials measured of it; columns that no trial measures are left out.

    Raises:
        DataError: predictions are damaged, or two trials measure one cell.
    """
    columns = {}
    for name, measured in paper.arms.items():
        found = {} if measured is None else dict(_results(measured, planned))
        if found:
            is_toy = any(trial.spec.atlas.source == "toy" for trial in planned)
            columns[name] = Column(tuple(found.values()), toy=is_toy)
    return columns


def write_table(found: TableVerdict, differs: Sequence[str], folder: Path) -> Iterator[Path]:
    """Writes the table in all forms; gives the files."""
    made = sheets(found, differs)
    texts = {
        "md": render_markdown(found, differs),
        "csv": to_csv(made[0]),
        "tex": "\n".join(map(to_latex, made)),
        "json": render_json(found),
    }
    for ending, text in texts.items():
        file = folder / f"{found.paper.table}.{ending}"
        write_text(file, text)
        yield file


def _results(measured: MeasuredBy, planned: Sequence[PlannedArms]) -> Iterator[tuple[str, ArmResult]]:
    """(what the predictions are, they themselves): an arm that several trials share counts once."""
    for trial in planned:
        step = trial.evaluated(measured.arm) if trial.is_meant(measured) else None
        if step is None or not step.is_done:
            continue
        judged = trial.judged(measured.arm)
        atlas = next(done(one.folder) or {} for one in trial.steps if one.kind == "atlas")
        yield (
            step.fingerprint,
            ArmResult(
                trial=trial.name,
                arm=measured.arm,
                seed=_seed(trial.spec, measured.arm),
                predictions=pq.read_table(step.folder / PREDICTIONS),
                sizes={dataset: sum(splits.values()) for dataset, splits in atlas.get("counts", {}).items()},
                verdicts=None if judged is None or not judged.is_done else verdicts_in(judged.folder),
            ),
        )


def _seed(spec: ExperimentSpec, arm: str) -> int:
    """What tells repetitions of an arm apart."""
    own: Any = value_at(spec, "bam.seed") if "bam" in arm.split("+") else None
    return spec.seed if own is None else int(own)


def _run(spec: ExperimentSpec, say: Callable[[str], None]) -> Path:
    """Does what is not done yet; gives the folder of the run."""
    plain = spec.model_copy(update={"paper": None})
    if spec.sweep is None:
        from hba_ray.sweeps.trial import run_experiment

        return run_experiment(plain, say).folder
    from hba_ray.sweeps.sweep import run_sweep

    swept = run_sweep(plain, say)
    swept.check()
    return swept.folder


def _paper(spec: ExperimentSpec) -> PaperSpec:
    if spec.paper is None:
        raise SpecError(spec.name, "has no `paper` section, so there is nothing to set results beside", "use `hba run`")
    return spec.paper


def _is_toy(spec: ExperimentSpec) -> bool:
    return spec.model.backbone == "tiny" or spec.atlas.source == "toy"

"""Collects from the folders of finished trials what fills the columns of a paper table: predictions, verdicts of judges, and
numbers that are no scores, such as the cost of adapters, the quality of written answers and the agreement of judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hba_ray.errors import DataError, SpecError
from hba_ray.evaluation.agreement import Labels, agree, labels_of
from hba_ray.evaluation.arms import Arm
from hba_ray.evaluation.columns import MEASURED, ArmResult, Column, Measurement
from hba_ray.evaluation.scores import clips_of
from hba_ray.evaluation.statistics import Interval, interval, ratio_draws
from hba_ray.runs.plan import Experiment
from hba_ray.specs import ExperimentSpec, MeasuredBy, PaperSpec
from hba_ray.steps.inputs.drops import rows_used
from hba_ray.steps.results.evaluate import PREDICTIONS
from hba_ray.steps.results.judge import verdicts_in
from hba_ray.steps.results.retention import WRITTEN
from hba_ray.steps.stages import bam
from hba_ray.store.files import read_parquet

if TYPE_CHECKING:
    from hba_ray.evaluation.costs import Latency


PERSON = "person"


def check_columns(spec: ExperimentSpec, planned: Sequence[Experiment]) -> None:
    """Refuses a table with a column that no trial would measure.

    Raises:
        SpecError: names the column, and the arms that there are.
    """
    for column, measured in (spec.paper.arms if spec.paper else {}).items():
        if measured is None:
            continue
        other = [measured.against] if isinstance(measured.against, dict) else []
        for where in [measured.where, *other]:
            if not any(trial.has(Arm.parse(measured.arm), where) for trial in planned):
                arms = dict.fromkeys(str(step.arm) for trial in planned for step in trial.steps if step.kind.name == "evaluate")
                settings = "".join(f", {key}={value}" for key, value in where.items())
                what = f"no trial measures the column '{column}': arm '{measured.arm}'{settings}"
                raise SpecError(f"{spec.name}: paper.arms", what, f"arms here: {', '.join(arms)}; is its setting among those of sweep?")


def measured_columns(paper: PaperSpec, planned: Sequence[Experiment], latency: Latency | None = None) -> dict[str, Column]:
    """Column of the table -> what finished trials measured of it, without columns that no trial measures.

    Args:
        latency: what adapters cost on this machine, where the table asks for it.

    Raises:
        DataError: predictions are damaged, two trials measure one cell, or a person's labels are not in order.
    """
    columns = {}
    for name, measured in paper.arms.items():
        if measured is None or (measured.against == PERSON and paper.labels is None):
            continue
        asked = {row.partition("/")[0] for row in paper.published[name]} & MEASURED.keys()
        found = _each_once(_results(measured, planned, _Measuring(paper, planned, asked, latency)))
        if found:
            is_toy = any(trial.spec.atlas.is_toy for trial in planned)
            columns[name] = Column(found, toy=is_toy)
    return columns


def _each_once(results: Iterable[tuple[str, str, ArmResult]]) -> tuple[ArmResult, ...]:
    """The results of a column, those that several trials share once.

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
class _Measuring:
    """What is measured of a column's arms beside the scores of predictions.

    Attributes:
        asked: what its rows are about, of `MEASURED`.
    """

    paper: PaperSpec
    planned: Sequence[Experiment]
    asked: set[str]
    latency: Latency | None

    def collect(self, measured: MeasuredBy, trial: Experiment, predictions: Path) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if "cost" in self.asked and self.latency is not None:
            found |= cost_measurements(self.latency, measured.arm)
        clips = clips_in(predictions) if {"answers", "agreement"} & self.asked else {}
        retained = trial.finished("retention", Arm.parse(measured.arm))
        if "answers" in self.asked and retained is not None:
            found |= retention_measurements(retained / WRITTEN, clips)
        judged = trial.finished("judge", Arm.parse(measured.arm))
        if "agreement" in self.asked and judged is not None:
            other = self._other_grader(measured, trial, judged)
            found |= {} if other is None else agreement_measurements(judged, other, clips)
        return found

    def _other_grader(self, measured: MeasuredBy, trial: Experiment, judged: Path) -> Path | dict[str, bool | None] | None:
        """What a judge's verdicts are compared with: the folder of another judge's verdicts on the same answers, or a person's labels."""
        if measured.against == PERSON:
            return labels_of(Path(self.paper.labels or ""), labels_in(judged))
        arm = Arm.parse(measured.arm)
        answers = trial.step("evaluate", arm)
        against = measured.against if isinstance(measured.against, dict) else None
        for other in self.planned:
            if against is not None and other.has(arm, against) and other.step("evaluate", arm) == answers:
                return other.finished("judge", arm)
        return None


def _results(measured: MeasuredBy, planned: Sequence[Experiment], of: _Measuring) -> Iterator[tuple[str, str, ArmResult]]:
    """(name of the predictions, name of the verdicts, result) of each trial that the column is measured by."""
    arm = Arm.parse(measured.arm)
    for trial in planned:
        folder = trial.finished("evaluate", arm) if trial.has(arm, measured.where) else None
        if folder is None:
            continue
        judged = trial.finished("judge", Arm.parse(measured.arm))
        yield (
            folder.name,
            "" if judged is None else judged.name,
            ArmResult(
                trial=trial.name,
                arm=measured.arm,
                seed=bam.seed(trial.spec) if arm.has_adapters else trial.spec.seed,
                predictions=read_parquet(folder / PREDICTIONS),
                sizes={dataset: sum(splits.values()) for dataset, splits in rows_used(trial.steps).items()},
                verdicts=None if judged is None else verdicts_in(judged),
                measurements=of.collect(measured, trial, folder / PREDICTIONS),
            ),
        )


NORMAL_95 = 1.96
"""Standard errors on either side of a mean that hold it 19 times of 20."""
PAPERS_GPU, PAPERS_PRECISIONS = "H200", ("bf16", "fp16")
"""What Table 13 was measured on, and the precisions whose weights take as many bytes."""


def cost_measurements(found: Latency, arm: str) -> dict[str, Measurement]:
    """Time and memory of an arm, with adapters or without; comparable with the paper's on its own GPU alone."""
    of = found.with_bam if Arm.parse(arm).has_adapters else found.without
    is_papers = PAPERS_GPU in found.device and found.precision in PAPERS_PRECISIONS
    caveat, error = "" if is_papers else "other hardware", of.deviation / max(found.rows, 1) ** 0.5
    mean = Interval(of.mean, of.mean - NORMAL_95 * error, of.mean + NORMAL_95 * error, error, 0.95, found.rows)
    others = {
        name: Interval(value, None, None, None, 0.95, found.rows) for name, value in (("std_seconds", of.deviation), ("peak_mb", of.peak))
    }
    return {f"cost/{name}": Measurement(one, caveat=caveat) for name, one in {"mean_seconds": mean, **others}.items()}


def cost_note(found: Latency) -> str:
    """A sentence on how the costs were measured, and how the paper measured its own."""
    return (
        f"Measured on {found.device}, weights in {found.precision}, {found.rows} rows; the paper has FP16 on H200 GPUs and 500 rows. "
        "Verdicts are given on such a GPU alone."
    )


def retention_measurements(rows: Path, clips: Mapping[str, str]) -> dict[str, Measurement]:
    """How an arm's open answers are written; what no judge has rated is left out.

    Args:
        rows: table of the retention step.
        clips: "dataset sample_id" -> clip, of all rows of the arm.
    """
    from hba_ray.evaluation.retention import DIMENSIONS

    table = read_parquet(rows).to_pylist()
    of_rows = [clips[f"{row['dataset']} {row['sample_id']}"] for row in table]
    rated = {name: [row[name] for row in table] for name in DIMENSIONS}
    facts = {
        f"answers/{name}": _mean([rating or 0 for rating in given], [float(rating is not None) for rating in given], of_rows)
        for name, given in rated.items()
        if any(rating is not None for rating in given)
    }
    losses, tokens = [row["log_loss"] for row in table], [float(row["tokens"]) for row in table]
    return facts | ({"answers/perplexity": _mean(losses, tokens, of_rows, exponent=True)} if any(tokens) else {})


def agreement_measurements(first: Path, second: Path | Labels, clips: Mapping[str, str]) -> dict[str, Measurement]:
    """Cohen's kappa of a judge and another, or a person.

    Args:
        first, second: folders of judge steps; or labels by "dataset sample_id".
        clips: "dataset sample_id" -> clip.
    """
    other = labels_in(second) if isinstance(second, Path) else second
    return {"agreement/kappa": Measurement(agree(labels_in(first), other, clips=clips).kappa)}


def labels_in(folder: Path) -> dict[str, bool | None]:
    """Verdicts of a judge step, by "dataset sample_id"."""
    return {f"{dataset} {sample}": correct for (dataset, sample), correct in verdicts_in(folder).items()}


def clips_in(predictions: Path) -> dict[str, str]:
    """Clip of each predicted row, by "dataset sample_id"; a row without one is its own."""
    rows = read_parquet(predictions, columns=["dataset", "sample_id", "clip_id"]).to_pylist()
    return {f"{row['dataset']} {row['sample_id']}": clip for row, clip in zip(rows, clips_of(rows), strict=True)}


def _mean(parts: Sequence[float], wholes: Sequence[float], clips: Sequence[str], *, exponent: bool = False) -> Measurement:
    """sum(parts) / sum(wholes) on the rows that count, or the exponential of it, resampled by clip."""
    drawn_R, value = ratio_draws(parts, wholes, clips), sum(parts) / sum(wholes)
    drawn_R, value = (np.exp(drawn_R), float(np.exp(value))) if exponent else (drawn_R, value)
    order = tuple(dict.fromkeys(clips))
    return Measurement(interval(value, drawn_R, len(order)), drawn_R, order)

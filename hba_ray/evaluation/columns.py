"""A column of a published table, measured: finished arms, one for each training seed, and the numbers that the table's rows ask for.

A row names a dataset or a task, and behind a slash another measure than the benchmark's own:

    SAR                       the task's metric, mean over its datasets
    mosei_senti/weighted_f1   any name of `metrics.METRICS`, over the dataset's own classes
    tess/rank                 place of the dataset among all, by score; /rows and /rows_rank by its size
    all/spearman              rank correlation of size and score (Table 15)
    cost/peak_mb              what `MEASURED` lists is no score of predictions, and is looked up among the arm's measurements

Intervals resample clips and, where there are several, training seeds.

Letters: S seeds, R resamples, D datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np
import pyarrow as pa

from hba_ray.data.tasks import DATASETS, TASKS, find_dataset
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import METRICS
from hba_ray.evaluation.pairs import ArmRecords, shared_rows
from hba_ray.evaluation.scores import Record, Verdicts, clips_of, dataset_seed, group_records, guesses
from hba_ray.evaluation.statistics import (
    Comparison,
    Interval,
    bootstrap_draws,
    exchange_draws,
    interval,
    mean_or_none,
    minimum_detectable_difference,
    permutation_p_value,
    spearman,
)

WHOLE_NUMBERS = ("rank", "rows", "rows_rank")
"""Measures that are whole numbers: places and sizes of a dataset."""
MEASURED = {
    "cost": ("mean_seconds", "std_seconds", "peak_mb"),
    "answers": ("fluency", "coherence", "relevance", "perplexity"),
    "agreement": ("kappa",),
}
"""What a row may be about that is no score of predictions (cost at inference, how answers are written, agreement of judges) -> measures."""
_SEEDS = 0x73656564
"""Distinguishes the random numbers that draw seeds from those that draw clips."""


@dataclass(frozen=True)
class Measurement:
    """A number of an arm that is no score of its predictions.

    Attributes:
        draws: [R] its values on resamples of clips; None where clips are not what makes it uncertain.
        clips: those that were resampled, in the order of their first row.
        caveat: why it is not the number that the paper prints; empty where it is.
    """

    interval: Interval
    draws: np.ndarray | None = None
    clips: tuple[str, ...] = ()
    caveat: str = ""


@dataclass(frozen=True)
class ArmResult:
    """What one arm of one finished trial leaves.

    Attributes:
        trial: name, for messages.
        seed: of training.
        predictions: columns as in `predict.SCHEMA`.
        sizes: dataset -> rows that were used, all splits.
        verdicts: of a judge, one for every open answer; None where nobody has judged them.
        measurements: numbers of the arm that are no scores of its predictions, by row (`cost/peak_mb`).
    """

    trial: str
    arm: str
    seed: int
    predictions: pa.Table
    sizes: Mapping[str, int] = field(default_factory=dict)
    verdicts: Verdicts | None = None
    measurements: Mapping[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A measured cell.

    Attributes:
        interval: value with its range; all None where missing.
        datasets: what it is a mean over; empty for measurements.
        absent: datasets that the row is about and nothing was predicted of.
        judged: False where open answers were compared by their text for want of a judge.
        caveat: what else makes it another number than the paper's; empty where nothing does.
        seeds: training runs behind it.
        spread: standard deviation over them; None with one.
    """

    interval: Interval
    datasets: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    judged: bool = True
    caveat: str = ""
    seeds: int = 0
    spread: float | None = None

    @property
    def value(self) -> float | None:
        return self.interval.value

    @property
    def is_comparable(self) -> bool:
        """Whether it is the number that the row asks for: of all its datasets, and judged where that is due."""
        return self.value is not None and not self.absent and self.judged and not self.caveat


@dataclass(frozen=True)
class _MetricRows:
    """Rows of one dataset as a metric takes them."""

    metric: str
    true: list[str]
    predicted: list[str | None]
    clips: list[str]


class Column:
    """The finished arms that measure one column of a table.

    Args:
        results: of the same arm; those of one seed must be of different datasets.
        toy: tasks mean the toy atlas's datasets and not the benchmark's.

    Raises:
        DataError: two results of one seed have predictions of the same dataset.
    """

    def __init__(self, results: Sequence[ArmResult], *, toy: bool = False, resamples: int = 2000):
        self.toy, self.resamples = toy, resamples
        self.results = tuple(results)
        self._draws: dict[tuple[int, str, str], np.ndarray] = {}
        self._of: dict[tuple[int, str], tuple[ArmResult, list[Record]]] = {}
        for result in self.results:
            for name, records in group_records(result.predictions, where=f"{result.trial} {result.arm}").items():
                other = self._of.get((result.seed, name))
                if other:
                    what = f"both {other[0].trial} and {result.trial} predict {name} with seed {result.seed}"
                    raise DataError(result.arm, what, "narrow the column's `where`", reason="two trials for one cell")
                self._of[result.seed, name] = (result, records)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({result.seed for result in self.results}))

    def datasets(self, subject: str) -> tuple[str, ...]:
        """The datasets that a row's subject stands for: a dataset itself, or all of a task, or all."""
        if subject in DATASETS:
            return (subject,)
        counts = {name: known.is_toy if self.toy else known.is_benchmark for name, known in DATASETS.items()}
        return tuple(name for name, known in DATASETS.items() if subject in ("all", known.task.id) and counts[name])

    def estimate(self, row: str) -> Estimate:
        """A row's number with its interval; missing where nothing was predicted or measured of it.

        Raises:
            DataError: the row names no dataset, task or measure.
        """
        subject, _, measure = row.partition("/")
        if subject in MEASURED:
            if measure not in MEASURED[subject]:
                raise DataError(row, f"no measure '{measure}'", f"known: {', '.join(MEASURED[subject])}", reason="unknown measure")
            return self._measured(row)
        if subject not in DATASETS and subject not in TASKS and subject != "all":
            hint = f"did you mean '{find_dataset(subject, where=row).id}'?"  # refuses what is no name of a dataset either
            raise DataError(row, f"'{subject}' is no dataset id", hint, reason="unknown dataset")
        if measure in WHOLE_NUMBERS or measure == "spearman":
            return self._across(subject, measure)
        if measure and measure not in METRICS:
            raise DataError(
                row, f"no measure '{measure}'", f"known: {', '.join((*METRICS, *WHOLE_NUMBERS, 'spearman'))}", reason="unknown measure"
            )
        names = self.datasets(subject)
        present = [name for name in names if any((seed, name) in self._of for seed in self.seeds)]
        seeds = [seed for seed in self.seeds if present and all((seed, name) in self._of for name in present)]
        scores = {seed: mean_or_none([self._score(seed, name, measure) for name in present]) for seed in seeds}
        seeds = [seed for seed in seeds if scores[seed] is not None]
        absent = tuple(name for name in names if name not in present)
        if not seeds:
            return Estimate(_missing(), tuple(present), absent or names)
        values = [score for score in scores.values() if score is not None]
        draws_SR = np.stack([np.mean([self.draws(seed, name, measure) for name in present], axis=0) for seed in seeds])
        return Estimate(
            interval=interval(fmean(values), _over_seeds(draws_SR), self._clips(seeds[0], present)),
            datasets=tuple(present),
            absent=absent,
            judged=measure == "exact_match" or all(self.is_judged(seed, name) for seed in seeds for name in present),
            seeds=len(seeds),
            spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        )

    def lists(self, seed: int, dataset: str, measure: str = "") -> _MetricRows:
        """A dataset's rows as the measure takes them."""
        arm = self.records(seed, dataset)
        verdicts = None if measure == "exact_match" else arm.verdicts
        metric, predicted = guesses(DATASETS[dataset], arm.records, verdicts, f"{arm.name} ({dataset})")
        return _MetricRows(measure or metric, [record["true"] for record in arm.records], predicted, clips_of(arm.records))

    def records(self, seed: int, dataset: str) -> ArmRecords:
        """A dataset's rows as they were predicted."""
        result, records = self._of[seed, dataset]
        return ArmRecords(f"{result.trial} {result.arm}", records, result.verdicts)

    def draws(self, seed: int, dataset: str, measure: str = "") -> np.ndarray:
        """[R] the dataset's score on resamples of its clips, the same clips for every arm and training seed."""
        key = (seed, dataset, measure)
        if key not in self._draws:
            rows = self.lists(seed, dataset, measure)
            self._draws[key] = bootstrap_draws(
                rows.metric, rows.true, rows.predicted, rows.clips, resamples=self.resamples, seed=dataset_seed(dataset)
            )
        return self._draws[key]

    def _score(self, seed: int, dataset: str, measure: str) -> float | None:
        rows = self.lists(seed, dataset, measure)
        return METRICS[rows.metric](rows.true, rows.predicted)

    def is_judged(self, seed: int, dataset: str) -> bool:
        """Whether the dataset is scored by the paper's measure: it has classes, or a judge has graded its answers."""
        return not DATASETS[dataset].task.is_open or self._of[seed, dataset][0].verdicts is not None

    def _clips(self, seed: int, datasets: Sequence[str]) -> int:
        return sum(len(set(clips_of(self._of[seed, name][1]))) for name in datasets)

    def measurements(self, row: str) -> list[Measurement]:
        """What was measured of a row that is no score of predictions, one for each training seed."""
        return [result.measurements[row] for result in self.results if row in result.measurements]

    def _measured(self, row: str) -> Estimate:
        known = [one for one in self.measurements(row) if one.interval.value is not None]
        if not known:
            return Estimate(_missing())
        values = [float(one.interval.value or 0.0) for one in known]
        caveat = next((one.caveat for one in known if one.caveat), "")
        if len(known) == 1:
            return Estimate(known[0].interval, caveat=caveat, seeds=1)
        draws = [one.draws for one in known if one.draws is not None]
        over = np.full(1, np.nan) if len(draws) < len(known) else _over_seeds(np.stack(draws))
        clips = known[0].interval.clips
        return Estimate(interval(fmean(values), over, clips), caveat=caveat, seeds=len(known), spread=float(np.std(values, ddof=1)))

    def _across(self, subject: str, measure: str) -> Estimate:
        """A number for which all datasets of the column are compared: a rank by score or size, a size, a correlation of the two."""
        known = sorted({name for _, name in self._of if not DATASETS[name].is_outside})
        stated = next((result.sizes for result in self.results if result.sizes), {})
        sizes = {name: rows for name, rows in stated.items() if not DATASETS[name].is_outside}
        if measure == "rows":
            return Estimate(_exact(stated.get(subject)), (subject,), seeds=len(self.seeds))
        if measure == "rows_rank":
            rank = None if subject not in sizes else 1 + sum(rows > sizes[subject] for rows in sizes.values())
            return Estimate(_exact(rank), (subject,), seeds=len(self.seeds))
        judged = all(self.is_judged(seed, name) for seed, name in self._of if name in known)
        seeds = [seed for seed in self.seeds if all((seed, name) in self._of for name in known)]
        means = {name: mean_or_none([self._score(seed, name, "") for seed in seeds]) for name in known}
        scores = {name: score for name, score in means.items() if score is not None and (measure == "rank" or name in sizes)}
        if not scores or (measure == "rank" and subject not in scores):
            return Estimate(_missing(), absent=self.datasets(subject))
        draws_DR = np.stack([np.mean([self.draws(seed, name) for seed in seeds], axis=0) for name in scores])
        if measure == "rank":
            value = 1.0 + sum(score > scores[subject] for score in scores.values())
            draws = 1.0 + (draws_DR > draws_DR[list(scores).index(subject)]).sum(0)
        else:
            counts = [sizes[name] for name in scores]
            value = spearman(counts, list(scores.values()), ties="best")
            draws = _spearman_draws(counts, draws_DR)
        return Estimate(interval(value, draws, 0), tuple(scores), judged=judged, seeds=len(seeds))


def compare(of: Column, over: Column, row: str) -> tuple[Comparison, tuple[str, ...]]:
    """Column `of` minus column `over`, on the rows that both have predicted; and the datasets that were compared.

    Open answers are compared by verdict where both arms were judged, by exact match otherwise.

    Equal training seeds are paired. Where one column has a single seed, it is paired with each of the other column's.

    The p-value exchanges the two arms' predictions of a clip, in all seeds at once: it speaks of these
    trained models on other clips. The interval resamples seeds too, so where several were trained it
    also speaks of training again.

    Raises:
        DataError: as `pairs.shared_rows`.
    """
    subject, _, measure = row.partition("/")
    if subject in MEASURED:
        return _compare_measurements(of, over, row), ()
    seeds = _matched(of.seeds, over.seeds)
    names = tuple(
        name for name in of.datasets(subject) if seeds and all((one, name) in of._of and (other, name) in over._of for one, other in seeds)
    )
    if not names or measure in (*WHOLE_NUMBERS, "spearman"):
        return Comparison(_missing(), None, None), ()
    differences, draws_SR, chance_SR, clips = [], [], [], 0
    for one, other in seeds:
        parts = [_difference(over.records(other, name), of.records(one, name), name, measure, of.resamples) for name in names]
        differences.append(mean_or_none([part[0] for part in parts]))
        draws_SR.append(np.mean([part[1] for part in parts], axis=0))
        chance_SR.append(np.mean([part[2] for part in parts], axis=0))
        clips = sum(part[3] for part in parts)
    value = mean_or_none(differences)
    difference = interval(value, _over_seeds(np.stack(draws_SR)), clips)
    error = difference.standard_error
    comparison = Comparison(
        difference,
        permutation_p_value(value, np.mean(chance_SR, axis=0)),
        None if error is None else minimum_detectable_difference(error),
    )
    return comparison, names


def _compare_measurements(of: Column, over: Column, row: str) -> Comparison:
    """The difference of two measurements, with an interval where both rest on the same clips. There is no test of it."""
    one, other = of.estimate(row).interval, over.estimate(row).interval
    if one.value is None or other.value is None:
        return Comparison(_missing(), None, None)
    first, second = of.measurements(row)[0], over.measurements(row)[0]
    is_paired = len(of.measurements(row)) == len(over.measurements(row)) == 1 and first.clips == second.clips
    draws = first.draws - second.draws if is_paired and first.draws is not None and second.draws is not None else np.full(1, np.nan)
    difference = interval(one.value - other.value, draws, min(one.clips, other.clips))
    error = difference.standard_error
    return Comparison(difference, None, None if error is None else minimum_detectable_difference(error))


def _matched(ones: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of seeds: equal ones, or where one side has a single seed, that with each of the other's."""
    shared = [(seed, seed) for seed in ones if seed in others]
    return shared if min(len(ones), len(others)) != 1 else [(one, other) for one in ones for other in others]


def _difference(
    first: ArmRecords, second: ArmRecords, name: str, measure: str, resamples: int
) -> tuple[float | None, np.ndarray, np.ndarray, int]:
    """Second minus first arm on the dataset's rows that both have: the value, its draws, its draws under chance, and clips."""
    rows = shared_rows(DATASETS[name], first, second, measure)
    one, two = (METRICS[rows.metric](rows.true, arm) for arm in (rows.first, rows.second))
    seed = dataset_seed(name)
    ones_R, twos_R = (
        bootstrap_draws(rows.metric, rows.true, arm, rows.clips, resamples=resamples, seed=seed) for arm in (rows.first, rows.second)
    )
    chance_R = exchange_draws(rows.metric, rows.true, rows.first, rows.second, rows.clips, resamples=resamples, seed=seed)
    return None if one is None or two is None else two - one, twos_R - ones_R, chance_R, len(set(rows.clips))


def _over_seeds(draws_SR: np.ndarray) -> np.ndarray:
    """[R] means over seeds that are drawn with replacement, clips and seeds resampled together."""
    seeds, resamples = draws_SR.shape
    drawn_RS = np.random.default_rng(_SEEDS).integers(0, seeds, size=(resamples, seeds))
    return draws_SR.T[np.arange(resamples)[:, None], drawn_RS].mean(1)


def _spearman_draws(counts: Sequence[float], draws_DR: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    places_D = rankdata(-np.asarray(counts, dtype=float), method="min")
    ranks_DR = rankdata(-draws_DR, method="min", axis=0)
    if len(set(counts)) < 2:
        return np.full(draws_DR.shape[1], np.nan)
    centred_D, centred_DR = places_D - places_D.mean(), ranks_DR - ranks_DR.mean(0)
    scale_R = np.sqrt((centred_D**2).sum() * (centred_DR**2).sum(0))
    return np.where(scale_R > 0, centred_D @ centred_DR / np.maximum(scale_R, 1e-12), np.nan)


def _missing() -> Interval:
    return Interval(None, None, None, None, 0.95, 0)


def _exact(value: float | None) -> Interval:
    return Interval(None if value is None else float(value), None, None, None, 0.95, 0)

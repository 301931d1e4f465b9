"""A column of a published table, measured: finished arms, a training seed each, and the numbers its rows ask for.

A row names a dataset or a task, and behind a slash another measure than the benchmark's own:

    SAR                       the task's metric, mean over its datasets
    mosei_senti/weighted_f1   any name of `metrics.METRICS`, over the dataset's own classes
    tess/rank                 place of the dataset among all, by score; /rows and /rows_rank by its size
    all/spearman              rank correlation of size and score (Table 15)
    cost/peak_mb              anything in `FACTS` is looked up among the arm's facts

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
from hba_ray.evaluation.scores import Record, Verdicts, clips_of, dataset_seed, group_records, guesses
from hba_ray.evaluation.statistics import (
    Comparison,
    Interval,
    bootstrap_draws,
    exchange_draws,
    interval,
    minimum_detectable_difference,
    permutation_p_value,
    spearman,
)

COUNTS = ("rank", "rows", "rows_rank")
"""Measures that are whole numbers."""
FACTS = {
    "cost": ("mean_seconds", "std_seconds", "peak_mb"),
    "answers": ("fluency", "coherence", "relevance", "perplexity"),
    "agreement": ("kappa",),
}
"""What a row may be about that is no score of predictions: latency and memory, how answers are written, judges; and its measures."""
_SEEDS = 0x73656564
"""Sets this stream of random numbers apart."""


@dataclass(frozen=True)
class Fact:
    """A number of an arm that is no score of its predictions.

    Attributes:
        draws: [R] on resamples of clips; None where clips are not what makes it uncertain.
        clips: that were resampled, in the order of their first row.
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
        facts: numbers of it that are no scores, by row.
    """

    trial: str
    arm: str
    seed: int
    predictions: pa.Table
    sizes: Mapping[str, int] = field(default_factory=dict)
    verdicts: Verdicts | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A measured cell.

    Attributes:
        interval: value with its range; all None where missing.
        datasets: what it is a mean over; empty for facts.
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
class _Lists:
    """Rows of one dataset as a metric takes them."""

    metric: str
    samples: list[str]
    true: list[str]
    predicted: list[str | None]
    clips: list[str]


class Column:
    """The finished arms that measure one column.

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
        """The datasets that a row's subject means."""
        if subject in DATASETS:
            return (subject,)
        counts = {name: known.is_toy if self.toy else known.is_benchmark for name, known in DATASETS.items()}
        return tuple(name for name, known in DATASETS.items() if subject in ("all", known.task.id) and counts[name])

    def estimate(self, row: str) -> Estimate:
        """A row's number with its interval; missing where nothing was predicted or measured of it.

        Raises:
            DataError: the row names no dataset, task or fact.
        """
        subject, _, measure = row.partition("/")
        if subject in FACTS:
            if measure not in FACTS[subject]:
                raise DataError(row, f"no measure '{measure}'", f"known: {', '.join(FACTS[subject])}", reason="unknown measure")
            return self._fact(row)
        if subject not in DATASETS and subject not in TASKS and subject != "all":
            hint = f"did you mean '{find_dataset(subject, where=row).id}'?"  # refuses what is no name of a dataset either
            raise DataError(row, f"'{subject}' is no dataset id", hint, reason="unknown dataset")
        if measure in COUNTS or measure == "spearman":
            return self._across(subject, measure)
        if measure and measure not in METRICS:
            raise DataError(
                row, f"no measure '{measure}'", f"known: {', '.join((*METRICS, *COUNTS, 'spearman'))}", reason="unknown measure"
            )
        names = self.datasets(subject)
        present = [name for name in names if any((seed, name) in self._of for seed in self.seeds)]
        seeds = [seed for seed in self.seeds if present and all((seed, name) in self._of for name in present)]
        scores = {seed: _mean([self._score(seed, name, measure) for name in present]) for seed in seeds}
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

    def lists(self, seed: int, dataset: str, measure: str = "", *, as_texts: bool = False) -> _Lists:
        """A dataset's rows as the measure takes them.

        Args:
            as_texts: open answers by what they say, also where a judge has graded them.
        """
        result, records = self._of[seed, dataset]
        verdicts = None if as_texts or measure == "exact_match" else result.verdicts
        metric, predicted = guesses(DATASETS[dataset], records, verdicts, f"{result.trial} {result.arm} ({dataset})")
        samples, true = [record["sample_id"] for record in records], [record["true"] for record in records]
        return _Lists(measure or metric, samples, true, predicted, clips_of(records))

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
        return not DATASETS[dataset].task.is_open or self._of[seed, dataset][0].verdicts is not None

    def _clips(self, seed: int, datasets: Sequence[str]) -> int:
        return sum(len(set(clips_of(self._of[seed, name][1]))) for name in datasets)

    def facts(self, row: str) -> list[Fact]:
        """What was measured of a row that is no score, a training seed each."""
        return [result.facts[row] for result in self.results if row in result.facts]

    def _fact(self, row: str) -> Estimate:
        known = [fact for fact in self.facts(row) if fact.interval.value is not None]
        if not known:
            return Estimate(_missing())
        values = [float(fact.interval.value or 0.0) for fact in known]
        caveat = next((fact.caveat for fact in known if fact.caveat), "")
        if len(known) == 1:
            return Estimate(known[0].interval, caveat=caveat, seeds=1)
        draws = [fact.draws for fact in known if fact.draws is not None]
        over = np.full(1, np.nan) if len(draws) < len(known) else _over_seeds(np.stack(draws))
        clips = known[0].interval.clips
        return Estimate(interval(fmean(values), over, clips), caveat=caveat, seeds=len(known), spread=float(np.std(values, ddof=1)))

    def _across(self, subject: str, measure: str) -> Estimate:
        """A number that looks at all datasets of the column that have one: a place, a size, a correlation."""
        known = sorted({name for _, name in self._of})
        sizes = next((result.sizes for result in self.results if result.sizes), {})
        if measure == "rows":
            return Estimate(_exact(sizes.get(subject)), (subject,), seeds=len(self.seeds))
        if measure == "rows_rank":
            rank = None if subject not in sizes else 1 + sum(rows > sizes[subject] for rows in sizes.values())
            return Estimate(_exact(rank), (subject,), seeds=len(self.seeds))
        judged = all(self.is_judged(seed, name) for seed, name in self._of)
        seeds = [seed for seed in self.seeds if all((seed, name) in self._of for name in known)]
        means = {name: _mean([self._score(seed, name, "") for seed in seeds]) for name in known}
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
    """`of` minus `over` on the rows that both predicted, and the datasets compared.

    Open answers are compared by verdict where both arms were judged, by exact match otherwise.

    Seeds are matched: each with its like, or, where one column has a single one, that with all of the other's.

    The p-value exchanges the two arms' predictions of a clip, in all seeds at once: it speaks of these
    trained models on other clips. The interval resamples seeds too, so where several were trained it
    also speaks of training again.

    Raises:
        DataError: the arms disagree about a row's truth.
    """
    subject, _, measure = row.partition("/")
    if subject in FACTS:
        return _compare_facts(of, over, row), ()
    seeds = _matched(of.seeds, over.seeds)
    names = tuple(
        name for name in of.datasets(subject) if seeds and all((one, name) in of._of and (other, name) in over._of for one, other in seeds)
    )
    if not names or measure in (*COUNTS, "spearman"):
        return Comparison(_missing(), None, None), ()
    differences, draws_SR, chance_SR, clips = [], [], [], 0
    for one, other in seeds:
        parts = [_paired(*_pair((over, other), (of, one), name, measure), name, of.resamples) for name in names]
        differences.append(_mean([part[0] for part in parts]))
        draws_SR.append(np.mean([part[1] for part in parts], axis=0))
        chance_SR.append(np.mean([part[2] for part in parts], axis=0))
        clips = sum(part[3] for part in parts)
    value = _mean(differences)
    difference = interval(value, _over_seeds(np.stack(draws_SR)), clips)
    error = difference.standard_error
    comparison = Comparison(
        difference,
        permutation_p_value(value, np.mean(chance_SR, axis=0)),
        None if error is None else minimum_detectable_difference(error),
    )
    return comparison, names


def _pair(first: tuple[Column, int], second: tuple[Column, int], name: str, measure: str) -> tuple[_Lists, _Lists]:
    """What two columns say of a dataset, each with a seed: verdicts where both have them, else texts."""
    as_texts = not all(column.is_judged(seed, name) for column, seed in (first, second))
    one, other = (column.lists(seed, name, measure, as_texts=as_texts) for column, seed in (first, second))
    return one, other


def _compare_facts(of: Column, over: Column, row: str) -> Comparison:
    """The difference, with an interval where both rest on the same clips; a test beside it there is not."""
    one, other = of.estimate(row).interval, over.estimate(row).interval
    if one.value is None or other.value is None:
        return Comparison(_missing(), None, None)
    first, second = of.facts(row)[0], over.facts(row)[0]
    is_paired = len(of.facts(row)) == len(over.facts(row)) == 1 and first.clips == second.clips
    draws = first.draws - second.draws if is_paired and first.draws is not None and second.draws is not None else np.full(1, np.nan)
    difference = interval(one.value - other.value, draws, min(one.clips, other.clips))
    error = difference.standard_error
    return Comparison(difference, None, None if error is None else minimum_detectable_difference(error))


def _matched(ones: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
    shared = [(seed, seed) for seed in ones if seed in others]
    return shared if min(len(ones), len(others)) != 1 else [(one, other) for one in ones for other in others]


def _paired(first: _Lists, second: _Lists, name: str, resamples: int) -> tuple[float | None, np.ndarray, np.ndarray, int]:
    """Difference, its draws, its draws under chance, and clips, on the rows that both have."""
    others = dict(zip(second.samples, zip(second.true, second.predicted, strict=True), strict=True))
    true, ones, twos, clips = [], [], [], []
    for sample, truth, guess, clip in zip(first.samples, first.true, first.predicted, first.clips, strict=True):
        if sample not in others:
            continue
        if others[sample][0] != truth:
            raise DataError(
                f"{name} {sample}", "has another truth in the other arm", "compare arms on one atlas", reason="arms do not match"
            )
        true.append(truth)
        ones.append(guess)
        twos.append(others[sample][1])
        clips.append(clip)
    one, two = METRICS[first.metric](true, ones), METRICS[first.metric](true, twos)
    draws = [bootstrap_draws(first.metric, true, arm, clips, resamples=resamples, seed=dataset_seed(name)) for arm in (ones, twos)]
    chance = exchange_draws(first.metric, true, ones, twos, clips, resamples=resamples, seed=dataset_seed(name))
    return None if one is None or two is None else two - one, draws[1] - draws[0], chance, len(set(clips))


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


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where a value is missing or there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _missing() -> Interval:
    return Interval(None, None, None, None, 0.95, 0)


def _exact(value: float | None) -> Interval:
    return Interval(None if value is None else float(value), None, None, None, 0.95, 0)

"""How sure a score is, and whether two arms differ. Rows of one clip stay together throughout.

Rows that share a recording are not independent: resampling rows makes intervals too narrow, so whole
clips are drawn. Arms are compared on the same rows, which takes out what makes rows hard for both.

Metrics depend on how often each pair of truth and prediction occurs and on nothing else (`metrics.CountMetric`), so a
resample is a row of counts.

Letters: A arms, C clips, R resamples, P distinct pairs of truth and prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import METRICS, CountMetric, Guesses, Pair

AnyMetric = str | CountMetric
"""A name of `metrics.METRICS`, or a metric that has none there."""

CHUNK = 256
"""Resamples held at a time."""
_DRAW, _EXCHANGE = 0x626F6F74, 0x70657261
"""Distinguish the random numbers of resampling and of exchanging from each other, and from a caller's of the same seed."""
_TIE = 1e-12
"""Differences closer than this count as equal: they are sums of the same numbers in another order."""


@dataclass(frozen=True)
class Interval:
    """A number and the range that resampling gives it.

    Attributes:
        value: on all rows; None where missing, and then so is the rest.
        low, high: percentiles of the resamples.
        standard_error: standard deviation of the resamples.
        level: share of the resamples between low and high.
        clips: independent clips that the number rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    level: float
    clips: int

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high); None where they are missing."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Comparison:
    """Second arm minus first arm, on the same rows.

    Attributes:
        difference: with its interval.
        p_value: of the paired permutation test, two-sided; None where the difference is missing.
        detectable: the smallest true difference that rows like these show with the given power.
    """

    difference: Interval
    p_value: float | None
    detectable: float | None


def bootstrap_draws(
    metric: AnyMetric, true: Sequence[str], predicted: Guesses, clips: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """The metric on resamples of whole clips.

    Equal seeds and clips give equal resamples, so that draws of two arms may be subtracted. A task's
    score is a mean over datasets, and so its draws are the mean of theirs.

    Returns:
        [R] float64, 0..1; NaN where a resample has no row that counts.

    Raises:
        DataError: the lists differ in length, or a true label is none of the metric's.
    """
    metric = _metric(metric)
    pairs, (counts_CP,) = _counts(metric, true, [predicted], clips)
    draws = [metric.on_counts(pairs, weights_RC @ counts_CP) for weights_RC in _resampled(len(counts_CP), resamples, seed)]
    return np.concatenate(draws) if draws else np.empty(0)


def ratio_draws(
    parts: Sequence[float], wholes: Sequence[float], clips: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """sum(parts) / sum(wholes), such as a mean, on resamples of whole clips; draws the clips that `bootstrap_draws` draws.

    >>> bool(np.allclose(ratio_draws([4, 4, 4], [1, 1, 1], ["a", "a", "b"], resamples=5), 4))
    True

    Returns:
        [R] float64; NaN where a resample has nothing to divide by.

    Raises:
        DataError: the lists differ in length.
    """
    if not len(parts) == len(wholes) == len(clips):
        raise DataError("statistics", f"{len(parts)} parts, {len(wholes)} wholes, {len(clips)} clips", reason="lengths differ")
    clip_of = {clip: index for index, clip in enumerate(dict.fromkeys(clips))}
    sums_C2 = np.zeros((len(clip_of), 2))
    np.add.at(
        sums_C2, [clip_of[clip] for clip in clips], np.stack([parts, wholes], axis=1, dtype=float) if len(clips) else np.zeros((0, 2))
    )
    drawn_R2 = np.concatenate([np.zeros((0, 2)), *(weights_RC @ sums_C2 for weights_RC in _resampled(len(sums_C2), resamples, seed))])
    return np.divide(drawn_R2[:, 0], drawn_R2[:, 1], out=np.full(len(drawn_R2), np.nan), where=drawn_R2[:, 1] > 0)


def bootstrap_interval(
    metric: AnyMetric,
    true: Sequence[str],
    predicted: Guesses,
    clips: Sequence[str],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The metric with its percentile interval by cluster bootstrap over clips.

    Raises:
        DataError: as `bootstrap_draws`.
    """
    value = _metric(metric)(true, predicted)
    draws = bootstrap_draws(metric, true, predicted, clips, resamples=resamples, seed=seed)
    return interval(value, draws, len(set(clips)), level=level)


def ratio_interval(
    parts: Sequence[float], wholes: Sequence[float], clips: Sequence[str], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Sum of the parts over the sum of the wholes, with its percentile interval by cluster bootstrap over clips.

    With losses and tokens it is the loss a token, with ratings and ones their mean.

    >>> ratio_interval([2.0, 4.0], [1, 1], ["a", "a"]).value
    3.0

    Args:
        parts, wholes, clips: one a row.

    Returns:
        All None where the wholes sum to 0; resamples in which they do are left out.

    Raises:
        DataError: the lists differ in length.
    """
    draws_R, whole = ratio_draws(parts, wholes, clips, resamples=resamples, seed=seed), sum(wholes)
    return interval(float(sum(parts) / whole) if whole > 0 else None, draws_R, len(set(clips)), level=level)


def interval(value: float | None, draws: np.ndarray, clips: int, *, level: float = 0.95) -> Interval:
    """The interval of a value from its draws, those that are NaN left out."""
    known = draws[~np.isnan(draws)]
    if value is None or known.size < 2:
        return Interval(value, None, None, None, level, clips)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), float(known.std(ddof=1)), level, clips)


def compare_arms(
    metric: AnyMetric,
    true: Sequence[str],
    first: Guesses,
    second: Guesses,
    clips: Sequence[str],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    power: float = 0.8,
    seed: int = 0,
) -> Comparison:
    """Tests whether the second arm scores otherwise than the first.

    The test supposes that the arms are alike, so that the two predictions for a clip's rows may be
    exchanged: it exchanges them, for each clip with chance one half, and counts how often the
    difference is as large as the one seen.

    Raises:
        DataError: as `bootstrap_draws`.
    """
    one, other = (_metric(metric)(true, arm) for arm in (first, second))
    value = None if one is None or other is None else other - one
    draws = [bootstrap_draws(metric, true, arm, clips, resamples=resamples, seed=seed) for arm in (first, second)]
    under_chance = exchange_draws(metric, true, first, second, clips, resamples=resamples, seed=seed)
    difference = interval(value, draws[1] - draws[0], len(set(clips)), level=level)
    error = difference.standard_error
    return Comparison(
        difference=difference,
        p_value=permutation_p_value(value, under_chance),
        detectable=None if error is None else minimum_detectable_difference(error, level=level, power=power),
    )


def exchange_draws(
    metric: AnyMetric,
    true: Sequence[str],
    first: Guesses,
    second: Guesses,
    clips: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Second arm minus first arm under the hypothesis that they are alike: each clip's predictions are exchanged with chance one half.

    Equal seeds and clips exchange the same clips, so that draws of several pairs may be averaged.

    Returns:
        [R] float64, -1..1; NaN where the metric is missing.

    Raises:
        DataError: as `bootstrap_draws`.
    """
    metric = _metric(metric)
    pairs, (first_CP, second_CP) = _counts(metric, true, [first, second], clips)
    rng = np.random.default_rng([seed, _EXCHANGE])
    draws = []
    for start in range(0, resamples if len(first_CP) else 0, CHUNK):
        size = (min(CHUNK, resamples - start), len(first_CP))
        moved_RP = rng.integers(0, 2, size=size) @ (second_CP - first_CP)
        draws.append(metric.on_counts(pairs, second_CP.sum(0) - moved_RP) - metric.on_counts(pairs, first_CP.sum(0) + moved_RP))
    return np.concatenate(draws) if draws else np.empty(0)


def permutation_p_value(value: float | None, under_chance: np.ndarray) -> float | None:
    """How often chance gives a difference as large as the one seen, two-sided; None where there is none."""
    if value is None:
        return None
    exceeding = int(np.sum(np.abs(under_chance) >= abs(value) - _TIE))
    return (1 + exceeding) / (1 + len(under_chance))


def minimum_detectable_difference(standard_error: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a two-sided test at 1 - level finds with probability `power`.

    >>> round(minimum_detectable_difference(0.01), 4)
    0.028
    """
    return float(standard_error * (NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having made several tests (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors), 1.0)
    return adjusted.tolist()


def expected_calibration_error(probability: Sequence[float], correct: Sequence[bool], *, bins: int = 15) -> float | None:
    """Mean gap between how sure predictions are and how often they are right, over bins of equal width (Guo et al. 2017).

    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]), 3)
    0.1

    Args:
        probability: of each predicted class, 0..1.

    Returns:
        0..1, or None without rows.

    Raises:
        DataError: the two differ in length, or a probability is none.
    """
    if len(probability) != len(correct):
        raise DataError("calibration", f"{len(probability)} probabilities but {len(correct)} rows", reason="lengths differ")
    if not len(probability):
        return None
    sure_N, right_N = np.asarray(probability, dtype=float), np.asarray(correct, dtype=float)
    if not np.all((sure_N >= 0) & (sure_N <= 1)):
        raise DataError("calibration", "a probability is not between 0 and 1", reason="not a probability")
    bin_N = np.clip(np.ceil(sure_N * bins).astype(int) - 1, 0, bins - 1)  # (0, 1/bins], as in the source
    gaps = np.bincount(bin_N, weights=right_N - sure_N, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure_N))


def spearman(sizes: Sequence[float], scores: Sequence[float], *, ties: Literal["average", "best"] = "average") -> float | None:
    """Rank correlation of dataset size and score (paper appendix D.7); None under three, or where either is constant.

    Args:
        ties: equal values share the mean of their ranks, as Spearman has it; or all take the best of
            them, as in Table 14, which is what Table 15's numbers come from.

    Raises:
        DataError: the two differ in length.
    """
    if len(sizes) != len(scores):
        raise DataError("spearman", f"{len(sizes)} sizes but {len(scores)} scores", reason="lengths differ")
    if min(len(set(sizes)), len(set(scores))) < 2 or len(sizes) < 3:
        return None
    from scipy.stats import rankdata

    method = "average" if ties == "average" else "min"
    ranks = [rankdata(-np.asarray(values, dtype=float), method=method) for values in (sizes, scores)]
    return float(np.corrcoef(*ranks)[0, 1])


def welch_interval(before: Sequence[float], after: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """The interval of the difference between two means, after less before, of values whose variances may differ (Welch's t).

    Returns:
        None where one of the two has fewer than two values, or neither varies.

    >>> welch_interval([0.1, 0.2, 0.3], [0.6, 0.7, 0.8])
    (0.2733, 0.7267)
    """
    if min(len(before), len(after)) < 2 or max(np.ptp(before), np.ptp(after)) == 0:
        return None
    from scipy.stats import t

    parts = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in (before, after)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    low, high = t.interval(level, freedom, loc=fmean(after) - fmean(before), scale=variance**0.5)
    return round(float(low), 4), round(float(high), 4)


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """The mean; None where a value is missing, or all are."""
    known = list(values)
    return fmean(value for value in known if value is not None) if known and None not in known else None


def _metric(metric: AnyMetric) -> CountMetric:
    return METRICS[metric] if isinstance(metric, str) else metric


def _counts(metric: CountMetric, true: Sequence[str], arms: Sequence[Guesses], clips: Sequence[str]) -> tuple[list[Pair], np.ndarray]:
    """The distinct pairs, and [A, C, P] how often each occurs in each clip."""
    for predicted in arms:
        if not len(true) == len(predicted) == len(clips):
            raise DataError("statistics", f"{len(true)} truths, {len(predicted)} predictions, {len(clips)} clips", reason="lengths differ")
    rows = [metric.pairs(true, predicted) for predicted in arms]
    place = {pair: index for index, pair in enumerate(dict.fromkeys(pair for arm in rows for pair in arm))}
    clip_of = {clip: index for index, clip in enumerate(dict.fromkeys(clips))}
    counts_ACP = np.zeros((len(arms), len(clip_of), len(place)))
    clip_N = [clip_of[clip] for clip in clips]
    for counts_CP, arm in zip(counts_ACP, rows, strict=True):
        np.add.at(counts_CP, (clip_N, [place[pair] for pair in arm]), 1)
    return list(place), counts_ACP


def _resampled(clips: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """[R, C] how often each clip is drawn, in chunks of R."""
    rng = np.random.default_rng([seed, _DRAW])
    for start in range(0, resamples if clips else 0, CHUNK):
        size = min(CHUNK, resamples - start)
        yield rng.multinomial(clips, np.full(clips, 1 / clips), size=size).astype(float)

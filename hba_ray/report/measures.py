"""Sheets beside the scores: open answers, sentiment scales, differences between arms, calibration, size against score."""

from __future__ import annotations

from collections.abc import Iterator

from hba_ray.evaluation.scores import DatasetScore
from hba_ray.evaluation.statistics import spearman
from hba_ray.report.base import MISSING, Report, Sheet, between, dataset_place, number, signed

OPEN_NOTE = "Judge: share of answers that it calls TRUE, which is the paper's measure; one without a readable verdict is not TRUE."
SCALE_NOTE = (
    "Five classes join the two negative and the two positive grades of seven; two leave out rows whose truth is neutral. "
    "Table 19's columns are each dataset's finest scale."
)
PAIR_NOTE = (
    "Difference: the arm minus the one that it is held against, on the rows of both. p: paired permutation test over clips, two-sided; "
    "Holm: adjusted for all tests of this table. Detectable: the smallest true difference that this many clips show with a power of 0.8."
)
CALIBRATION_NOTE = "Expected calibration error over 15 bins: how far a prediction's probability is from its chance of being right."
SIZE_NOTE = "Rows of all splits, ranked from the largest; scores from the highest (Table 14). Equal ones share the better rank."
SPEARMAN_NOTE = "Rank correlation of rows and score over datasets (Table 15, whose numbers let equal values take the better rank)."


def measure_sheets(report: Report) -> tuple[Sheet, ...]:
    """The sheets that have a row, in reading order."""
    made = (_open_sheet(report), _pair_sheet(report), _scale_sheet(report), _calibration_sheet(report), _size_sheet(report))
    return tuple(sheet for sheet in (*made, _spearman_sheet(report)) if sheet.rows)


def _scores(report: Report) -> Iterator[tuple[str, DatasetScore]]:
    """(arm, score), dataset by dataset."""
    found = [(arm, score) for arm, scores in report.scores.items() for score in scores.datasets]
    yield from sorted(found, key=lambda one: dataset_place((one[1].dataset,)))


def _open_sheet(report: Report) -> Sheet:
    header = ("Dataset", "Arm", "Rows", "Judge", "95% interval", "Unreadable", "Exact match")
    rows = tuple(
        (
            *(score.dataset, arm, str(score.rows), number(score.value), between(score.interval)),
            *(str(score.unreadable), number(score.exact_match)),
        )
        for arm, score in _scores(report)
        if score.metric == "judge_accuracy"
    )
    return Sheet("Open answers", header, rows, 2, (OPEN_NOTE,))


def _pair_sheet(report: Report) -> Sheet:
    header = ("Dataset", "Arm", "Against", "Metric", "Rows", "Clips", "Difference", "95% interval", "p", "Holm", "Detectable")
    rows = [
        (
            *(pair.dataset, pair.second, pair.first, pair.metric, str(pair.rows), str(pair.clips), signed(pair.difference)),
            *(between(pair.interval, signed), _chance(pair.p_value), _chance(pair.p_adjusted), number(pair.detectable)),
        )
        for pair in report.comparisons
    ]
    return Sheet("Differences between arms", header, tuple(sorted(rows, key=dataset_place)), 4, (PAIR_NOTE,))


def _scale_sheet(report: Report) -> Sheet:
    rows = tuple(
        (score.dataset, arm, str(scale.classes), str(scale.rows), number(scale.accuracy), number(scale.weighted_f1))
        for arm, score in _scores(report)
        for scale in score.scales
    )
    return Sheet("Sentiment scales", ("Dataset", "Arm", "Classes", "Rows", "Accuracy", "Weighted F1"), rows, 2, (SCALE_NOTE,))


def _calibration_sheet(report: Report) -> Sheet:
    rows = tuple(
        (score.dataset, arm, number(score.calibration_error)) for arm, score in _scores(report) if score.calibration_error is not None
    )
    return Sheet("Calibration", ("Dataset", "Arm", "Calibration error"), rows, 2, (CALIBRATION_NOTE,))


def _sizes(report: Report, arm: str) -> tuple[list[str], list[int], list[float]]:
    """Datasets with a score and a size, their rows over all splits, and their scores."""
    used = report.facts.rows_used
    known = [(one.dataset, sum(used[one.dataset].values()), one.value) for one in report.scores[arm].datasets if one.dataset in used]
    known = [(dataset, rows, value) for dataset, rows, value in known if value is not None]
    return [dataset for dataset, _, _ in known], [rows for _, rows, _ in known], [value for _, _, value in known]


def _size_sheet(report: Report) -> Sheet:
    from scipy.stats import rankdata

    header = ("Dataset", "Arm", "Rows", "Rank by rows", "Score", "Rank by score")
    found: list[tuple[str, ...]] = []
    for arm in report.scores:
        datasets, sizes, values = _sizes(report, arm)
        if datasets:
            ranks = [rankdata([-one for one in column], method="min").astype(int) for column in (sizes, values)]
            columns = zip(datasets, sizes, ranks[0], values, ranks[1], strict=True)
            found += [(name, arm, str(size), str(place), number(value), str(rank)) for name, size, place, value, rank in columns]
    return Sheet("Size and score", header, tuple(sorted(found, key=dataset_place)), 2, (SIZE_NOTE,))


def _spearman_sheet(report: Report) -> Sheet:
    rows = []
    for arm in report.scores:
        datasets, sizes, values = _sizes(report, arm)
        by_mean, by_best = spearman(sizes, values), spearman(sizes, values, ties="best")
        if by_mean is not None:
            rows.append((arm, str(len(datasets)), signed(by_mean), signed(by_best)))
    return Sheet(
        "Does size decide the score?", ("Arm", "Datasets", "Spearman", "Spearman as in Table 15"), tuple(rows), 1, (SPEARMAN_NOTE,)
    )


def _chance(value: float | None) -> str:
    """
    >>> _chance(0.0004)
    '<0.001'
    """
    return MISSING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"

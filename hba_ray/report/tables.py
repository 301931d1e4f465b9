"""The tables of a report, in reading order: scores of every arm beside the majority baseline and the published numbers, what an
addition to a model changes, other measures, and the rows that all this rests on.

A table is a sheet of text, the same in every format. Nothing here depends on the clock or the machine, so equal reports
are equal files.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from pydantic import TypeAdapter
from rich.console import RenderableType

from hba_ray.data.tasks import DATASETS, SPLITS, TASKS
from hba_ray.evaluation.arms import Arm
from hba_ray.evaluation.published import COLUMNS, PublishedModel, published_score
from hba_ray.evaluation.scores import DatasetScore, Scores, TaskScore
from hba_ray.evaluation.statistics import spearman
from hba_ray.report.formats import Document, terminal, to_markdown
from hba_ray.report.model import Report, RunFacts
from hba_ray.report.sheets import MISSING, Sheet, between, dataset_place, number, signed, with_columns
from hba_ray.store.files import from_json

JUDGED = "†"
JUDGE_NOTE = (
    f"{JUDGED} Published: accuracy by a language-model judge. Ours: exact match of the text, a different and stricter measure. "
    "The two must not be compared."
)
TASK_NOTE = "A task's score is the mean over the datasets listed, and so are the numbers beside it."
MAJORITY_NOTE = "Majority: the score of always predicting the most frequent training class among those that the metric counts."
INTERVAL_NOTE = "95% interval: percentiles of 2000 resamples of whole clips; for a task, of the mean over its datasets."
COUNTED_NOTE = "Counted: rows that enter the metric; sentiment drops those whose truth is neutral."
CHANGE_NOTE = "Change: absolute, and in per cent of the first arm's score. A task's score is the mean over its datasets."
PUBLISHED_NOTE = (
    "Published: from the paper's Table 4; of a task the mean over all of the paper's datasets, which is its Table 6, up to its rounding. "
    "Open answers are judged there."
)
OPEN_NOTE = "Judge: share of answers that it calls TRUE, which is the paper's measure; one without a readable verdict is not TRUE."
MATCHING_NOTE = (
    "The score rests on the rule of evaluate.matching; the other rule reads other classes in the same responses. `lenient` looks past "
    "punctuation and knows other spellings; `exact` takes the label alone, as the released code does. Scores that are equal are left out."
)
SCALE_NOTE = (
    "Five classes join grades of seven as evaluate.sentiment_merging says, since the paper names no rule; two leave out rows whose truth "
    "is neutral. Table 19's columns are each dataset's finest scale."
)
PAIR_NOTE = (
    "Difference: the arm minus the one that it is held against, on the rows of both. p: paired permutation test over clips, two-sided; "
    "Holm: adjusted for all tests of this table. Detectable: the smallest true difference that this many clips show with a power of 0.8."
)
CALIBRATION_NOTE = "Expected calibration error over 15 bins: how far a prediction's probability is from its chance of being right."
SIZE_NOTE = "Rows of all splits, ranked from the largest; scores from the highest (Table 14). Equal ones share the better rank."
SPEARMAN_NOTE = "Rank correlation of rows and score over datasets (Table 15, whose numbers let equal values take the better rank)."

_ADAPTER = TypeAdapter(Report)
_Cell = float | None
_FAMILY = "OmniSapiens-7B "


def render_json(report: Report) -> str:
    return _ADAPTER.dump_json(report, indent=2).decode() + "\n"


def read_json(text: str | bytes, *, where: str = "report") -> Report:
    """The report that `render_json` wrote.

    Raises:
        DataError: the text is no such report; `where` names the file.
    """
    return from_json(_ADAPTER, text, where=where, what="not a report", way_out="make the report again")


def document(report: Report) -> Document:
    """The report as formats take it."""
    facts = report.facts
    versions = ", ".join(f"{package} {version}" for package, version in sorted(facts.versions.items()))
    known = [("Model", facts.model), ("Seed", str(facts.seed)), ("Fingerprint", facts.fingerprint), ("Versions", versions or MISSING)]
    cost = [("Cost", facts.spent.in_words())] if facts.spent else []
    return Document(report.title, sheets(report), render_json(report), (*known, *cost), report.notes)


def render_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    return to_markdown(document(report))


def terminal_table(report: Report) -> RenderableType:
    """The report for a terminal: scores per task and dataset, what additions to a model change, rows, and notes."""
    datasets = _dataset_sheet(report)
    narrow = [place for place, name in enumerate(datasets.header) if name != "Metric"]
    rows = [sheet for sheet in _row_sheets(report.facts) if sheet.rows]
    return terminal(report.title, (_task_sheet(report), with_columns(datasets, narrow), *difference_sheets(report), *rows), report.notes)


def sheets(report: Report) -> tuple[Sheet, ...]:
    """All tables of a report, in reading order."""
    scores = (_task_sheet(report), _dataset_sheet(report), *difference_sheets(report))
    return *scores, *measure_sheets(report), _class_sheet(report), *_row_sheets(report.facts)


def _task_sheet(report: Report) -> Sheet:
    header = ("Task", "Arm", "Datasets", "Metric")
    rows = [
        (score.task, arm, ", ".join(score.datasets) or MISSING, score.metric, *_measured(score, report))
        for arm, scores in report.scores.items()
        for score in scores.tasks
    ]
    rows.sort(key=lambda row: list(TASKS).index(row[0]))
    return Sheet("Scores per task", header + _measured_header(report), tuple(rows), 4, (TASK_NOTE, *score_notes(report)))


def _dataset_sheet(report: Report) -> Sheet:
    header = ("Dataset", "Arm", "Task", "Metric", "Rows", "Counted")
    rows = [
        (score.dataset, arm, score.task, score.metric, str(score.rows), str(score.counted), *_measured(score, report))
        for arm, scores in report.scores.items()
        for score in scores.datasets
    ]
    rows.sort(key=dataset_place)
    return Sheet("Scores per dataset", header + _measured_header(report), tuple(rows), 4, (COUNTED_NOTE, *score_notes(report)))


def _class_sheet(report: Report) -> Sheet:
    rows = [
        (score.dataset, arm, one.label, number(one.precision), number(one.recall), number(one.f1), str(one.support))
        for arm, scores in report.scores.items()
        for score in scores.datasets
        for one in score.classes
    ]
    rows.sort(key=dataset_place)
    return Sheet("Scores per class", ("Dataset", "Arm", "Class", "Precision", "Recall", "F1", "Support"), tuple(rows), 3)


def _measured_header(report: Report) -> tuple[str, ...]:
    models = _published_beside(report)
    published = f"Published {next(iter(models))}" if len(models) == 1 else "Published"
    header = ("Score", "95% interval", "Majority", published)
    return header if report.is_tiny else (*header, "Difference")


def _measured(score: DatasetScore | TaskScore, report: Report) -> tuple[str, ...]:
    """Score, interval, majority, published and, unless the model is tiny, the difference of score and published."""
    published = number(score.published)
    if score.published is not None and not score.is_comparable:
        published += f" {JUDGED}"
    cells = (number(score.value), between(score.interval), number(score.majority), published)
    return cells if report.is_tiny else (*cells, _difference(score))


def score_notes(report: Report) -> Iterator[str]:
    """What a reader of scores has to know: intervals, baselines, and whose the published numbers are."""
    yield INTERVAL_NOTE
    yield MAJORITY_NOTE
    arms = _published_beside(report)
    if len(arms) > 1:
        yield "Published: " + "; ".join(f"{model} beside {', '.join(names)}" for model, names in arms.items()) + "."
    if any(not score.is_comparable and score.published is not None for scores in report.scores.values() for score in scores.datasets):
        yield JUDGE_NOTE


def _published_beside(report: Report) -> dict[str, list[str]]:
    """Published model -> the arms beside which its scores are printed; none beside a tiny model on data that the paper does not know."""
    arms: dict[str, list[str]] = {}
    for arm, scores in report.scores.items():
        if not report.is_tiny or any(score.published is not None for score in scores.datasets):
            arms.setdefault(scores.published_model, []).append(arm)
    return arms


def _difference(score: DatasetScore | TaskScore) -> str:
    if score.value is None or score.published is None or not score.is_comparable:
        return MISSING
    return signed(score.value - score.published)


def difference_sheets(report: Report) -> tuple[Sheet, ...]:
    """A table for each arm that adds something to another: the form of the paper's Tables 6 and 10 to 12."""
    return tuple(_sheet(first, second, report) for first, second in pairs(list(report.scores)))


def pairs(arms: list[str]) -> Iterator[tuple[str, str]]:
    """(without, with): an arm beside the one of one stage less, whatever is withheld from each.

    >>> list(pairs(["sft", "sft without media", "sft+bam"]))
    [('sft', 'sft+bam'), ('sft without media', 'sft+bam')]
    """
    for second in arms:
        yield from ((first, second) for first in arms if Arm.parse(second).adds_to(Arm.parse(first)))


def _sheet(first: str, second: str, report: Report) -> Sheet:
    before, after = report.scores[first], report.scores[second]
    models = (before.published_model, after.published_model)
    rows = tuple(_rows(before, after, models))
    header = ("Task", "Dataset", first, second, "Change", "Per cent", *(f"Published {model.removeprefix(_FAMILY)}" for model in models))
    has_published = any(cell != MISSING for row in rows for cell in row[len(header) - len(models) :])
    notes = (CHANGE_NOTE, PUBLISHED_NOTE) if models[0] != models[1] and has_published else (CHANGE_NOTE,)
    return Sheet(f"From {first} to {second}", (*header, "Published change", "Published per cent"), rows, 2, notes)


def _rows(before: Scores, after: Scores, models: tuple[PublishedModel, PublishedModel]) -> Iterator[tuple[str, ...]]:
    """A task's row, then those of its datasets."""
    held = {score.dataset: score.value for score in before.datasets}
    means = {score.task: score.value for score in before.tasks}
    for task in after.tasks:
        if task.task in means:
            published = [_published_mean(model, task) for model in models]
            yield task.task, "all", *_cells(means[task.task], task.value), *_cells(*published)
        for one in after.datasets:
            if one.task == task.task and one.dataset in held:
                published = [published_score(model, one.dataset) for model in models]
                yield task.task, one.dataset, *_cells(held[one.dataset], one.value), *_cells(*published)


def _published_mean(model: PublishedModel, task: TaskScore) -> _Cell:
    """Mean of the published scores of a task's datasets; None where none of the datasets scored here is the paper's."""
    if not set(task.datasets) & set(COLUMNS):
        return None
    known = [published_score(model, dataset) for dataset in COLUMNS if DATASETS[dataset].task is TASKS[task.task]]
    values = [value for value in known if value is not None]
    return fmean(values) if values else None


def _cells(before: _Cell, after: _Cell) -> tuple[str, ...]:
    """Both scores, the change, and the change in per cent of the first."""
    change = None if before is None or after is None else after - before
    share = MISSING if change is None or not before else f"{100 * change / before:+.1f}"
    return number(before), number(after), signed(change), share


def measure_sheets(report: Report) -> tuple[Sheet, ...]:
    """Tables of other measures than the benchmark's scores, in reading order; those without a row are left out."""
    made = (
        _open_sheet(report),
        _matching_sheet(report),
        _pair_sheet(report),
        _scale_sheet(report),
        _calibration_sheet(report),
        _size_sheet(report),
    )
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


def _matching_sheet(report: Report) -> Sheet:
    rows = tuple(
        (score.dataset, arm, number(score.value), number(score.other_matching))
        for arm, score in _scores(report)
        if score.other_matching is not None and score.other_matching != score.value
    )
    return Sheet("Classes read from responses", ("Dataset", "Arm", "Score", "By the other rule"), rows, 2, (MATCHING_NOTE,))


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


def _row_sheets(facts: RunFacts) -> tuple[Sheet, ...]:
    """Tables of the rows that were used and dropped; none where a sweep's trials differ in them."""
    return (_used_sheet(facts), _dropped_sheet(facts)) if facts.rows_used else ()


def _used_sheet(facts: RunFacts) -> Sheet:
    rows = [
        (dataset, *(MISSING if split not in used else str(used[split]) for split in SPLITS)) for dataset, used in facts.rows_used.items()
    ]
    rows.sort(key=dataset_place)
    return Sheet("Rows used", ("Dataset", *SPLITS), tuple(rows), 1)


def _dropped_sheet(facts: RunFacts) -> Sheet:
    rows = [(dataset, reason, str(count)) for dataset, reasons in facts.rows_dropped.items() for reason, count in sorted(reasons.items())]
    rows.sort(key=dataset_place)
    return Sheet("Rows dropped", ("Dataset", "Reason", "Rows"), tuple(rows), 2)

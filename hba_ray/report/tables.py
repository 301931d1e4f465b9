"""A report: scores of every arm beside the majority baseline and the published numbers, and what they rest on.

The same sheets (title, header, rows of text) become Markdown and tables for the terminal. Nothing
here depends on the clock or the machine, so equal reports are equal files.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import TypeAdapter
from rich.console import RenderableType

from hba_ray.data.tasks import SPLITS, TASKS
from hba_ray.evaluation.scores import DatasetScore, TaskScore
from hba_ray.report.base import MISSING, TINY_TITLE, Facts, Report, Sheet, between, columns, dataset_place, number, signed
from hba_ray.report.differences import difference_sheets
from hba_ray.report.formats import line, markdown, terminal
from hba_ray.report.measures import measure_sheets
from hba_ray.runtime.read_back import from_json

__all__ = ["MISSING", "TINY_TITLE", "Facts", "Report", "read_json", "render_json", "render_markdown", "terminal_table"]

JUDGED = "†"
JUDGE_NOTE = (
    f"{JUDGED} Published: accuracy by a language-model judge. Ours: exact match of the text, a different and stricter measure. "
    "The two must not be compared."
)
TASK_NOTE = "A task's score is the mean over the datasets listed, and so are the numbers beside it."
MAJORITY_NOTE = "Majority: the score of always predicting the most frequent training class among those that the metric counts."
INTERVAL_NOTE = "95% interval: percentiles of 2000 resamples of whole clips; for a task, of the mean over its datasets."
COUNTED_NOTE = "Counted: rows that enter the metric; sentiment drops those whose truth is neutral."


_ADAPTER = TypeAdapter(Report)


def render_json(report: Report) -> str:
    return _ADAPTER.dump_json(report, indent=2).decode() + "\n"


def read_json(text: str, *, where: str = "report") -> Report:
    """The report that `render_json` wrote.

    Raises:
        DataError: the text is no such report; `where` names the file.
    """
    return from_json(_ADAPTER, text, where=where, what="not a report", way_out="make the report again")


def render_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    parts = [f"# {line(report.title)}", _facts(report.facts)]
    parts += [markdown(sheet) for sheet in sheets(report)]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {line(note)}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"


def terminal_table(report: Report) -> RenderableType:
    """The scores per task, with their metric, and per dataset, the rows behind them, and what the steps have to say, for a rich console."""
    datasets = _dataset_sheet(report)
    narrow = [place for place, name in enumerate(datasets.header) if name != "Metric"]
    rows = [sheet for sheet in _row_sheets(report.facts) if sheet.rows]
    return terminal(report.title, (_task_sheet(report), columns(datasets, narrow), *difference_sheets(report), *rows), report.notes)


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


def _row_sheets(facts: Facts) -> tuple[Sheet, ...]:
    """Rows that were used and that were dropped; nothing where a sweep's trials differ in them."""
    return (_used_sheet(facts), _dropped_sheet(facts)) if facts.rows_used else ()


def _used_sheet(facts: Facts) -> Sheet:
    rows = [
        (dataset, *(MISSING if split not in used else str(used[split]) for split in SPLITS)) for dataset, used in facts.rows_used.items()
    ]
    rows.sort(key=dataset_place)
    return Sheet("Rows used", ("Dataset", *SPLITS), tuple(rows), 1)


def _dropped_sheet(facts: Facts) -> Sheet:
    rows = [(dataset, reason, str(count)) for dataset, reasons in facts.rows_dropped.items() for reason, count in sorted(reasons.items())]
    rows.sort(key=dataset_place)
    return Sheet("Rows dropped", ("Dataset", "Reason", "Rows"), tuple(rows), 2)


def _measured_header(report: Report) -> tuple[str, ...]:
    models = dict.fromkeys(scores.published_model for scores in report.scores.values())
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
    yield INTERVAL_NOTE
    yield MAJORITY_NOTE
    arms: dict[str, list[str]] = {}
    for arm, scores in report.scores.items():
        arms.setdefault(scores.published_model, []).append(arm)
    if len(arms) > 1:
        yield "Published: " + "; ".join(f"{model} beside {', '.join(names)}" for model, names in arms.items()) + "."
    if any(not score.is_comparable and score.published is not None for scores in report.scores.values() for score in scores.datasets):
        yield JUDGE_NOTE


def _difference(score: DatasetScore | TaskScore) -> str:
    if score.value is None or score.published is None or not score.is_comparable:
        return MISSING
    return signed(score.value - score.published)


def _facts(facts: Facts) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in sorted(facts.versions.items()))
    lines = {"Model": facts.model, "Seed": str(facts.seed), "Fingerprint": facts.fingerprint, "Versions": versions or MISSING}
    return "\n".join(f"- {name}: {line(value)}" for name, value in lines.items())

"""What an addition to a model changes, task by task and dataset by dataset: the form of the paper's Tables 6 and 10 to 12."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from hba_ray.data.tasks import DATASETS, TASKS
from hba_ray.evaluation.published import COLUMNS, PublishedModel, published_score
from hba_ray.evaluation.scores import Scores, TaskScore
from hba_ray.report.base import MISSING, Report, Sheet, number, signed

NOTE = "Change: absolute, and in per cent of the first arm's score. A task's score is the mean over its datasets."
PUBLISHED_NOTE = (
    "Published: from the paper's Table 4; of a task the mean over all of the paper's datasets, which is its Table 6, up to its rounding. "
    "Open answers are judged there."
)
_Cell = float | None
_FAMILY = "OmniSapiens-7B "


def difference_sheets(report: Report) -> tuple[Sheet, ...]:
    """A sheet for each arm that adds something to another."""
    return tuple(_sheet(first, second, report) for first, second in pairs(list(report.scores)))


def pairs(arms: list[str]) -> Iterator[tuple[str, str]]:
    """(without, with): an arm `a+b` beside `a`, and beside `a without ...`.

    >>> list(pairs(["sft", "sft without media", "sft+bam"]))
    [('sft', 'sft+bam'), ('sft without media', 'sft+bam')]
    """
    for second in arms:
        base = second.rpartition("+")[0]
        yield from ((first, second) for first in arms if base and (first == base or first.startswith(f"{base} without ")))


def _sheet(first: str, second: str, report: Report) -> Sheet:
    before, after = report.scores[first], report.scores[second]
    models = (before.published_model, after.published_model)
    rows = tuple(_rows(before, after, models))
    header = ("Task", "Dataset", first, second, "Change", "Per cent", *(f"Published {model.removeprefix(_FAMILY)}" for model in models))
    notes = (NOTE, PUBLISHED_NOTE) if models[0] != models[1] else (NOTE,)
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
    """None for a task of which no dataset is the paper's."""
    if not set(task.datasets) & set(COLUMNS):
        return None
    known = [published_score(model, dataset) for dataset in COLUMNS if DATASETS[dataset].task is TASKS[task.task]]
    values = [value for value in known if value is not None]
    return fmean(values) if values else None


def _cells(before: _Cell, after: _Cell) -> tuple[str, ...]:
    """Both scores, what changed, and that in per cent."""
    change = None if before is None or after is None else after - before
    share = MISSING if change is None or not before else f"{100 * change / before:+.1f}"
    return number(before), number(after), signed(change), share

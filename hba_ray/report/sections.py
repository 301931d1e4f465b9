"""What the parts of a page show, as values that the templates lay out: scores at a glance, forests, confusions, and rows to read.

Nothing here is markup. `page.py` hands these values to `page.html.j2` and `parts.html.j2`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation.scores import DatasetScore
from hba_ray.report import charts
from hba_ray.report.charts import SHARES, Forest, ForestGroup, ForestRow, Mark, around_zero
from hba_ray.report.curves import Confusion
from hba_ray.report.model import Report
from hba_ray.report.paper_table import cell_interval, published, shown
from hba_ray.report.samples import Answer, Clip, Sample, Samples
from hba_ray.report.sheets import MISSING, between, dataset_place, number, signed
from hba_ray.report.tables import JUDGED
from hba_ray.report.verdicts import CellVerdict, ContrastVerdict, TableVerdict


@dataclass(frozen=True)
class GlanceCell:
    """The score of an arm on a dataset.

    Attributes:
        share: how much of the cell's bar is filled, 0..1; None where the score is missing.
        is_best: whether no other arm shows a higher number.
    """

    text: str
    share: float | None
    is_best: bool


@dataclass(frozen=True)
class Glance:
    """Arms by datasets.

    Attributes:
        rows: (arm, a cell for each dataset).
    """

    datasets: tuple[str, ...]
    rows: tuple[tuple[str, tuple[GlanceCell, ...]], ...]


def glance(report: Report) -> Glance | None:
    """Arms by datasets, the best of each dataset marked; None with a single arm."""
    if len(report.scores) < 2:
        return None
    values = {(arm, score.dataset): score.value for arm, scores in report.scores.items() for score in scores.datasets}
    datasets = tuple(name for name in DATASETS if any(dataset == name for _, dataset in values))
    known = {name: [value for (_, dataset), value in values.items() if dataset == name and value is not None] for name in datasets}

    def cell(arm: str, name: str) -> GlanceCell:
        value = values.get((arm, name))
        return GlanceCell(number(value), value, value is not None and number(value) == number(max(known[name])))

    return Glance(datasets, tuple((arm, tuple(cell(arm, name) for name in datasets)) for arm in report.scores))


def score_forest(report: Report) -> Forest:
    """Every dataset's arms one below the other: score, interval, majority and, where there is any, published."""
    scored = [(arm, score) for arm, scores in report.scores.items() for score in scores.datasets]
    scored.sort(key=lambda one: dataset_place((one[1].dataset,)))
    names = ("Score", "95% interval", "Majority", "Published")
    names = names if any(score.published is not None for _, score in scored) else names[:3]
    groups = []
    for dataset in dict.fromkeys(score.dataset for _, score in scored):
        found = [(arm, score) for arm, score in scored if score.dataset == dataset]
        metric, most = found[0][1].metric.replace("_", " "), max(score.rows for _, score in found)
        rows = tuple(ForestRow(arm, _score_mark(score), tuple(_score_cells(score))[: len(names)]) for arm, score in found)
        groups.append(ForestGroup(dataset, rows, f"{metric}, {most} rows"))
    return Forest("Scores per dataset", "Arm", SHARES, names, tuple(groups), kind="scores", has_legend=True)


def score_file(report: Report) -> str:
    """The scores and their intervals as an SVG file that stands alone."""
    return charts.forest_file(score_forest(report), report.title)


def _score_mark(score: DatasetScore) -> Mark:
    return Mark(score.value, *(score.interval or (None, None)), baseline=score.majority, published=score.published)


def _score_cells(score: DatasetScore) -> Iterator[str]:
    yield from (number(score.value), between(score.interval), number(score.majority))
    yield number(score.published) + (f" {JUDGED}" if score.published is not None and not score.is_comparable else "")


def difference_forest(report: Report) -> Forest | None:
    """Every comparison of arms around zero; None where there is none."""
    if not report.comparisons:
        return None
    rows: dict[str, list[ForestRow]] = {}
    for pair in report.comparisons:
        mark = Mark(pair.difference, *(pair.interval or (None, None)))
        numbers = (signed(pair.difference), between(pair.interval, signed), number(pair.p_adjusted))
        rows.setdefault(f"{pair.second} minus {pair.first}", []).append(ForestRow(pair.dataset, mark, numbers))
    return _around_zero("Differences between arms", "Dataset", ("Difference", "95% interval", "p (Holm)"), rows)


def verdict_forest(found: TableVerdict) -> Forest:
    """A table of the paper: measured, its interval, published, verdict; cells that are no shares have numbers only."""
    groups = []
    for column in dict.fromkeys(cell.column for cell in found.cells):
        rows = tuple(_cell_row(cell, found) for cell in found.cells if cell.column == column)
        groups.append(ForestGroup(f"in place of {column}" if found.is_toy else column, rows))
    title = f"Table {found.paper.table.removeprefix('T')}"
    return Forest(title, "Row", SHARES, ("Measured", "95% interval", "Published"), tuple(groups), has_legend=True)


def _cell_row(cell: CellVerdict, found: TableVerdict) -> ForestRow:
    interval = cell.estimate.interval
    mark = Mark(cell.estimate.value, interval.low, interval.high, None, cell.published)
    is_share = all(0 <= one <= 1 for one in mark.numbers())
    numbers = (shown(cell.row, cell.estimate.value), cell_interval(cell), published(cell, found.paper.digits))
    return ForestRow(cell.row, mark if is_share else None, numbers, None if found.is_toy else cell.verdict)


def contrast_forest(found: TableVerdict) -> Forest | None:
    """Every difference of columns around zero; None where the table has none."""
    if not found.contrasts:
        return None
    rows: dict[str, list[ForestRow]] = {}
    for one in found.contrasts:
        names = f"{one.of} minus {one.over}"
        rows.setdefault(f"in place of {names}" if found.is_toy else names, []).append(_contrast_row(one, found.is_toy))
    return _around_zero("Differences of columns", "Row", ("Difference", "95% interval", "p (Holm)", "Published"), rows)


def _contrast_row(one: ContrastVerdict, is_toy: bool) -> ForestRow:
    of = one.comparison.difference
    numbers = (signed(of.value), between(of.bounds, signed), number(one.p_adjusted), signed(one.published))
    return ForestRow(one.row, Mark(of.value, of.low, of.high, None, one.published), numbers, None if is_toy else one.verdict)


def _around_zero(title: str, first: str, columns: tuple[str, ...], rows: Mapping[str, Iterable[ForestRow]]) -> Forest:
    groups = tuple(ForestGroup(name, tuple(several)) for name, several in rows.items())
    return Forest(title, first, around_zero(row.mark for group in groups for row in group.rows if row.mark), columns, groups)


@dataclass(frozen=True)
class ConfusionCell:
    """
    Attributes:
        share: of the rows with this truth, 0..1.
        is_hit: whether the prediction is the truth.
    """

    count: int
    share: float
    is_hit: bool


@dataclass(frozen=True)
class ConfusionTable:
    """Truth (down) by prediction (across) of one arm.

    Attributes:
        names: of the columns.
        rows: (label, a cell for each column).
    """

    arm: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ConfusionCell, ...]], ...]


def confusion_tables(confusions: Sequence[Confusion]) -> dict[str, list[ConfusionTable]]:
    """Dataset -> the tables of its arms."""
    tables: dict[str, list[ConfusionTable]] = {}
    for one in confusions:
        tables.setdefault(one.dataset, []).append(_confusion_table(one))
    return tables


def _confusion_table(confusion: Confusion) -> ConfusionTable:
    has_other = any(row[-1] for row in confusion.counts)
    names = (*confusion.labels, "no class") if has_other else confusion.labels
    rows = []
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        total = max(1, sum(counts))
        rows.append((label, tuple(ConfusionCell(count, count / total, name == label) for name, count in zip(names, counts, strict=False))))
    return ConfusionTable(confusion.arm, names, tuple(rows))


NAMED_ARMS = 6
"""With more arms than these, a row's line says how many are right, and names them when it is open."""


@dataclass(frozen=True)
class Said:
    """An answer, and the arms that gave it.

    Attributes:
        words: None where nothing could be read from the models; `response` is then what they wrote, where it is known.
        is_cut: whether what they wrote ended at the limit of tokens and not by itself.
        arms: with the probability that they gave, where they give one.
    """

    is_right: bool
    words: str | None
    arms: str
    response: str | None = None
    is_cut: bool = False


@dataclass(frozen=True)
class PlacedClip:
    """A clip of a row.

    Attributes:
        words: its name and size.
        place: of its content among those of the page; None where the page does not hold it.
        tag: element that plays it.
    """

    words: str
    modality: str
    place: int | None
    tag: str


@dataclass(frozen=True)
class BrowserRow:
    """A row of the browser.

    Attributes:
        marks: for each arm of the page `1` (right), `0` (wrong) or `MISSING`; the script filters by it.
        outcome: how many arms are right, where they are too many to be named; empty otherwise.
        said: each answer once.
    """

    sample: Sample
    marks: str
    outcome: str
    clips: tuple[PlacedClip, ...]
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Browser:
    """Rows to read, with their clips.

    Attributes:
        arms: in the order of the rows' marks.
        contents: (media type, content as base64) of each clip that the page holds, each once.
        notes: sentences on how rows were chosen.
    """

    datasets: tuple[str, ...]
    arms: tuple[str, ...]
    rows: tuple[BrowserRow, ...]
    contents: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def browser(samples: Samples) -> Browser:
    """The rows as the page's browser shows them."""
    places: dict[tuple[str, bytes], int] = {}
    rows = tuple(_row(sample, samples.arms, places) for sample in samples.rows)
    contents = tuple((kind, base64.b64encode(content).decode()) for kind, content in places)
    return Browser(tuple(dict.fromkeys(sample.dataset for sample in samples.rows)), samples.arms, rows, contents, samples.notes)


def _row(sample: Sample, arms: Sequence[str], places: dict[tuple[str, bytes], int]) -> BrowserRow:
    """
    Args:
        places: of the contents that the page holds, in the order in which rows need them; those of this row are added.
    """
    by_arm = {answer.arm: answer for answer in sample.answers}
    marks = "".join(MISSING if arm not in by_arm else str(int(by_arm[arm].is_right)) for arm in arms)
    right = sum(answer.is_right for answer in sample.answers)
    outcome = f"{right} of {len(sample.answers)} arms right" if len(sample.answers) > NAMED_ARMS else ""
    clips = tuple(_placed(clip, places) for clip in sample.clips or ())
    return BrowserRow(sample, marks, outcome, clips, _said(sample.answers))


def _said(answers: Iterable[Answer]) -> tuple[Said, ...]:
    told: dict[tuple[bool, str | None, str | None, bool], list[str]] = {}
    for answer in answers:
        key = (answer.is_right, answer.text, answer.response if answer.text is None else None, answer.is_cut)
        told.setdefault(key, []).append(answer.arm if answer.probability is None else f"{answer.arm} ({answer.probability:.2f})")
    return tuple(Said(is_right, words, ", ".join(arms), response, is_cut) for (is_right, words, response, is_cut), arms in told.items())


def _placed(clip: Clip, places: dict[tuple[str, bytes], int]) -> PlacedClip:
    words = clip.name if clip.size is None else f"{clip.name}, {clip.size / 1024:.0f} KiB"
    held = clip.content is not None and clip.kind is not None
    place = places.setdefault((clip.kind or "", clip.content or b""), len(places)) if held else None
    return PlacedClip(words, clip.modality, place, "img" if clip.modality == "image" else clip.modality)

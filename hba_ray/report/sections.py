"""Tables of a page: sheets as they are, scores and differences with their forest plots, confusion matrices.

The sample browser: every row a line that opens, filters above, and the clips, each once, as data that a small script plays.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence

from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation.scores import DatasetScore
from hba_ray.report.charts import SHARES, Mark, Scale, around_zero, axis, legend, strip
from hba_ray.report.curves import Confusion
from hba_ray.report.markup import Child, Html, element, join
from hba_ray.report.model import MISSING, Report, Sheet, between, dataset_place, number, signed
from hba_ray.report.paper_table import published, shown
from hba_ray.report.samples import Answer, Clip, Sample, Samples
from hba_ray.report.tables import JUDGED
from hba_ray.report.verdicts import CellVerdict, ContrastVerdict, TableVerdict

VERDICT_SIGNS = {"agrees": "✓", "as published": "✓", "none, as published": "✓", "higher": "▲", "lower": "▼", "opposite": "✗"}
"""Beside the word, so that it is found at a glance; other verdicts are none."""


def sheet_table(sheet: Sheet) -> Html:
    """A sheet under its own notes; it scrolls by itself where the screen is narrow."""
    head = element("tr", [element("th", name, scope="col", class_=_side(place, sheet)) for place, name in enumerate(sheet.header)])
    rows = [
        element("tr", [element("th" if not place else "td", cell, scope=None if place else "row", class_=_side(place, sheet))
                       for place, cell in enumerate(row)])
        for row in sheet.rows
    ]  # fmt: skip
    table = element("table", element("caption", sheet.title, class_="unseen"), element("thead", head), element("tbody", rows))
    notes = [element("p", note, class_="note") for note in sheet.notes]
    return join(scrolling(table, sheet.title) if sheet.rows else element("p", "None."), notes)


def _side(place: int, sheet: Sheet) -> str | None:
    return "num" if place >= sheet.numbers_from else None


def scrolling(table: Html, label: str) -> Html:
    """A table in a box that scrolls, also by the keyboard."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def glance(report: Report) -> Html | None:
    """Arms by datasets, the best of each dataset marked; None with a single arm."""
    if len(report.scores) < 2:
        return None
    values = {(arm, score.dataset): score.value for arm, scores in report.scores.items() for score in scores.datasets}
    datasets = [name for name in DATASETS if any(dataset == name for _, dataset in values)]
    best = {name: max((value for (_, dataset), value in values.items() if dataset == name and value is not None), default=None)
            for name in datasets}  # fmt: skip
    head = [element("th", "Arm", scope="col"), *(element("th", name, scope="col", class_="num") for name in datasets)]
    rows = []
    for arm in report.scores:
        cells = [element("th", arm, scope="row")]
        for name in datasets:
            value = values.get((arm, name))
            is_best = value is not None and number(value) == number(best[name])
            bar = None if value is None else f"--v:{value:.3f}"
            words = [number(value), element("span", "best", class_="unseen") if is_best else None]
            cells.append(element("td", words, class_="num bar best" if is_best else "num bar", style=bar))
        rows.append(element("tr", cells))
    table = element("table", element("caption", "Score of every arm on every dataset", class_="unseen"),
                    element("thead", element("tr", head)), element("tbody", rows), class_="glance")  # fmt: skip
    return join(
        scrolling(table, "Scores at a glance"),
        element("p", "Bold: the best of a dataset, before any test of the difference.", class_="note"),
    )


def score_forest(report: Report) -> Html:
    """Every dataset's arms one below the other: plot, score, interval, majority and, where there is any, published."""
    scored = [(arm, score) for arm, scores in report.scores.items() for score in scores.datasets]
    scored.sort(key=lambda one: dataset_place((one[1].dataset,)))
    has_published = any(score.published is not None for _, score in scored)
    marks: list[Mark] = []
    bodies: list[Html] = []
    for dataset in dict.fromkeys(score.dataset for _, score in scored):
        found = [(arm, score) for arm, score in scored if score.dataset == dataset]
        rows = []
        for arm, score in found:
            mark = Mark(score.value, *(score.interval or (None, None)), baseline=score.majority, published=score.published)
            marks.append(mark)
            rows.append(_forest_row(arm, strip(mark, SHARES), list(_score_cells(score))[: 4 if has_published else 3]))
        metric, most = found[0][1].metric.replace("_", " "), max(score.rows for _, score in found)
        bodies.append(_group(dataset, f"{metric}, {most} rows", rows))
    names = ("Score", "95% interval", "Majority", "Published")[: 4 if has_published else 3]
    return join(legend(marks), _forest("Scores per dataset", "Arm", SHARES, names, bodies, kind="scores"))


def _score_cells(score: DatasetScore) -> Iterator[str]:
    yield from (number(score.value), between(score.interval), number(score.majority))
    yield number(score.published) + (f" {JUDGED}" if score.published is not None and not score.is_comparable else "")


def difference_forest(report: Report) -> Html | None:
    """Every comparison of arms around zero; None where there is none."""
    if not report.comparisons:
        return None
    marks = [Mark(pair.difference, *(pair.interval or (None, None))) for pair in report.comparisons]
    scale = around_zero(marks)
    rows: dict[str, list[Html]] = {}
    for pair, mark in zip(report.comparisons, marks, strict=True):
        numbers = [signed(pair.difference), between(pair.interval, signed), number(pair.p_adjusted)]
        rows.setdefault(f"{pair.second} minus {pair.first}", []).append(_forest_row(pair.dataset, strip(mark, scale), numbers))
    bodies = [_group(name, None, several) for name, several in rows.items()]
    return _forest("Differences between arms", "Dataset", scale, ("Difference", "95% interval", "p (Holm)"), bodies)


def verdict_forest(found: TableVerdict) -> Html:
    """A table of the paper: measured, its interval, published, verdict; cells that are no shares have numbers only."""
    bodies, marks = [], []
    names = _with_verdict(("Measured", "95% interval", "Published"), found)
    for column in dict.fromkeys(cell.column for cell in found.cells):
        cells = [cell for cell in found.cells if cell.column == column]
        made = [Mark(cell.estimate.value, cell.estimate.interval.low, cell.estimate.interval.high, None, cell.published) for cell in cells]
        marks += made
        bodies.append(
            _group(column, None, [_forest_row(cell.row, _share(mark), _cells(cell, found)) for cell, mark in zip(cells, made, strict=True)])
        )
    return join(legend(marks), _forest(f"Table {found.paper.table.removeprefix('T')}", "Row", SHARES, names, bodies))


def contrast_forest(found: TableVerdict) -> Html | None:
    if not found.contrasts:
        return None
    marks = [Mark(one.comparison.difference.value, one.comparison.difference.low, one.comparison.difference.high, None, one.published)
             for one in found.contrasts]  # fmt: skip
    scale, rows = around_zero(marks), {}
    for one, mark in zip(found.contrasts, marks, strict=True):
        rows.setdefault(f"{one.of} minus {one.over}", []).append(_forest_row(one.row, strip(mark, scale), _contrast(one, found.is_toy)))
    names = _with_verdict(("Difference", "95% interval", "p (Holm)", "Published"), found)
    return _forest("Differences of columns", "Row", scale, names, [_group(name, None, several) for name, several in rows.items()])


def _with_verdict(names: tuple[str, ...], found: TableVerdict) -> tuple[str, ...]:
    return names if found.is_toy else (*names, "Verdict")


def _share(mark: Mark) -> Html | None:
    return strip(mark, SHARES) if all(0 <= one <= 1 for one in mark.numbers()) else None


def _cells(cell: CellVerdict, found: TableVerdict) -> list[Child]:
    low, high = cell.estimate.interval.low, cell.estimate.interval.high
    interval = MISSING if low is None or high is None else f"{shown(cell.row, low)} to {shown(cell.row, high)}"
    numbers: list[Child] = [shown(cell.row, cell.estimate.value), interval, published(cell, found.paper.digits)]
    return numbers if found.is_toy else [*numbers, verdict_words(cell.verdict)]


def _contrast(one: ContrastVerdict, is_toy: bool) -> list[Child]:
    of = one.comparison.difference
    interval = None if of.low is None or of.high is None else (of.low, of.high)
    numbers: list[Child] = [signed(of.value), between(interval, signed), number(one.p_adjusted), signed(one.published)]
    return numbers if is_toy else [*numbers, verdict_words(one.verdict)]


def verdict_words(verdict: str) -> Html:
    sign = VERDICT_SIGNS.get(verdict)
    kind = {"✓": "good", None: "none"}.get(sign, "bad")
    return element("span", sign and f"{sign} ", verdict, class_=f"verdict {kind}")


def _forest(title: str, first: str, scale: Scale, names: Sequence[str], bodies: Sequence[Html], kind: str | None = None) -> Html:
    head = [
        element("th", first, scope="col"),
        element("th", element("span", "Plot", class_="unseen"), axis(scale), scope="col", class_="plot"),
    ]
    head += [element("th", name, scope="col", class_="num") for name in names]
    caption = element("caption", title, class_="unseen")
    return scrolling(element("table", caption, element("thead", element("tr", head)), bodies, class_=f"forest {kind or ''}".strip()), title)


def _group(name: str, more: str | None, rows: Sequence[Html]) -> Html:
    heading = element("th", name, element("small", more) if more else None, scope="rowgroup", colspan="9")
    return element("tbody", element("tr", heading, class_="group"), rows)


def _forest_row(name: str, plot: Html | None, numbers: Sequence[Child]) -> Html:
    cells = [element("td", one, class_="num") for one in numbers]
    return element("tr", element("th", name, scope="row"), element("td", plot, class_="plot"), cells)


def confusion_table(confusion: Confusion) -> Html:
    """Truth by prediction: rows, and shaded the share of the truth's rows."""
    has_other = any(row[-1] for row in confusion.counts)
    names = (*confusion.labels, *(("no class",) if has_other else ()))
    head = [element("th", "truth \\ said", scope="col"), *(element("th", name, scope="col", class_="num") for name in names)]
    rows = []
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        total, kept = sum(counts), counts if has_other else counts[:-1]
        cells = [
            element("td", str(count), class_="hit num" if name == label else "num", style=f"--v:{count / total:.2f}" if count else None)
            for name, count in zip(names, kept, strict=True)
        ]
        rows.append(element("tr", element("th", label, scope="row"), cells))
    caption = element("caption", confusion.arm)
    return element("table", caption, element("thead", element("tr", head)), element("tbody", rows), class_="confusion")


NAMED_ARMS = 6
"""With more arms than these, a line says how many are right, and names them when it is open."""


class Shelf:
    """The contents of clips, each once, in the order in which rows need them."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, bytes], int] = {}

    def place(self, kind: str, content: bytes) -> int:
        return self.places.setdefault((kind, content), len(self.places))

    def data(self) -> Html:
        """The clips as JSON in which nothing can end the element that holds it."""
        packed = [[kind, base64.b64encode(content).decode()] for kind, content in self.places]
        written = json.dumps(packed).replace("<", "\\u003c")
        return Html(f'<script type="application/json" id="clips">{written}</script>')


def browser(samples: Samples) -> Html:
    """Filters, rows, clips."""
    shelf = Shelf()
    rows = [_row(sample, samples.arms, shelf) for sample in samples.rows]
    notes = [element("p", note, class_="note") for note in samples.notes]
    listed = element("div", rows, id="samples", tabindex="0", role="region", aria_label="Rows")
    return join(_filters(samples), element("p", f"{len(rows)} rows", id="count", role="status"), listed, notes, shelf.data())


def _filters(samples: Samples) -> Html:
    datasets = list(dict.fromkeys(sample.dataset for sample in samples.rows))
    options = [
        ("Dataset", "dataset", [("", "all datasets"), *((name, name) for name in datasets)]),
        ("Arm", "arm", [("", "any arm"), *((str(place), arm) for place, arm in enumerate(samples.arms))]),
        ("Answer", "outcome", [("", "right or wrong"), ("1", "right"), ("0", "wrong"), ("differ", "arms do not agree")]),
    ]
    fields: list[Html] = [
        element("label", label, " ", element("select", [element("option", words, value=value) for value, words in choices], name=name))
        for label, name, choices in options
    ]
    fields.append(element("label", "Text ", element("input", type="search", name="words", placeholder="in question or answer")))
    return element("form", fields, id="filters", hidden=True)  # shown by the script, without which it does nothing


def _row(sample: Sample, arms: Sequence[str], shelf: Shelf) -> Html:
    said = {answer.arm: answer for answer in sample.answers}
    marks = "".join(MISSING if arm not in said else str(int(said[arm].is_right)) for arm in arms)
    head = [element("span", sample.dataset, class_="tag"), element("bdi", sample.true, class_="truth"), _outcomes(sample)]
    body = [
        element("p", element("bdi", sample.question), class_="question") if sample.question else None,
        element("div", [_clip(clip, shelf) for clip in sample.clips], class_="clips") if sample.clips else None,
        _answers(sample),
        element("p", sample.sample_id, class_="note"),
    ]
    return element("details", element("summary", head), element("div", body), class_="row", data_dataset=sample.dataset, data_marks=marks)


def _outcomes(sample: Sample) -> Html:
    right = sum(answer.is_right for answer in sample.answers)
    if len(sample.answers) > NAMED_ARMS:
        return element("span", f"{right} of {len(sample.answers)} arms right", class_="outcomes")
    return element("span", [_chip(answer) for answer in sample.answers], class_="outcomes")


def _chip(answer: Answer) -> Html:
    return element(
        "span",
        element("span", _sign(answer.is_right), class_="sign"),
        " ",
        answer.arm,
        class_="chip good" if answer.is_right else "chip bad",
    )


def _sign(is_right: bool) -> Html:
    return join("✓" if is_right else "✗", element("span", "right: " if is_right else "wrong: ", class_="unseen"))


def _answers(sample: Sample) -> Html:
    """Truth first; then each answer once, with the arms that gave it."""
    rows = [element("tr", element("th", "truth", scope="row"), element("td", element("bdi", sample.true)), element("td", ""))]
    told: dict[tuple[bool, str | None], list[Answer]] = {}
    for answer in sample.answers:
        told.setdefault((answer.is_right, answer.text), []).append(answer)
    for (is_right, words), answers in told.items():
        arms = ", ".join(_with_probability(answer) for answer in answers)
        answered = element("bdi", words) if words else element("em", "nothing that could be read" if words is None else "an empty text")
        cells = [element("td", element("span", _sign(is_right), class_="sign"), " ", answered), element("td", arms)]
        rows.append(element("tr", element("th", "said", scope="row"), cells, class_="good" if is_right else "bad"))
    caption = element("caption", "Truth and answers", class_="unseen")
    return element("table", caption, element("tbody", rows), class_="answers")


def _with_probability(answer: Answer) -> str:
    return answer.arm if answer.probability is None else f"{answer.arm} ({answer.probability:.2f})"


def _clip(clip: Clip, shelf: Shelf) -> Html:
    size = "" if clip.size is None else f", {clip.size / 1024:.0f} KiB"
    if clip.content is None or clip.kind is None:
        return element("p", f"{clip.name}{size}: not in this file", class_="note")
    name = {"image": "img"}.get(clip.modality, clip.modality)
    return element(
        "span",
        f"{clip.name}{size}",
        class_="clip",
        data_clip=shelf.place(clip.kind, clip.content),
        data_tag=name,
        data_alt=f"{clip.modality} of this row",
    )

"""The sample browser: every row a line that opens, filters above, and the clips, each once, as data that a small script plays."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from hba_ray.report.base import MISSING
from hba_ray.report.clips import Clip
from hba_ray.report.html.markup import Html, element, join
from hba_ray.report.samples import Answer, Sample, Samples

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

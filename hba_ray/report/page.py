"""The page: what the run is, its scores, what differs, how it learned, what is taken for what, rows to read, and all tables.

Equal reports are equal files. A content security policy keeps out every script but the page's own, and every other address.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from hba_ray.report.charts import curve_figures
from hba_ray.report.curves import Confusion, Curves
from hba_ray.report.markup import Child, Html, element, join, text
from hba_ray.report.model import MISSING, TINY_TITLE, Report
from hba_ray.report.paper_table import outcome
from hba_ray.report.paper_table import sheets as verdict_sheets
from hba_ray.report.paper_table import title as verdict_title
from hba_ray.report.samples import Samples
from hba_ray.report.sections import (
    browser,
    confusion_table,
    contrast_forest,
    difference_forest,
    glance,
    score_forest,
    sheet_table,
    verdict_forest,
)
from hba_ray.report.tables import PAIR_NOTE, score_notes, sheets
from hba_ray.report.verdicts import TableVerdict


@dataclass(frozen=True)
class Evidence:
    """What a page shows beside the report's own numbers."""

    curves: tuple[Curves, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    samples: Samples | None = None


@dataclass(frozen=True)
class Judged:
    """A table of the paper, judged.

    Attributes:
        differs: what the run does otherwise than the shipped spec.
    """

    found: TableVerdict
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Section:
    name: str
    title: str
    content: Html | None


def render_html(report: Report, evidence: Evidence, judged: Judged | None = None) -> str:
    """The whole page."""
    style, script = (files("hba_ray.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    shown = [section for section in _sections(report, evidence, judged) if section.content]
    links = [element("li", element("a", section.title, href=f"#{section.name}")) for section in shown]
    body = [
        _header(report, judged),
        element("nav", element("ul", links), aria_label="Parts of the report"),
        element("main", [_section(section) for section in shown]),
        element("footer", element("p", "Made by hba_ray from the files of the run. This page loads nothing from elsewhere.")),
        Html(f"<script>{script}</script>"),
    ]
    head = [
        Html('<meta charset="utf-8">'),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", verdict_title(judged.found) if judged else None, " · " if judged else None, report.title),
        Html(f"<style>{style}</style>"),
    ]
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{join(head)}</head>\n<body>\n{join(body)}\n</body>\n</html>\n'


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src blob:; media-src blob:; script-src 'sha256-{digest}'"


def _sections(report: Report, evidence: Evidence, judged: Judged | None) -> list[_Section]:
    has_published = any(score.published is not None for scores in report.scores.values() for score in scores.datasets)
    said = (note for note in score_notes(report) if has_published or not note.startswith("Published:"))
    notes = [element("p", note, class_="note") for note in said]
    differences = difference_forest(report)
    return [
        _Section("paper", "Paper", _paper(judged) if judged else None),
        _Section("scores", "Scores", join(glance(report), element("h3", "With intervals"), score_forest(report), notes)),
        _Section("differences", "Differences", join(differences, element("p", PAIR_NOTE, class_="note")) if differences else None),
        _Section("learning", "Learning", _learning(evidence.curves)),
        _Section("confusion", "Confusion", _confusion(evidence.confusions)),
        _Section("rows", "Rows", browser(evidence.samples) if evidence.samples and evidence.samples.rows else None),
        _Section("notes", "Notes", element("ul", [element("li", note) for note in report.notes], class_="notes") if report.notes else None),
        _Section("tables", "All tables", _tables(report)),
        _Section("made-with", "Made with", _versions(report)),
    ]


def _section(section: _Section) -> Html:
    heading = element("h2", section.title, id=f"{section.name}-title")
    return element("section", heading, section.content, id=section.name, aria_labelledby=f"{section.name}-title")


def _header(report: Report, judged: Judged | None) -> Html:
    tested = {score.dataset: score.rows for scores in report.scores.values() for score in scores.datasets}
    facts = {
        "Model": report.facts.model,
        "Arms": str(len(report.scores)),
        "Datasets": str(len(tested)),
        "Rows scored": f"{sum(tested.values()):,}",
        "Rows dropped": f"{sum(sum(reasons.values()) for reasons in report.facts.rows_dropped.values()):,}",
        "Seed": str(report.facts.seed),
        "Fingerprint": report.facts.fingerprint,
    }
    listed = element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in facts.items()], class_="facts")
    warning = TINY_TITLE.strip(" ()")
    name = report.title.removesuffix(TINY_TITLE)
    return element(
        "header",
        element("p", "hba_ray report", class_="eyebrow"),
        element("h1", verdict_title(judged.found) if judged else name),
        element("p", warning[0].upper() + warning[1:] + ".", class_="warn", role="note") if report.is_tiny else None,
        listed,
    )


def _paper(judged: Judged) -> Html:
    made = verdict_sheets(judged.found, judged.differs)
    contrasts = contrast_forest(judged.found)
    gates = [sheet for sheet in made if sheet.title == "Claims"]
    parts: list[Child] = [element("p", outcome(judged.found))]
    parts += [part for sheet in gates for part in (element("h3", sheet.title), sheet_table(sheet))]
    parts += [element("h3", made[0].title), verdict_forest(judged.found), [element("p", note, class_="note") for note in made[0].notes]]
    if contrasts:
        parts += [element("h3", made[1].title), contrasts, [element("p", note, class_="note") for note in made[1].notes]]
    return join(*parts)


def _learning(curves: Sequence[Curves]) -> Html | None:
    shown = [one for one in curves if one.charts]
    return join(*((element("h3", one.step), curve_figures(one)) for one in shown)) if shown else None


def _confusion(confusions: Sequence[Confusion]) -> Html | None:
    if not confusions:
        return None
    datasets = dict.fromkeys(one.dataset for one in confusions)
    parts = []
    for place, dataset in enumerate(datasets):
        own = [element("div", confusion_table(one)) for one in confusions if one.dataset == dataset]
        summary = element("summary", dataset, element("small", f"{len(own)} arm{'s' if len(own) > 1 else ''}"))
        parts.append(
            element("details", summary, element("div", own, class_="matrices"), class_="sheet", open=len(datasets) <= 4 or not place)
        )
    said = "Rows by truth (down) and answer (across); framed: right; the darker, the larger the share of the truth's rows."
    return join(element("p", said, class_="note"), parts)


def _tables(report: Report) -> Html:
    parts = []
    for sheet in sheets(report):
        summary = element("summary", sheet.title, element("small", f"{len(sheet.rows)} rows"))
        parts.append(element("details", summary, sheet_table(sheet), class_="sheet"))
    return join(parts)


def _versions(report: Report) -> Html:
    versions = [element("li", text(f"{package} {version}")) for package, version in sorted(report.facts.versions.items())]
    return element("ul", versions, class_="versions") if versions else element("p", MISSING)

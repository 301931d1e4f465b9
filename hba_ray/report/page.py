"""The page: what the run is, its scores, what differs, how it learned, what is taken for what, rows to read, and all tables.

`page.html.j2` lays out what `sections.py` has put together; it escapes all text but the markup that `charts.py` made. Tables that
describe an atlas have a page of their own, `atlas.html.j2`, in the same frame. Equal reports are equal files. A content security policy
keeps out every script but the page's own, and every other address.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hba_ray.data.tasks import TOTAL_ROWS
from hba_ray.report import charts, sections
from hba_ray.report.beside import TOY_NOTE, AtlasTable, whole
from hba_ray.report.curves import Confusion, Curves
from hba_ray.report.model import TINY_TITLE, Report
from hba_ray.report.paper_table import CLAIMS, outcome
from hba_ray.report.paper_table import sheets as verdict_sheets
from hba_ray.report.paper_table import title as verdict_title
from hba_ray.report.samples import Samples
from hba_ray.report.sheets import MISSING, Sheet
from hba_ray.report.tables import PAIR_NOTE, score_notes, sheets
from hba_ray.report.verdicts import TableVerdict


@dataclass(frozen=True)
class Evidence:
    """What a page shows beside the report's own numbers."""

    curves: tuple[Curves, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    samples: Samples | None = None


@dataclass(frozen=True)
class JudgedTable:
    """A table of the paper with its verdicts.

    Attributes:
        differs: what the run does otherwise than the shipped spec.
    """

    found: TableVerdict
    differs: tuple[str, ...] = ()


SECTIONS = {
    "paper": "Paper",
    "scores": "Scores",
    "differences": "Differences",
    "learning": "Learning",
    "confusion": "Confusion",
    "rows": "Rows",
    "notes": "Notes",
    "tables": "All tables",
    "made-with": "Made with",
}
"""Parts of the page in their order: id -> title. Those that would be empty are left out."""


def render_html(report: Report, evidence: Evidence, judged: JudgedTable | None = None) -> str:
    """The whole page."""
    has_published = any(score.published is not None for scores in report.scores.values() for score in scores.datasets)
    learning = [curves for curves in evidence.curves if curves.charts]
    rows = evidence.samples if evidence.samples and evidence.samples.rows else None
    empty = {
        "paper": judged is None,
        "differences": not report.comparisons,
        "learning": not learning,
        "confusion": not evidence.confusions,
        "rows": rows is None,
        "notes": not report.notes,
    }
    return environment().get_template("page.html.j2").render(
        **_frame(),
        shown={name: title for name, title in SECTIONS.items() if not empty.get(name)},
        report=report,
        tiny_title=TINY_TITLE,
        facts=_facts(report),
        verdict=_verdict(judged) if judged else None,
        glance=sections.glance(report),
        scores=sections.score_forest(report),
        score_notes=[note for note in score_notes(report) if has_published or not note.startswith("Published:")],
        differences=sections.difference_forest(report),
        pair_note=PAIR_NOTE,
        learning=learning,
        confusions=sections.confusion_tables(evidence.confusions),
        browser=sections.browser(rows) if rows else None,
        sheets=sheets(report),
        missing=MISSING,
    )  # fmt: skip


def render_atlas_tables(tables: Sequence[AtlasTable]) -> str:
    """A page of tables that describe one atlas."""
    survey = tables[0].survey
    facts = {
        "Spec": survey.name,
        "Datasets": str(len(survey.datasets)),
        "Rows": whole(survey.total()),
        "Published rows": whole(sum(TOTAL_ROWS)),
        "Atlas": survey.fingerprint,
    }
    return environment().get_template("atlas.html.j2").render(
        **_frame(),
        shown={table.id: table.title.partition(",")[0] for table in tables},
        tables=tables,
        survey=survey,
        facts=facts,
        toy_note=TOY_NOTE,
    )  # fmt: skip


def _frame() -> dict[str, str]:
    """What every page has around its content."""
    style, script = (files("hba_ray.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return {"style": Markup(style), "script": Markup(script), "policy": _policy(script)}


def environment() -> Environment:
    """The templates, which escape all text and refuse a name that they were not given."""
    made = Environment(
        loader=PackageLoader("hba_ray", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalized,
    )
    drawing = (charts.axis, charts.strip, charts.legend, charts.swatch, charts.describe, charts.chart_svg)
    made.globals.update({function.__name__: function for function in drawing})
    return made


def _finalized(value: Any) -> Any:
    """What an expression of a template is written as, before it is escaped."""
    return charts.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src blob:; media-src blob:; script-src 'sha256-{digest}'"


def _facts(report: Report) -> dict[str, str]:
    tested = {score.dataset: score.rows for scores in report.scores.values() for score in scores.datasets}
    return {
        "Model": report.facts.model,
        "Arms": str(len(report.scores)),
        "Datasets": str(len(tested)),
        "Rows scored": f"{sum(tested.values()):,}",
        "Rows dropped": f"{sum(sum(reasons.values()) for reasons in report.facts.rows_dropped.values()):,}",
        "Seed": str(report.facts.seed),
        "Fingerprint": report.facts.fingerprint,
        **({"Cost": report.facts.spent.in_words()} if report.facts.spent else {}),
    }


@dataclass(frozen=True)
class _VerdictPart:
    """The part of the page that sets measured numbers beside a table of the paper.

    Attributes:
        claims: the sheet of claims, where the table has some.
        forests: cells and, where there are any, differences of columns: the sheet whose title and notes they have, and the forest.
    """

    title: str
    outcome: str
    has_verdicts: bool
    claims: list[Sheet]
    forests: list[tuple[Sheet, charts.Forest]]


def _verdict(judged: JudgedTable) -> _VerdictPart:
    found = judged.found
    made = verdict_sheets(found, judged.differs)
    forests = [(made[0], sections.verdict_forest(found))]
    contrasts = sections.contrast_forest(found)
    if contrasts is not None:
        forests.append((made[1], contrasts))
    claims = [sheet for sheet in made if sheet.title == CLAIMS]
    return _VerdictPart(verdict_title(found), outcome(found), not found.is_toy, claims, forests)

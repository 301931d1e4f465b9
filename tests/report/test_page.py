"""The page: whole, safe, alone, the same each time, and honest about a tiny model."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from hba_ray.evaluation.pairs import PairScore
from hba_ray.report.curves import confusions, curves
from hba_ray.report.model import TINY_TITLE
from hba_ray.report.page import Evidence, JudgedTable, render_html
from hba_ray.report.samples import Clip, samples
from hba_ray.report.verdicts import give_verdicts
from tests.helpers.answers import HOSTILE, two_arms
from tests.report.test_tables import REPORT, TINY
from tests.report.test_verdicts import column, table

VOID = ("br", "input", "link", "meta")
"""Elements that hold nothing and have no end."""
VIDEO = b"\x00\x00\x00 ftypisom" + bytes(range(256))
CLIPS = {
    ("toy_words", "w1"): (Clip("video", "media/a.mp4", len(VIDEO), "video/mp4", VIDEO),),
    ("toy_words", "w2"): (Clip("video", "media/same.mp4", len(VIDEO), "video/mp4", VIDEO), Clip("audio", "media/<b>.avi", 9)),
}
PAIR = PairScore("zero-shot", "sft", "siq2", "exact_match", 875, 875, 0.333, (0.3, 0.36), 0.001, 0.05, 0.002)
EVIDENCE = Evidence(
    (curves("sft", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]),),
    confusions(two_arms()),
    samples(two_arms(), CLIPS, ("note <i>",)),
)
FULL = dataclasses.replace(REPORT, comparisons=(PAIR,))
PAGE = render_html(FULL, EVIDENCE)


class Reader(HTMLParser):
    """Checks that elements close in order; keeps what tests look at."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


READ = Reader(PAGE)


def test_elements_close_in_order_ids_are_used_once_and_links_lead_somewhere():
    ids = [attributes["id"] for _, attributes in READ.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [link["href"] for link in READ.all("a")] == [
        f"#{name}" for name in ("scores", "differences", "learning", "confusion", "rows", "notes", "tables", "made-with")
    ]
    assert {str(link["href"])[1:] for link in READ.all("a")} <= set(ids)


def test_the_page_loads_nothing_and_runs_no_script_but_its_own():
    assert not [attributes for tag, attributes in READ.elements if tag in ("link", "img", "iframe", "object") or "src" in attributes]
    assert not re.search(r"url\(|@import|https?:", PAGE)
    assert not [name for _, attributes in READ.elements for name in attributes if name.startswith("on")]
    data, script = READ.texts["script"]
    (policy,) = [meta["content"] for meta in READ.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert json.loads(data)


def test_hostile_text_stays_text():
    assert HOSTILE not in PAGE and "alert(1)" in PAGE
    assert len(READ.all("script")) == 2
    assert any("</script><script>alert(1)" in words and "\u2400" in words for words in READ.texts["bdi"])
    hostile = dataclasses.replace(FULL, title=HOSTILE, notes=(HOSTILE,), scores={HOSTILE: REPORT.scores["sft"]})
    assert len(Reader(render_html(hostile, EVIDENCE)).all("script")) == 2


def test_a_clip_is_inside_once_however_many_rows_have_it_and_others_are_named():
    (packed,) = [json.loads(words) for words in READ.texts["script"][:1]]
    assert packed == [["video/mp4", base64.b64encode(VIDEO).decode()]]
    assert [attributes["data-clip"] for attributes in READ.all("span") if "data-clip" in attributes] == ["0", "0"]
    assert "media/&lt;b&gt;.avi, 0 KiB: not in this file" in PAGE


def test_equal_reports_are_equal_pages():
    assert render_html(FULL, EVIDENCE) == PAGE


def test_every_table_has_a_caption_and_headers_with_a_scope_and_every_picture_words():
    assert len(READ.all("table")) == len(READ.all("caption")) > 8
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in READ.all("th"))
    assert all(drawing.get("aria-hidden") == "true" or drawing.get("aria-label") for drawing in READ.all("svg") if "x" not in drawing)
    assert all(box.get("aria-label") for box in READ.all("div") if box.get("role") == "region")


def test_right_and_wrong_are_signs_and_words_and_not_only_colours():
    rows = READ.all("details")
    marks = {row["data-marks"] for row in rows if "data-marks" in row}
    assert marks == {"11", "01"}
    assert READ.texts["span"].count("wrong: ") >= 3 and "✗" in PAGE and "✓" in PAGE


def test_the_scores_of_the_page_are_those_of_the_report():
    cells = {words for words in READ.texts["td"]}
    assert {"0.542", "0.333", "+0.333", "+0.300 to +0.360"} <= cells


def test_a_tiny_model_says_so_in_the_title_and_a_real_one_does_not():
    tiny = Reader(render_html(TINY, Evidence()))
    assert TINY_TITLE in tiny.texts["title"][0] and any("gives no verdict" in words for words in tiny.texts["p"])
    assert "tiny random model" not in PAGE


def test_a_report_without_anything_beside_it_has_no_empty_parts():
    bare = Reader(render_html(dataclasses.replace(REPORT, notes=()), Evidence()))
    assert [link["href"] for link in bare.all("a")] == ["#scores", "#tables", "#made-with"]


@pytest.mark.parametrize("is_toy", [False, True])
def test_a_table_of_the_paper_comes_first_with_its_verdicts_in_words(is_toy):
    gate = {"says": "near", "of": "plain", "within": 0.1}
    found = give_verdicts(table(gates=[gate]), {"plain": column((60, 40)), "adapted": column((95, 5))}, is_toy=is_toy)
    page = Reader(render_html(FULL, EVIDENCE, JudgedTable(found, ("sft.lr=1 (command line)",))))
    assert page.all("a")[0]["href"] == "#paper"
    assert found.paper.title in page.texts["title"][0] and found.paper.title in page.texts["h1"][0]
    assert any("sft.lr=1 (command line)" in words for words in page.texts["p"])
    verdicts = {cell.verdict for cell in found.cells}
    shown = {words.lstrip("✓✗▲▼ ") for words in page.texts["span"]}
    assert (not verdicts & shown) if is_toy else verdicts <= shown
    assert "Published" in page.texts["th"] and ("Verdict" in page.texts["th"]) == (not is_toy)

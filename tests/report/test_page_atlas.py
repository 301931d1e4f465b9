"""The page of tables that describe an atlas: whole, alone, with a picture where there are numbers, and honest about a toy."""

from hba_ray.evaluation.survey import DatasetSurvey
from hba_ray.report.atlas_tables import atlas_table
from hba_ray.report.page import render_atlas_tables
from tests.helpers.surveys import published_survey
from tests.report.test_page import Reader

NAMES = ("T1", "T7", "F1")


def test_the_page_holds_every_table_with_its_pictures_and_loads_nothing():
    page = render_atlas_tables([atlas_table(name, published_survey()) for name in NAMES])
    read = Reader(page)
    assert [attrs["id"] for tag, attrs in read.elements if tag == "section"] == list(NAMES)
    assert page.count('<table class="forest') == 1 + 4 and "101,964" in page and "no verdict" not in page
    assert not [attrs for tag, attrs in read.elements if attrs.get("src") or str(attrs.get("href", "#"))[0] != "#"]
    assert page == render_atlas_tables([atlas_table(name, published_survey()) for name in NAMES])


def test_what_rows_say_stays_text_and_a_toy_is_named_one():
    hostile = "</td><script>alert(1)</script>\x00"
    rows = DatasetSurvey({"train": 12}, {"train": {hostile: 12}}, {"text": 12}, prompt=(hostile,))
    page = render_atlas_tables([atlas_table("T22", published_survey(is_toy=True, toy_words=rows))])
    assert "<script>alert" not in page and "\x00" not in page and "&lt;script&gt;alert" in page
    assert 'class="warn"' in page and "says nothing about the paper" in page
    Reader(page)

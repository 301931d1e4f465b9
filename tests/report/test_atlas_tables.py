"""Tables that describe the atlas: an atlas as the paper describes it agrees in every number, another one is told apart."""

import json
import re

import pytest

from hba_ray.evaluation.survey import DatasetSurvey
from hba_ray.report.atlas_tables import atlas_table
from hba_ray.specs.paper import DESCRIPTIVE
from tests.helpers.surveys import as_published, published_survey, with_rows

FULL = published_survey()


def rows_of(table, sheet: int = 0) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.sheets[sheet].rows}


def test_table_7_of_an_atlas_as_published_is_the_papers():
    table = atlas_table("T7", FULL)
    assert rows_of(table)["Total"] == ("74,451", "9,499", "18,014", "101,964", "74,451", "9,499", "18,014", "101,964")
    assert rows_of(table)["MimeQA"][:4] == ("633", "0", "173", "806")
    assert len(table.numbers) == 64 and table.outcome == "64 of 64 numbers as published; rows: 101,964 of 101,964"


def test_table_7_tells_each_number_that_is_another_one():
    table = atlas_table("T7", with_rows(FULL, "siq2", train=6159, test=943))
    differing = {(one.row, one.column) for one in table.numbers if one.agrees is False}
    assert differing == {(row, column) for row in ("Social-IQ 2.0", "Total") for column in ("train", "test", "total")}
    assert table.outcome.startswith("58 of 64 numbers as published; rows: 102,629")


def test_table_2_has_what_the_paper_says_of_each_corpus():
    table = atlas_table("T2", FULL)
    assert rows_of(table)["MELD"] == (
        *("Aff; Soc; Cog", "SEN, EMO", "label", "binary weighted f1, mean weighted accuracy", "T A V", "T A V", "27,412", "27,412", "0"),
    )
    assert rows_of(table)["IntentQA"][1:4] == ("INT", "text", "judge accuracy")
    assert rows_of(table)["Total"][-3:] == ("101,964", "101,964", "0") and table.outcome.startswith("14 of 14 numbers")
    other = atlas_table("T2", with_rows(FULL, "urfunny", train=8074))
    assert rows_of(other)["UR-FUNNYv2"][-3:] == ("8,490", "2,125", "+6,365")


def test_table_1_ticks_what_an_atlas_has_and_thousands_are_cut_as_the_paper_does():
    table = atlas_table("T1", FULL)
    assert table.outcome.startswith("20 of 20 numbers") and rows_of(table)["samples"][-2:] == ("101k", "102.0k")
    assert rows_of(table)["audio"] == ("yes", "yes", "no", "yes", "yes", "yes", "yes")
    speech = published_survey()
    speech = type(speech)("speech", "abc", False, {name: speech.datasets[name] for name in ("tess", "cremad")})
    ticked = {name: row[-1] for name, row in rows_of(atlas_table("T1", speech)).items()}
    assert {name for name, cell in ticked.items() if cell == "yes"} == {"raw clips", "descriptors", "audio", "text", "Aff", "Cog", "EMO"}


def test_prompts_show_inputs_targets_and_shared_lines_of_meld_and_of_all_others():
    meld = DatasetSurvey({"train": 12}, {"train": {"positive": 9, "neutral": 3}}, {"text_video_audio": 12}, prompt=("<video>", "…", "How?"))
    (row,) = atlas_table("T3", published_survey(meld_senti=meld)).sheets[0].rows
    assert row == (
        *("MELD (SEN)", "text, audio, video", "text, video, audio (12)", "one of 3 labels", "neutral, positive", "<video> / … / How?"),
    )
    others = rows_of(atlas_table("T22", FULL))
    assert "MELD (SEN)" not in others and len(others) == 15 and others["MimeQA"][2:4] == ("words", "words")


def test_table_21_names_regions_and_the_share_of_rows_from_each():
    table = atlas_table("T21", FULL)
    assert rows_of(table)["MMPsy"][1:4] == ("Asia", "its authors, with the education authorities of Guangdong, China", "zh")
    assert rows_of(table, 1) == {
        "North America": ("51,943", "50.9%", "50.9%"), "Asia": ("49,387", "48.4%", "48.4%"), "Europe": ("634", "0.6%", "0.6%"),
    }  # fmt: skip
    assert sum(int(row[0].replace(",", "")) for row in rows_of(table, 2).values()) == 101_964


@pytest.mark.parametrize("name", DESCRIPTIVE)
def test_a_toy_atlas_gives_no_verdict_and_an_atlas_of_one_corpus_gives_a_table_all_the_same(name):
    toy = published_survey(is_toy=True)
    toy = type(toy)("toy", "abc", True, {"toy_tone": DatasetSurvey({"train": 5}, {}, {"text_audio": 5})})
    table = atlas_table(name, toy)
    assert "no verdict" in table.title and table.outcome == "no verdict: toy atlas"
    alone = type(toy)("alone", "abc", False, {"iemocap": as_published("iemocap")}, {})
    assert "measured beside published" in atlas_table(name, alone).title and atlas_table(name, alone).sheets[0].rows


@pytest.mark.parametrize("name", DESCRIPTIVE)
def test_every_table_is_a_document_of_all_formats(name):
    document = atlas_table(name, FULL).document()
    assert re.match(r"(Table|Figure) \d+, measured beside published: ", document.title)
    stated = json.loads(document.json)
    assert stated["table"] == name and [len(sheet["rows"]) for sheet in stated["sheets"]] == [len(sheet.rows) for sheet in document.sheets]
    assert all(len(row) == len(sheet.header) for sheet in document.sheets for row in sheet.rows)

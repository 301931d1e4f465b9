"""The sheets beside the scores: each is there where it has something to say, and says what the scores say."""

from __future__ import annotations

import dataclasses

import pytest

from hba_ray.evaluation.metrics import ScaleScore
from hba_ray.evaluation.pairs import PairScore
from hba_ray.evaluation.published import published_score
from hba_ray.evaluation.scores import DatasetScore, Scores
from hba_ray.report.model import Report, RunFacts
from hba_ray.report.tables import measure_sheets, read_json, render_json, render_markdown
from tests.evaluation.test_statistics import TABLE_14
from tests.report.test_tables import FACTS, REPORT, table

JUDGED = DatasetScore("siq2", "SOC", "judge_accuracy", 0.5, 10, 10, None, None, 0.257, (), (0.25, 0.75), 8, exact_match=0.1, unreadable=2)
SENTIMENT = DatasetScore(
    *("mosei_senti", "SEN", "binary_weighted_f1", 0.7, 10, 8, None, None, 0.744, (), (0.6, 0.8), 5, 0.125),
    scales=(ScaleScore(7, 10, 0.3, 0.25), ScaleScore(2, 8, 0.75, 0.7)),
)
PAIRS = (
    PairScore("sft", "sft+bam", "mosei_senti", "binary_weighted_f1", 10, 5, -0.02, (-0.1, 0.06), 0.5, 0.1, 1.0),
    PairScore("sft", "sft+bam", "siq2", "judge_accuracy", 10, 8, 0.3, (0.1, 0.5), 0.0004, 0.2, 0.0008),
)
WHOLE = Report("Two", {"sft": Scores((SENTIMENT, JUDGED), ())}, FACTS, comparisons=PAIRS)


def rows(report: Report, title: str) -> list[dict[str, str]]:
    return table(render_markdown(report), title)


def test_a_sheet_without_rows_is_left_out():
    bare = Report("Bare", {"sft": Scores((), ())}, dataclasses.replace(FACTS, rows_used={}))
    assert measure_sheets(bare) == ()
    assert {sheet.title for sheet in measure_sheets(REPORT)} == {"Size and score"}


def test_judged_answers_show_their_interval_the_unreadable_and_exact_match():
    (row,) = rows(WHOLE, "Open answers")
    assert (row["Judge"], row["95% interval"], row["Unreadable"], row["Exact match"]) == ("0.500", "0.250 to 0.750", "2", "0.100")
    assert "†" not in render_markdown(WHOLE), "judged answers may be set beside the paper's"


def test_sentiment_is_shown_on_every_scale_with_its_calibration():
    assert [(row["Classes"], row["Accuracy"], row["Weighted F1"]) for row in rows(WHOLE, "Sentiment scales")] == [
        ("7", "0.300", "0.250"),
        ("2", "0.750", "0.700"),
    ]
    assert [row["Calibration error"] for row in rows(WHOLE, "Calibration")] == ["0.125"]


def test_differences_of_arms_show_sign_interval_and_both_p_values():
    first, second = rows(WHOLE, "Differences between arms")
    assert (first["Difference"], first["95% interval"], first["p"], first["Holm"]) == ("-0.020", "-0.100 to +0.060", "0.500", "1.000")
    assert (second["Arm"], second["Against"], second["p"]) == ("sft+bam", "sft", "&lt;0.001")


def test_all_of_it_survives_json():
    assert read_json(render_json(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    ("model", "published"), [("OmniSapiens-7B SFT", "-0.135"), ("OmniSapiens-7B RL", "-0.480"), ("OmniSapiens-7B BAM", "-0.342")]
)
def test_the_published_scores_give_the_correlations_of_table_15(model, published):
    used = {dataset: {"train": rows} for dataset, rows in TABLE_14.items()}
    facts: RunFacts = dataclasses.replace(FACTS, rows_used=used)
    found = tuple(DatasetScore(name, "EMO", "m", published_score(model, name), 1, 1, None, None, None, ()) for name in TABLE_14)
    (row,) = rows(Report("Table 15", {"arm": Scores(found, ())}, facts), "Does size decide the score?")
    assert (row["Datasets"], row["Spearman as in Table 15"]) == ("16", published)
    ranks = {row["Dataset"]: row["Rank by rows"] for row in rows(Report("Table 14", {"arm": Scores(found, ())}, facts), "Size and score")}
    assert (ranks["mosei_senti"], ranks["meld_emotion"], ranks["meld_senti"], ranks["daicwoz"]) == ("1", "3", "3", "16")


def test_both_rules_of_matching_are_shown_where_they_differ():
    read = dataclasses.replace(SENTIMENT, other_matching=0.4)
    same = dataclasses.replace(SENTIMENT, dataset="chsimsv2", other_matching=0.7)
    report = Report("Read", {"grpo": Scores((read, same), ())}, FACTS)
    (row,) = rows(report, "Classes read from responses")
    assert (row["Dataset"], row["Arm"], row["Score"], row["By the other rule"]) == ("mosei_senti", "grpo", "0.700", "0.400")
    assert "Classes read from responses" not in render_markdown(WHOLE)

"""What is counted of an atlas, and what the paper counts: lines of its tables, rows that are counted once, clips by their length."""

import pytest

from hba_ray.data.tasks import SPLITS, TOTAL_ROWS
from hba_ray.evaluation.survey import DatasetSurvey, Lengths, shared_lines
from tests.helpers.surveys import as_published, published_survey, with_rows


def test_the_lines_of_table_7_add_up_to_its_last_line():
    survey = published_survey()
    entries = survey.entries()
    assert len(entries) == 15 and [entry.title for entry in entries][-3:] == ["DAIC-WOZ", "MMPsy", "PTSD-in-the-Wild"]
    for split, total in zip(SPLITS, TOTAL_ROWS, strict=True):
        assert sum(entry.published(split) or 0 for entry in entries) == total == survey.total(split)
    assert survey.total() == sum(entry.published() or 0 for entry in entries) == 101_964


def test_the_lines_of_table_2_have_its_samples_and_modalities():
    survey = published_survey()
    found = {title: (sum(survey.rows(entry) or 0 for entry in its), survey.letters(its)) for title, its in survey.corpora()}
    assert found["CMU-MOSEI"] == (31_454, "T A V") and found["MELD"] == (27_412, "T A V") and found["TESS"] == (2_800, "T A")
    assert found["MMPsy"] == (1_275, "T") and found["DAIC-WOZ"] == (189, "T A") and len(found) == 13


def test_rows_outside_the_benchmark_are_lines_of_their_own_and_in_no_sum():
    survey = published_survey(iemocap=as_published("iemocap"))
    assert survey.entries()[-1].title == "IEMOCAP" and survey.rows(survey.entries()[-1]) == 7
    assert survey.entries()[-1].published() is None and survey.total() == 101_964
    toy = published_survey(is_toy=True, toy_tone=DatasetSurvey({"train": 5}))
    assert toy.total() == toy.total("train") == 5


def test_a_dataset_that_is_not_there_is_missing_and_a_split_without_rows_has_none():
    survey = published_survey()
    held = dict(survey.datasets)
    del held["mmsd"]
    survey = type(survey)(survey.name, survey.fingerprint, False, held)
    rows = {entry.title: survey.rows(entry, "validation") for entry in survey.entries()}
    assert rows["MUStARD"] is None and rows["MimeQA"] == 0 and survey.clips() is None


def test_of_a_corpus_whose_tasks_share_rows_the_larger_count_stands():
    survey = with_rows(published_survey(), "mmpsy_anxiety", train=890)
    (mmpsy,) = [entry for entry in survey.entries() if entry.title == "MMPsy"]
    assert survey.rows(mmpsy, "train") == 893 and survey.total() == 101_964
    survey = with_rows(with_rows(survey, "mmpsy_depression", train=880), "mmpsy_anxiety", train=890, validation=180)
    assert survey.rows(mmpsy, "train") == 890 and survey.rows(mmpsy) == sum(survey.rows(mmpsy, split) or 0 for split in SPLITS)
    assert survey.total() == sum(map(survey.total, SPLITS))


@pytest.mark.parametrize(
    ("seconds", "bins"),
    [(0.0, 0), (5.0, 0), (5.01, 1), (10.0, 1), (20.0, 2), (20.01, 3), (60.0, 3), (300.0, 4), (300.5, 5)],
)
def test_a_clip_at_the_end_of_a_class_of_length_is_in_it(seconds, bins):
    lengths = Lengths(1, 0, (seconds,))
    assert lengths.bins.index(1) == bins and sum(lengths.bins) == 1
    assert lengths.long == (seconds > 20)


def test_clips_of_corpora_that_are_counted_are_taken_together():
    clips = published_survey().clips()
    assert clips == Lengths(2, 1, (4.0, 30.0, 2.0), {"corrupt audio": 1}) and clips.long == 1


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        (["<audio>\nOh.\nHow?", "<audio>\nNo\nno.\nHow?"], ("<audio>", "…", "How?")),
        (["a\nHow?", "b\nHow?"], ("…", "How?")),
        (["same\nlines", "same\nlines"], ("same", "lines")),
        (["How?", "How?\nHow?"], ("How?", "…")),
        (["x", "y"], ("…",)),
        (["alone"], ("alone",)),
        ([], ()),
    ],
)
def test_prompts_share_whole_lines_at_their_start_and_end(prompts, shared):
    assert shared_lines(prompts) == shared

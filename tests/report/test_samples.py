"""Rows to read: right by text or by judge, and a fair choice where there are too many."""

import pyarrow as pa

from hba_ray.evaluation.pairs import ArmRows
from hba_ray.report.samples import PER_DATASET, Clip, samples
from hba_ray.report.sections import browser
from tests.helpers.answers import table, two_arms

ROWS = [("toy_words", "w1", "sarcasm", "sarcasm", "Meant so?")]


def test_every_row_has_its_truth_and_what_each_arm_said():
    found = samples(two_arms(), {("toy_words", "w1"): (Clip("audio", "a.wav"),)})
    assert found.arms == ("sft", "grpo") and found.total == 3 and not found.notes
    rows = {sample.sample_id: sample for sample in found.rows}
    assert [(answer.text, answer.is_right, answer.probability) for answer in rows["w2"].answers] == [
        ("sarcasm", False, 0.75),
        ("not sarcasm", True, 0.75),
    ]
    assert rows["a1"].answers[1].is_right, "case does not count in open answers"
    assert rows["w1"].clips and rows["w2"].clips is None


def test_a_response_that_could_not_be_read_is_shown_with_how_it_ended():
    rows = [{**record, "predicted": None, "response": "no such class", "cut": True} for record in table(ROWS).to_pylist()]
    (sample,) = samples([ArmRows("grpo", pa.Table.from_pylist(rows)), ArmRows("sft", table(ROWS))], {}).rows
    unread, read = sample.answers
    assert (unread.text, unread.response, unread.is_cut) == (None, "no such class", True)
    assert (read.text, read.response, read.is_cut) == ("sarcasm", None, False)
    said, _ = browser(samples([ArmRows("grpo", pa.Table.from_pylist(rows)), ArmRows("sft", table(ROWS))], {})).rows[0].said
    assert (said.words, said.response, said.is_cut) == (None, "no such class", True)


def test_a_judge_says_what_is_right_and_unreadable_is_not():
    first, second = two_arms()
    judged = [
        ArmRows("sft", first.predictions, {("toy_answers", "a1"): True}),
        ArmRows("grpo", second.predictions, {("toy_answers", "a1"): None}),
    ]
    (row,) = [sample for sample in samples(judged, {}).rows if sample.dataset == "toy_answers"]
    assert [answer.is_right for answer in row.answers] == [True, False]


def test_of_many_rows_half_are_wrong_ones_and_those_with_clips_come_first():
    rows = [("toy_words", f"w{place:04d}", "sarcasm", "not sarcasm" if place % 50 == 49 else "sarcasm", None) for place in range(1000)]
    clips = {("toy_words", f"w{place:04d}"): () for place in range(40)}
    found = samples([ArmRows("sft", table(rows))], clips)
    assert len(found.rows) == PER_DATASET and found.total == 1000 and "60 of 1000 rows" in found.notes[0]
    names = [sample.sample_id for sample in found.rows]
    assert names == sorted(set(names))
    assert sum(not sample.answers[0].is_right for sample in found.rows) == 20, "all that there are"
    assert sum(sample.clips is not None for sample in found.rows) >= PER_DATASET // 2
    assert found == samples([ArmRows("sft", table(rows[::-1]))], clips), "the order of a table changes nothing"


def test_rows_of_sensitive_datasets_are_counted_and_shown_only_where_that_is_asked_for():
    rows = [*ROWS, ("daicwoz", "300", "depression", "depression", "She said so. Depressed?")]
    found = samples([ArmRows("sft", table(rows))], {})
    assert [sample.dataset for sample in found.rows] == ["toy_words"] and found.total == 1
    assert found.notes == ("Not shown, since texts are of patients or minors: 1 rows of daicwoz.",)
    asked = samples([ArmRows("sft", table(rows))], {}, show_sensitive=True)
    assert {sample.question for sample in asked.rows} == {"Meant so?", "She said so. Depressed?"} and not asked.notes

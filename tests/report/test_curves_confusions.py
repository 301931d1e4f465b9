"""Confusion: counts by truth and answer, the unreadable ones apart, open answers left out."""

from hba_ray.evaluation.pairs import ArmRows
from hba_ray.report.curves import confusions
from tests.helpers.answers import table, two_arms


def test_every_class_dataset_of_every_arm_is_counted_and_open_answers_are_not():
    found = confusions(two_arms())
    assert [(one.dataset, one.arm) for one in found] == [("toy_words", "sft"), ("toy_words", "grpo")]
    assert found[0].labels == ("not sarcasm", "sarcasm")
    assert found[0].counts == ((0, 1, 0), (0, 1, 0)) and found[1].counts == ((1, 0, 0), (0, 1, 0))


def test_an_answer_that_is_no_class_is_in_the_last_column():
    (one,) = confusions(
        [ArmRows("sft", table([("toy_words", "w1", "sarcasm", "perhaps", None), ("toy_words", "w2", "sarcasm", None, None)]))]
    )
    assert one.counts == ((0, 0, 0), (0, 0, 2))

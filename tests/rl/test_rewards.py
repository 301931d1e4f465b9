"""Rewards against a table of hand-made responses, hostile ones included; every part has its name."""

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hba_ray.errors import DataError
from hba_ray.rl.rewards import Response, compute_score, format_score, overlong_penalty, score_responses
from hba_ray.specs import RewardSpec

PLAIN = RewardSpec(similarity_weight=0)
THOUGHT, BOX = "<think>The voice rises.</think>", r"\boxed{happy}"


class FixedEncoder:
    """Says 1 for equal texts, else one value; notes what it was asked."""

    def __init__(self, otherwise: float):
        self.otherwise, self.asked = otherwise, []

    def similarities(self, pairs):
        self.asked.append(list(pairs))
        return [1.0 if first == second else self.otherwise for first, second in pairs]


def score(text: str, spec: RewardSpec = PLAIN, *, target: str = "happy", dataset: str = "tess", otherwise: float = 0.25) -> dict[str, Any]:
    return score_responses([Response(dataset, text, target)], spec, FixedEncoder(otherwise))[0]  # type: ignore[arg-type]


TABLE = [
    # response, accuracy, format by halves, format all or nothing
    (THOUGHT + BOX, 1, 1, 1),
    (THOUGHT + "\nSo: " + BOX + " is it.", 1, 1, 1),
    (THOUGHT + r"\boxed{ HAPPY }", 1, 1, 1),
    (THOUGHT + r"\boxed{\text{Happy}}", 1, 1, 1),
    (THOUGHT + r"\boxed{sad}", 0, 1, 1),
    (THOUGHT + "happy", 0, 0.5, 0),
    (BOX, 1, 0.5, 0),
    (BOX + THOUGHT, 1, 1, 0),
    ("Well. " + THOUGHT + BOX, 1, 1, 0),
    ("< think > so < / think >" + BOX, 1, 0.5, 1),
    ("<think></think>" + BOX, 1, 0.5, 1),
    ("<think> \n </think>" + BOX, 1, 0.5, 1),
    (THOUGHT + r"\boxed{}", 0, 0.5, 1),
    (THOUGHT + r"\boxed{ }", 0, 0.5, 1),
    ("<think>no end" + BOX, 1, 0.5, 0),
    ("no start</think>" + BOX, 1, 0.5, 0),
    ("</think><think>" + BOX, 1, 0.5, 0),
    (THOUGHT + r"\boxed{happy", 0, 0.5, 0),
    (THOUGHT + r"\boxed{sad} \boxed{happy}", 1, 1, 1),
    (THOUGHT + r"\boxed{happy} \boxed{sad}", 0, 1, 1),
    (THOUGHT + r"\boxed{happy, sad, anger}", 0, 1, 1),
    (THOUGHT + r"\boxed{\boxed{happy}}", 1, 1, 1),
    (THOUGHT + r"\boxed{un \boxed{happy}", 1, 1, 1),
    ("<THINK>x</THINK>" + BOX, 1, 0.5, 0),
    ("<think><think>x</think></think>" + BOX, 1, 1, 1),
    ("<think>" + BOX + "</think>", 1, 1, 0),
    ("happy", 0, 0, 0),
    ("", 0, 0, 0),
    ("\x00\ufffd\ud83d", 0, 0, 0),
]


@pytest.mark.parametrize(("text", "accuracy", "split", "whole"), TABLE)
def test_a_response_earns_what_the_table_says(text: str, accuracy: float, split: float, whole: float):
    parts = score(text)
    assert (parts["acc"], parts["format"]) == (accuracy, split)
    assert parts["score"] == pytest.approx(accuracy + 0.2 * split)
    assert score(text, RewardSpec(similarity_weight=0, format_rule="all_or_nothing"))["format"] == whole


def test_the_three_parts_add_up_as_in_equation_5():
    assert score(THOUGHT + BOX, RewardSpec())["score"] == pytest.approx(1.7)
    parts = score(THOUGHT + r"\boxed{glad}", RewardSpec())
    assert (parts["acc"], parts["format"], parts["similarity"]) == (0, 1, 0.25)
    assert parts["score"] == pytest.approx(0.2 + 0.5 * 0.25)


def test_weights_are_those_of_the_spec():
    spec = RewardSpec(accuracy_weight=2, format_weight=0.5, similarity_weight=0.1)
    assert score(THOUGHT + BOX, spec)["score"] == pytest.approx(2.6)


def test_no_answer_is_like_nothing():
    assert score("happy", RewardSpec())["similarity"] == 0
    assert score(THOUGHT + r"\boxed{}", RewardSpec())["similarity"] == 0


def test_a_negative_cosine_costs_unless_it_is_clipped():
    wrong = THOUGHT + r"\boxed{table}"
    assert score(wrong, RewardSpec(), otherwise=-0.5)["score"] == pytest.approx(0.2 - 0.25)
    assert score(wrong, RewardSpec(similarity_range="clipped"), otherwise=-0.5)["score"] == pytest.approx(0.2)


def test_the_chain_pays_an_answer_without_a_box():
    released = RewardSpec(answer_from="chain", format_rule="all_or_nothing", similarity_range="clipped")
    assert score("It is [happy].", released)["score"] == pytest.approx(1.5)
    assert score("Happy", released)["acc"] == 1


def test_similarity_compares_answers_in_one_case_and_all_at_once():
    encoder = FixedEncoder(0.5)
    responses = [
        Response("tess", r"\boxed{Happy }", "HAPPY"),
        Response("tess", "none", "sad"),
        Response("siq2", r"\boxed{She Waits}", "She left"),
    ]
    scored = score_responses(responses, RewardSpec(), encoder)  # type: ignore[arg-type]
    assert encoder.asked == [[("happy", "happy"), ("she waits", "she left")]]
    assert [parts["similarity"] for parts in scored] == [1, 0, 0.5]


@pytest.mark.parametrize("spec", [RewardSpec(), PLAIN, RewardSpec(formula="harpo")])
def test_all_responses_have_the_same_parts_and_logs_can_take_them(spec: RewardSpec):
    texts = [THOUGHT + BOX, "", "x" * 2000]
    scored = [score(text, spec, dataset=dataset) for text in texts for dataset in ("tess", "siq2", "toy_words")]
    assert len({tuple(parts) for parts in scored}) == 1
    assert all(math.isfinite(value) for parts in scored for value in parts.values())


def test_without_weight_similarity_is_no_part_and_nothing_is_encoded():
    assert "similarity" not in score(THOUGHT + BOX)


def test_harpos_formula_pays_classes_by_match_and_open_answers_by_similarity():
    spec = RewardSpec(formula="harpo")
    assert score(THOUGHT + BOX, spec)["score"] == pytest.approx(1.0)
    assert score(THOUGHT + r"\boxed{sad}", spec)["score"] == pytest.approx(0.2)
    assert score(THOUGHT + r"\boxed{sad}", spec, dataset="siq2")["score"] == pytest.approx(0.8 * 0.625 + 0.2)
    assert score("sad", spec, dataset="siq2")["score"] == 0
    assert score(THOUGHT + BOX + " " * 1000, spec)["score"] == pytest.approx(1.0 - 0.75)


@given(st.integers(0, 5000))
def test_harpos_penalty_lies_between_0_and_minus_1_and_never_rises(length: int):
    assert -1 <= overlong_penalty(length + 1) <= overlong_penalty(length) <= 0


def test_an_unknown_dataset_is_refused_with_the_nearest():
    with pytest.raises(DataError, match="unknown dataset 'tes'\n  did you mean 'tess'"):
        score(BOX, dataset="tes")


def test_verl_hands_its_settings_over_as_it_likes():
    for reward in (PLAIN, PLAIN.model_dump(), OmegaConf.create(PLAIN.model_dump(mode="json"))):
        parts = compute_score("toy_tone", THOUGHT + BOX, "happy", {"num_turns": 1}, reward=reward)
        assert parts == {"score": 1.2, "acc": 1, "format": 1}


PIECES = st.sampled_from(["<think>", "</think>", "\\boxed{", "}", " ", "\n", "happy", "<", "/"])


@given(st.lists(PIECES, max_size=14).map("".join), st.sampled_from(["split", "all_or_nothing"]))
def test_any_format_is_worth_nothing_a_half_or_one(text: str, rule: str):
    assert format_score(text, rule) in ((0, 0.5, 1) if rule == "split" else (0, 1))


@given(st.text(), st.text())
def test_any_response_to_any_target_is_scored(text: str, target: str):
    assert 0 <= score(text, RewardSpec(), target=target)["score"] <= 1.7


@pytest.mark.parametrize("piece", ["<think>", "</think>", "\\boxed{", " ", "< ", "<think></think>\\boxed{"])
def test_very_long_responses_take_linear_time(piece: str):
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    for rule in ("split", "all_or_nothing"):
        score(text, RewardSpec(similarity_weight=0, format_rule=rule, answer_from="chain"))
    assert time.process_time() - started < 20

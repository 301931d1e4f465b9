"""Prompt files are checked field by field, and a verdict is read where one is stated, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.errors import DataError, SpecError
from hba_ray.judge.prompts import BUILT_IN, OPEN_TASKS, load_prompts, read_verdict

GOOD = {"user": "{question} {reference} {answer}", "rubrics": dict.fromkeys(OPEN_TASKS, "Be strict.")}


@pytest.mark.parametrize("name", BUILT_IN)
def test_our_prompts_have_a_rubric_for_each_open_task(name: str):
    prompts = load_prompts(name)
    texts = [prompts.system(task, reply) for task in OPEN_TASKS for reply in ("schema", "text")]
    assert OPEN_TASKS == ("SOC", "INT", "NVC") and len(set(texts)) == 6
    shown = prompts.user.format(question="QQ {answer}", reference="RR", answer="AA")
    assert "QQ {answer}" in shown and "RR" in shown and shown.count("AA") == 1


def test_the_two_sets_share_no_sentence():
    words = [{line.strip() for text in load_prompts(name).rubrics.values() for line in text.split(".")} for name in BUILT_IN]
    assert not words[0] & words[1] - {""}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user": "{question} {answer}"}, "it needs {question}, {reference} and {answer}"),
        ({"user": "{question} {reference} {answer} {answer}"}, "once each"),
        ({"user": "{question} {reference} {answer} {0.real}"}, "once each"),
        ({"user": "{question} {reference} {answer} {"}, "user"),
        ({"user": None}, "user"),
        ({"user": "<|im_end|>{question} {reference} {answer}"}, "control token"),
        ({"rubrics": dict.fromkeys(OPEN_TASKS, "Be strict.</s>")}, "control token"),
        ({"rubrics": {"SOC": "x", "INT": "x"}}, "lacking ['NVC']"),
        ({"rubrics": dict.fromkeys(OPEN_TASKS, " ")}, "lacking"),
        ({"rubrics": {**GOOD["rubrics"], "HUM": "x"}}, "unknown ['HUM']"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_file_without_its_fields_is_refused(change: dict, says: str, tmp_path: Path):
    file = tmp_path / "prompts.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert load_prompts(str(file)).rubrics["SOC"] == "Be strict."
    file.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(SpecError) as raised:
        load_prompts(str(file))
    assert says in str(raised.value) and str(file) in str(raised.value)


@pytest.mark.parametrize("text", ["", "- a\n- b", "user: [", "\x00", "just text"])
def test_a_file_that_is_no_prompts_file_is_refused(text: str, tmp_path: Path):
    file = tmp_path / "prompts.yaml"
    file.write_text(text)
    with pytest.raises(SpecError):
        load_prompts(str(file))


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"explanation": "", "correct": true}', True),
        ('```json\n{"correct": false, "explanation": "x"}\n```', False),
        ("TRUE", True),
        ("false.", False),
        ("It fits.\n\n**TRUE**\n", True),
        ("Final verdict: FALSE", False),
        ("<think>FALSE\nno, wait</think>\nTRUE", True),
        ("FALSE</think>\nTRUE", True),
    ],
)
def test_a_stated_verdict_is_read(reply: str, verdict: bool):
    assert read_verdict(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        (" \n", "empty reply"),
        ("It is true that she smiles.", "no verdict"),
        ("TRUE or FALSE", "no verdict"),
        ("not TRUE", "no verdict"),
        ("TRUE\nFALSE", "both verdicts"),
        ('{"correct": "maybe"}', "no verdict"),
        ('{"correct": 1}', "no verdict"),
        ('{"explanation": "so", "corr', "no verdict"),
        ("<think>it is\nTRUE", "cut off"),
    ],
)
def test_an_unstated_verdict_is_not_guessed(reply: str, reason: str):
    with pytest.raises(DataError) as raised:
        read_verdict(reply)
    assert raised.value.reason == reason


@given(st.text(max_size=80))
def test_any_text_is_a_verdict_or_a_countable_defect(reply: str):
    try:
        assert read_verdict(reply) in (True, False)
    except DataError as unreadable:
        assert unreadable.reason in ("empty reply", "cut off", "no verdict", "both verdicts")


@given(st.text(max_size=40), st.booleans())
def test_the_explanation_never_decides(explanation: str, correct: bool):
    assert read_verdict(json.dumps({"explanation": explanation, "correct": correct})) is correct

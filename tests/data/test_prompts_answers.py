"""The answer in a response: boxes nested, several, unclosed or absent, and texts made to take long; and the label that it is."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.prompts import boxed, close_up_signs, read_answer, read_class, read_label, released_answer
from hba_ray.data.tasks import DATASETS

BOXES = [
    (r"\boxed{happy}", "happy"),
    (r"<think>sad?</think>\boxed{ happy }", "happy"),
    (r"\boxed {happy}", "happy"),
    ("\\boxed\n{happy}", "happy"),
    (r"\\boxed{happy}", "happy"),
    (r"\boxed{sad} or rather \boxed{happy}", "happy"),
    (r"\boxed{happy} and \boxed{never closed", "happy"),
    (r"\boxed{never closed, \boxed{happy}", "happy"),
    (r"\boxed{\boxed{happy}}", "happy"),
    (r"\boxed{\text{happy}}", "happy"),
    (r"\boxed{ \textbf{ \text{happy} } }", "happy"),
    (r"\boxed{\text{very} happy}", r"\text{very} happy"),
    (r"\boxed{one {two} three}", "one {two} three"),
    (r"\boxed{a \boxed{b}}", r"a \boxed{b}"),
    (r"\boxed{\text{a}\text{b}}", r"\text{a}\text{b}"),
    (r"\boxed{open \{ only}", r"open \{ only"),
    (r"} \boxed{happy}", "happy"),
    (r"{ \boxed{happy}", "happy"),
    (r"\boxed{}", ""),
    (r"\boxed{  }", ""),
    ("\\boxed{two\nlines}", "two\nlines"),
    (r"\boxed{高兴}", "高兴"),
    (r"\boxed{happy", None),
    (r"\boxed{an {inner happy}", None),
    (r"\boxed happy", None),
    (r"boxed{happy}", None),
    (r"\Boxed{happy}", None),
    ("happy", None),
    ("", None),
    ("{}", None),
]


@pytest.mark.parametrize(("response", "answer"), BOXES)
def test_a_box_is_read(response: str, answer: str | None):
    assert boxed(response) == answer
    assert read_answer(response) == answer


CHAIN = [
    (r"\boxed{ happy }", "happy"),
    (r"\boxed{happy} \boxed{sad}", "happy"),
    (r"\boxed{\text{happy}}", r"\text{happy"),
    (r"[sad] \boxed{happy}", "happy"),
    (r"It is [sad] or [happy]", "sad"),
    ("[not\nin one line] but [this]", "this"),
    ("< answer > happy < / answer >", "happy"),
    ("<answer>happy</answer> [sad]", "sad"),
    (r"\boxed{unclosed [happy]", "happy"),
    ("  just happy ", "just happy"),
    ("yes / no", "yes/no"),
    (r"\boxed{}", ""),
    ("", ""),
]


@pytest.mark.parametrize(("response", "answer"), CHAIN)
def test_the_released_chain_is_followed(response: str, answer: str):
    assert read_answer(response, "chain") == answer


def by_regular_expressions(text: str) -> str:
    """A plain transcription of the released reading, which takes quadratic time."""
    text = re.sub(r"\s*(<|>|/)\s*", r"\1", text)
    for pattern in (r"\\boxed{([^}]*)}", r"\[(.*?)\]", r"<answer>(.*?)</answer>"):
        if found := re.search(pattern, text):
            return found.group(1).strip()
    return text.strip()


PIECES = st.sampled_from(["\\boxed{", "}", "{", "[", "]", "<answer>", "</answer>", "<", ">", "/", " ", "\n", "happy", "\\text{"])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_chain_reads_as_the_released_expressions_do(text: str):
    assert released_answer(text) == by_regular_expressions(text)


@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_box_put_last_is_what_is_read(text: str):
    assert boxed(text.replace("\\text{", "").replace("{", "") + r" \boxed{sad}") == "sad"


@given(st.text())
def test_any_text_is_read(text: str):
    assert boxed(text) is None or isinstance(boxed(text), str)
    assert isinstance(released_answer(text), str)
    assert re.sub(r"\s", "", close_up_signs(text)) == re.sub(r"\s", "", text)


HOSTILE = ["\\boxed{", "{", "}", "\\boxed{}", "[", "<answer>", "<think>", " ", "\\boxed ", "\\text{", "\\boxed{\\text{", "\n[", "/ "]


@pytest.mark.parametrize("piece", HOSTILE)
def test_very_long_texts_take_linear_time(piece: str):
    text = piece * (2_000_000 // len(piece))
    started = time.process_time()
    for hostile in (text, text + "}" * 200_000):
        boxed(hostile)
        released_answer(hostile)
    assert time.process_time() - started < 20  # a quadratic reading would take hours


@pytest.mark.parametrize(
    ("answer", "dataset", "label"),
    [
        ("Happy", "cremad", "happy"),
        ("  **joy**.\n", "meld_emotion", "happy"),
        ("'Sarcastic'", "mmsd", "sarcasm"),
        ("not sarcastic", "mmsd", "not sarcasm"),
        ("calm", "cremad", None),
        ("I think that it is happy", "cremad", None),
        ("", "cremad", None),
        ("�\x00", "cremad", None),
        ("happy", "mimeqa", None),
    ],
)
def test_an_answer_is_a_label_of_its_own_dataset_or_none(answer: str, dataset: str, label: str | None):
    assert read_label(answer, DATASETS[dataset]) == label


@pytest.mark.parametrize(
    ("response", "lenient", "exact"),
    [
        (r"\boxed{Sad}", "sad", "sad"),
        (r"\boxed{ Sad }", "sad", None),
        ("**Joy.**", "happy", None),
        ("happy", "happy", "happy"),
        ("[HAPPY] or not", "happy", "happy"),
        ("happy\n", "happy", None),
        ("I think happy", None, None),
    ],
)
def test_a_class_is_read_leniently_or_exactly(response: str, lenient: str | None, exact: str | None):
    meld = DATASETS["meld_emotion"]
    assert read_class(response, meld, "chain") == lenient
    assert read_class(response, meld, "chain", matching="exact") == exact


def test_an_exact_reading_takes_the_box_alone_where_the_spec_says_so():
    meld = DATASETS["meld_emotion"]
    assert read_class("happy", meld, "boxed", matching="exact") is None
    assert read_class(r"so \boxed{Happy}", meld, "boxed", matching="exact") == "happy"
    assert read_class("happy", DATASETS["mimeqa"], "chain", matching="exact") is None
    split = {"matching": "exact", "split_surprise": True}
    assert read_class("positive surprise", meld, "chain", **split) == "positive surprise"
    assert read_class("positive surprise", meld, "chain", matching="exact") is None


def test_split_surprise_is_read_where_the_atlas_tells_them_apart():
    surprise = "Pleasant surprise"
    assert read_label(surprise, DATASETS["meld_emotion"]) == "surprise"
    assert read_label(surprise, DATASETS["meld_emotion"], split_surprise=True) == "positive surprise"

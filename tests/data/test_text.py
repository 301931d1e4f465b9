"""Text is text: for every tokenizer, in every normal form, and when it is compared."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.prompts import ReasoningPrompt, plain_text, read_label
from hba_ray.data.tasks import DATASETS
from hba_ray.data.text import C1, CONTROL, FORM, TOKEN, break_tokens, clean, comparable, control_token, visible
from tests.helpers.hostile_rows import CONTROL_TOKENS, texts


@pytest.mark.parametrize(
    ("text", "cleaned", "changes"),
    [
        ("It\x92s fine \x96 really\x85", "It’s fine – really…", [C1]),
        ("a\x81b", "ab", [C1]),
        ("a\0b\x0cc\x7f", "ab c", [CONTROL]),
        ("cafe\u0301", "café", [FORM]),
        ("She typed <|AUDIO|>.", "She typed < |AUDIO|>.", [TOKEN]),
        ("<|im\0_end|>", "< |im_end|>", [CONTROL, TOKEN]),
        ("a\tb\r\nc\n", "a\tb\r\nc\n", []),
        ("<audio>\n1 < 2 | 3 > 2, a <b> c, <think>", "<audio>\n1 < 2 | 3 > 2, a <b> c, <think>", []),
        ("naïve 开心 😀\u200d\u200b", "naïve 开心 😀\u200d\u200b", []),
    ],
)
def test_what_happens_to_text_at_the_door(text: str, cleaned: str, changes: list[str]):
    assert clean(text) == (cleaned, changes)


@given(texts())
def test_clean_text_is_clean_and_says_so_only_where_it_was_not(text: str):
    cleaned, changes = clean(text)
    assert clean(cleaned) == (cleaned, [])
    assert bool(changes) == (cleaned != text)
    assert unicodedata.is_normalized("NFC", cleaned) and control_token(cleaned) is None


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_a_token_of_any_family_is_broken_and_can_still_be_read(token: str):
    assert control_token(token) is not None
    assert break_tokens(f"a{token}b").replace(" ", "") == f"a{token}b"


def test_no_special_token_of_a_backbone_survives(tiny_backbone):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    assert len(special) >= 14
    for token in special.values():
        assert special.keys() & set(tokenizer(f"say {token} now")["input_ids"])
        for text in (f"say {token} now", f"{token[:4]}\0{token[4:]}", token * 3):
            assert not special.keys() & set(tokenizer(clean(text)[0])["input_ids"]), token


@given(texts())
def test_comparing_twice_changes_nothing(text: str):
    assert comparable(comparable(text)) == comparable(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("café", "cafe\u0301"),
        ("ｈａｐｐｙ", "Happy"),
        ("so\u00a0sad", "so  sad"),
        ("ha\u200bppy\ufeff", "happy"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("a\n b", "a b"),
    ],
)
def test_answers_that_look_the_same_are_the_same(one: str, other: str):
    assert plain_text(one) == plain_text(other)
    assert plain_text(one) != plain_text(f"{other} not")


def test_labels_are_compared_by_the_same_rule():
    meld = DATASETS["meld_emotion"]
    assert [read_label(text, meld) for text in ("**ｊｏｙ**\u200b", "Sad\u00a0", "sad\u0301")] == ["happy", "sad", None]


@given(st.text(max_size=300))
def test_what_is_shown_can_be_printed_and_is_bounded(text: str):
    shown = visible(text)
    shown.encode()
    assert all(letter == " " or letter.isprintable() for letter in shown) and len(shown) <= 2001


def test_a_template_with_a_control_token_is_refused():
    template = "<|im_end|>{problem} <think> </think> \\boxed"
    with pytest.raises(ValueError, match=r"holds <\|im_end\|>, which tokenizers take"):
        ReasoningPrompt(template=template)
    assert ReasoningPrompt(template=template.replace("<|im_end|>", "")).template

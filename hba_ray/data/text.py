"""What happens to text at the door of an atlas, and how two texts are compared.

At the door (`clean`, which every row passes in `rows.parse_row`):

    C1 characters       U+0080 to U+009F come from cp1252 that was read as Latin-1; they become what was meant (’ for U+0092).
                        The five that cp1252 does not define are taken out.
    control characters  Those below U+0020 and U+007F are taken out, but for tab and line ends; those that separate become a space.
    normal form         The text is brought into Unicode's normal form C: é is one character, whoever typed it.
    control tokens      Words that a tokenizer takes for something else than text, such as <|im_end|>, get a space behind their
                        first sign, so that every tokenizer reads them as text. What looks like a token of any family is broken,
                        since the rows of one atlas go to many models.

Text without any of these stays as it is, byte for byte. Half a character (a lone surrogate) is no text; its row is refused.

In reading JSON (`parse_json`): an object has each key once, since of two values one would be lost without a word.

In comparing (`comparable`): Unicode's compatibility form (full-width letters and ligatures are their plain ones), one case, no
characters without a width, and one space for any white space, none at the ends.

In telling (`quoted`): an error shows a text that is wrong, but none of a sensitive dataset, of patients or minors
(`tasks.Dataset.sensitive`). Their texts stay in the atlas and in the files of steps (predictions, transcripts, verdicts, GRPO's
rollouts) and of judges (`judge-cache`). What is made from these for people (pages, lists of differences, label sheets, MLflow's
copies) leaves them out: `predictions.without_texts`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

C1, CONTROL, FORM, TOKEN = "C1 characters", "control characters", "normal form", "control tokens"
"""What `clean` says that it changed."""
LONGEST_SHOWN = 200
"""Characters of a text that an error shows."""

_TOKEN_NAMES = (
    r"s|bos|eos|pad|unk|mask|sep|cls|img|image_soft_token|audio_soft_token|IMG_CONTEXT|unused_?\d+|reserved_\d+|extra_id_\d+|tool_call|tool_response"
    r"|sop|eop|eod|boi|eoi|tts_\w{1,16}|video_soft_token|fake_token_around_image|begin_of_(?:image|audio|text|video)"
    r"|(?:start|end)_of_(?:turn|image|audio|text|video)|(?:im|image|audio|video|vision)_(?:start|end|pad|bos|eos)"
)
_TOKENS = re.compile(
    r"<(?=[|｜][^<>|｜]{1,64}[|｜]>)"  # <|im_end|>; DeepSeek's bars are full-width
    r"|<(?=\|\w{1,64}>|\w{1,64}\|>)"  # <|turn>, <turn|>
    rf"|<(?=/?(?:{_TOKEN_NAMES})>)"  # </s>, <start_of_turn>
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|CLS|SEP|MASK|gMASK|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\])",
    re.IGNORECASE,
)
"""The first sign of each control token."""
_SEPARATING = "\x0b\x0c\x1c\x1d\x1e\x1f"
_DROPPED = "".join(letter for letter in map(chr, (*range(0x20), 0x7F)) if letter not in "\t\n\r" + _SEPARATING)
_CONTROL = str.maketrans(dict.fromkeys(_SEPARATING, " ") | dict.fromkeys(_DROPPED, None))
_MEANT = {byte: bytes([byte]).decode("cp1252", errors="ignore") or None for byte in range(0x80, 0xA0)}
"""C1 character -> the character of cp1252 with this number."""
_HAS_CONTROL = re.compile(f"[{re.escape(_DROPPED + _SEPARATING)}]")
_HAS_C1 = re.compile("[\x80-\x9f]")
_NO_WIDTH = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
"""Characters that Unicode calls ignorable and that are not in its category of format characters."""
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
"""Unicode's categories of characters that a reader cannot see."""


def clean(text: str) -> tuple[str, list[str]]:
    """The text as it enters an atlas, and what was changed, of C1, CONTROL, FORM and TOKEN.

    >>> clean("It\\x92s <|im_end|>")
    ('It’s < |im_end|>', ['C1 characters', 'control tokens'])
    """
    if text.isascii() and not _HAS_CONTROL.search(text) and not _TOKENS.search(text):
        return text, []
    changes = []
    for name, change in ((C1, _repair_c1), (CONTROL, _take_out_control), (FORM, _compose), (TOKEN, break_tokens)):
        changed = change(text)
        if changed != text:
            text = changed
            changes.append(name)
    return text, changes


def break_tokens(text: str) -> str:
    """The text with a space behind the first sign of every control token.

    >>> break_tokens("She typed <|AUDIO|> and </s>, and 1 < 2.")
    'She typed < |AUDIO|> and < /s>, and 1 < 2.'
    """
    return _TOKENS.sub(lambda sign: sign.group() + " ", text)


def control_token(text: str) -> str | None:
    """The first control token in a text, about; None where there is none."""
    found = _TOKENS.search(text)
    return None if found is None else re.split(r"(?<=[>\]])", text[found.start() :], maxsplit=1)[0]


def parse_json(text: str | bytes) -> Any:
    """The value that a text of JSON stands for.

    >>> parse_json('{"label": "happy", "label": "sad"}')
    Traceback (most recent call last):
    ValueError: 'label' occurs twice in one object

    Raises:
        ValueError: it is no JSON, or an object of it has a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once)


def comparable(text: str) -> str:
    """A text as it is compared with another.

    >>> comparable(" Ｈappy\\u200b\\u00a0 ending\\n")
    'happy ending'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(letter for letter in _NO_WIDTH.sub("", folded) if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def visible(text: str) -> str:
    """The text for an error: characters that nobody can see are written as escapes, and a long text is cut.

    >>> visible("happy\\u200b")
    'happy\\\\u200b'
    """
    cut = text[:LONGEST_SHOWN]
    shown = "".join(_escaped(letter) if letter != " " and unicodedata.category(letter) in _UNSEEN else letter for letter in cut)
    return shown + ("…" if len(text) > LONGEST_SHOWN else "")


def quoted(text: str, *, is_sensitive: bool = False) -> str:
    """The text as an error quotes it; of a sensitive dataset it is not shown.

    >>> quoted("happy\\u200b"), quoted("my secret", is_sensitive=True)
    ("'happy\\\\u200b'", 'a text of 9 characters')
    """
    return f"a text of {len(text)} characters" if is_sensitive else f"'{visible(text)}'"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return found


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def _repair_c1(text: str) -> str:
    return text.translate(_MEANT) if _HAS_C1.search(text) else text


def _take_out_control(text: str) -> str:
    return text.translate(_CONTROL)


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)

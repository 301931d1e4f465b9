"""From a response to the answer in it: one parser for rewards and for evaluation.

Responses come from a model that is being trained, so they may be anything; every function here
takes time linear in their length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

AnswerFrom = Literal["boxed", "chain"]

_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_SIGNS = re.compile(r"([<>/])")
_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm|mathbf)\s*\{")


def read_answer(response: str, source: AnswerFrom = "boxed") -> str | None:
    """The answer that a response gives, or None.

    Args:
        source: `boxed` takes the last box that is closed; `chain` the released code's reading,
            which always finds something (human_behaviour.py).
    """
    return boxed(response) if source == "boxed" else released_answer(response)


def boxed(response: str) -> str | None:
    r"""What the last closed `\boxed{...}` holds, stripped; None where there is none.

    Braces inside a box are matched. Where a box holds nothing but another box, or but a command for
    upright text, the inside counts.

    >>> boxed(r"Sad at first. \boxed{sad} No: \boxed{\text{happy}}")
    'happy'
    >>> boxed(r"\boxed{never closed") is None
    True
    """
    found = None
    for opening, closing, is_box in _pairs(response):
        found = (opening + 1, closing) if is_box else found
    return _unwrapped(response[found[0] : found[1]]) if found else None


def released_answer(response: str) -> str:
    r"""The released code's reading: the first box up to its first brace, else [...], else <answer>...</answer>,
    else all of the text; white space around the signs < > / is taken out first (human_behaviour.py).

    >>> released_answer(r"[1] is wrong, \boxed{happy}")
    'happy'
    >>> released_answer("It is [sad].")
    'sad'
    """
    text = close_up_signs(response)
    return (_between(text, "\\boxed{", "}") or _in_a_line(text, "[", "]") or _in_a_line(text, "<answer>", "</answer>") or (text,))[
        0
    ].strip()


def close_up_signs(text: str) -> str:
    """The text without white space around the signs < > and /.

    >>> close_up_signs("< think > so < / think >")
    '<think>so</think>'
    """
    parts = _SIGNS.split(text)
    last = len(parts) - 1
    return "".join(_trimmed(part, left=place > 0, right=place < last) for place, part in enumerate(parts))


def plain_text(answer: str) -> str:
    """An answer as it is compared: without surrounding white space, in one case."""
    return answer.strip().casefold()


def _pairs(text: str) -> Iterator[tuple[int, int, bool]]:
    """(place of the opening brace, of its closing brace, whether it is a box's), by the closing brace."""
    opened: list[tuple[int, bool]] = []
    for token in _BRACES.finditer(text):
        sign = token.group()
        if sign == "}":
            if opened:
                opening, is_box = opened.pop()
                yield opening, token.start(), is_box
        elif sign == "{" or len(sign) > 2:
            opened.append((token.end() - 1, sign != "{"))


def _unwrapped(content: str) -> str:
    """The content without boxes and text commands that hold all of it, stripped."""
    closing = {opening: end for opening, end, _ in _pairs(content)}
    start, end = _stripped(content, 0, len(content))
    while (wrapper := _WRAPPER.match(content, start, end)) and closing.get(wrapper.end() - 1) == end - 1:
        start, end = _stripped(content, wrapper.end(), end - 1)
    return content[start:end]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _trimmed(part: str, *, left: bool, right: bool) -> str:
    part = part.lstrip() if left else part
    return part.rstrip() if right else part


def _between(text: str, opening: str, closing: str) -> tuple[str] | None:
    """What stands between the first opening and the next closing."""
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return (text[start + len(opening) : end],) if end >= 0 else None


def _in_a_line(text: str, opening: str, closing: str) -> tuple[str] | None:
    return next((found for line in text.split("\n") if (found := _between(line, opening, closing))), None)

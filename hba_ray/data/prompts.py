"""From a row to the chat message that the backbone reads.

Prompts that ask for a thought and a boxed answer: what reinforcement learning trains on (paper appendix B.2).

From a response to the answer in it: one parser for rewards and for evaluation.

Responses come from a model that is being trained, so they may be anything; every function here
takes time linear in their length.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from hba_ray.data.rows import MEDIA_COLUMNS, TAG, Row
from hba_ray.specs.base import Spec
from hba_ray.specs.load import load_prompt_file


def withhold(row: Row, modalities: Collection[str]) -> Row:
    """The row without the clips, and their marks, of the modalities that are not shown.

    The sentence that names the recording stays: what is withheld is the evidence, not the question.
    """
    hidden = [name for name in row.media if name not in modalities]
    if not hidden:
        return row
    problem = row.problem
    for name in hidden:
        problem = problem.replace(f"<{name}>\n", "").replace(f"<{name}>", "")
    return replace(row, problem=problem, media={name: clips for name, clips in row.media.items() if name not in hidden})


def with_transcript(row: Row, words: str) -> Row:
    """The row with what is said in its clip as a line of the prompt, behind the marks that it starts with.

    Marks that the words may hold are taken out; they stand for no clip.
    """
    line = " ".join(TAG.sub(" ", words).split())
    if not line:
        return row
    marks = re.match(rf"(?:{TAG.pattern}\s*)*", row.problem)
    end = marks.end() if marks else 0
    return replace(row, problem=f"{row.problem[:end]}{line}\n{row.problem[end:]}")


def chat_message(row: Row) -> list[dict[str, Any]]:
    """The row as one user turn in the chat template's form; `{"type": "video"}` stands for the next video.

    Clips without a mark in the prompt are put in front, as the released loader does (base_dataset.py).
    """
    content: list[dict[str, Any]] = []
    for name in MEDIA_COLUMNS:
        unmarked = len(row.media.get(name, ())) if f"<{name}>" not in row.problem else 0
        content += [{"type": name}] * unmarked
    position = 0
    for mark in TAG.finditer(row.problem):
        content += [*_text(row.problem[position : mark.start()]), {"type": mark.group(1)}]
        position = mark.end()
    content += _text(row.problem[position:])
    return [{"role": "user", "content": content}]


def question_of(row: Row) -> str:
    """What the row asks, without the marks of its clips: what a judge is told."""
    return "\n".join(line for line in TAG.sub("", row.problem).splitlines() if line.strip())


def prompt_hash(prompt: str) -> str:
    """Names the text that a model was given, chat template included: 16 hexadecimal digits."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _text(part: str) -> list[dict[str, Any]]:
    part = part.strip("\n")
    return [{"type": "text", "text": part}] if part else []


BUILT_IN = {"standard": "data/reasoning.yaml"}
PROBLEM = "{problem}"
ASKED_FOR = ("<think>", "</think>", "\\boxed")


class ReasoningPrompt(Spec):
    """A wording of the instructions."""

    template: str = Field(min_length=1)
    """Prompt with {problem} where the row's own prompt goes."""

    @field_validator("template")
    @classmethod
    def _has_its_parts(cls, template: str) -> str:
        if template.count(PROBLEM) != 1:
            raise ValueError(f"holds {PROBLEM} {template.count(PROBLEM)} times; it needs it once")
        if lacking := [part for part in ASKED_FOR if part not in template]:
            raise ValueError(f"does not ask for {' and '.join(lacking)}, which the rewards pay for")
        return template.rstrip("\n")

    def ask(self, row: Row) -> Row:
        """The row with the instructions around its prompt; marks of clips stay where they are."""
        return replace(row, problem=self.template.replace(PROBLEM, row.problem))


def load_reasoning(name: str) -> ReasoningPrompt:
    """The built-in wording by its name, or a YAML file.

    Raises:
        SpecError: no such file, not YAML, or its template is missing or lacks a part.
    """
    return load_prompt_file(ReasoningPrompt, name, key="grpo.prompts", built_in=BUILT_IN)


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

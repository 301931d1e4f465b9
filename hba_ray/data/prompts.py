"""What a model is asked, and what it answers, as text: from a row to a chat message, and from a response to its answer.

A row's own prompt can be put into a wording: the reasoning instructions of reinforcement learning
(`ReasoningPrompt`), or the dataset's labels for a model that has not been trained on them (`ask_plainly`).
Rewards and evaluation read answers with the same parser. Responses come from a model in training, so
they may be anything; every function that reads them takes time linear in their length.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from hba_ray.data.rows import MEDIA_COLUMNS, TAG, Row
from hba_ray.data.tasks import SPLIT_SURPRISE, Dataset, find_label
from hba_ray.data.text import break_tokens, comparable, control_token
from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec
from hba_ray.specs.load import load_prompt_file
from hba_ray.specs.reading.files import UnreadableFile, whole_text
from hba_ray.specs.wording import AS_BEFORE, Layout, Wording

AnswerFrom = Literal["boxed", "chain"]
Matching = Literal["lenient", "exact"]

_BUILT_IN = {"standard": "data/reasoning.yaml", "plain": "data/plain.yaml"}
"""Name of a wording that ships with the package -> its file."""
_PROBLEM = "{problem}"
_JINJA_CONTENT = re.compile(r"\{\{\s*content\s*\}\}")
_RELEASED_ORDER = ("audio", "video", "image")
"""Modalities in the order in which the released loader puts clips without a mark in front."""
_ASKED_FOR = ("<think>", "</think>", "\\boxed")
_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_SIGNS = re.compile(r"([<>/])")
_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm|mathbf)\s*\{")
_AROUND_LABELS = " \t\r\n.,;:!?*_`'\"“”‘’()[]{}"
"""White space, punctuation and quotes that a model may put around a label."""


def withhold(row: Row, modalities: Collection[str], layout: Layout = "trimmed") -> Row:
    """The row without the clips, and their marks, of the modalities that are not shown.

    The sentence that names the recording stays: what is withheld is the evidence, not the question. With a mark goes the line
    break behind it, which the layout `released` keeps.
    """
    hidden = [name for name in row.media if name not in modalities]
    if not hidden:
        return row
    problem = row.problem
    for name in hidden:
        problem = (problem if layout == "released" else problem.replace(f"<{name}>\n", "")).replace(f"<{name}>", "")
    return replace(row, problem=problem, media={name: clips for name, clips in row.media.items() if name not in hidden})


def with_transcript(row: Row, words: str) -> Row:
    """The row with the words spoken in its clip as a line of its prompt, behind the marks that the prompt starts with.

    Marks inside the words are taken out, since they stand for no clip.
    """
    line = " ".join(TAG.sub(" ", words).split())
    if not line:
        return row
    marks = re.match(rf"(?:{TAG.pattern}\s*)*", row.problem)
    end = marks.end() if marks else 0
    return replace(row, problem=f"{row.problem[:end]}{line}\n{row.problem[end:]}")


def chat_message(row: Row, wording: Wording = AS_BEFORE) -> list[dict[str, Any]]:
    """The row in the chat template's form: one user turn, behind the system turn where the wording has one.

    `{"type": "video"}` stands for the next video. As many marks as the prompt lacks are put in front of it, as the released
    loader does (base_dataset.py).
    """
    released = wording.layout == "released"
    lacking = {
        name: len(row.media.get(name, ())) - row.problem.count(f"<{name}>") for name in (_RELEASED_ORDER if released else MEDIA_COLUMNS)
    }
    content: list[dict[str, Any]] = [{"type": name} for name, count in lacking.items() for _ in range(count)]
    position = 0
    for mark in TAG.finditer(row.problem):
        content += [*_text(row.problem[position : mark.start()], released), {"type": mark.group(1)}]
        position = mark.end()
    content += _text(row.problem[position:], released)
    turns = [{"role": "user", "content": content}]
    return turns if wording.system is None else [system_turn(wording.system), *turns]


def system_turn(text: str) -> dict[str, Any]:
    """A system turn in the chat template's form."""
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def question_of(row: Row) -> str:
    """What the row asks, without the marks of its clips; a judge is told this."""
    return "\n".join(line for line in TAG.sub("", row.problem).splitlines() if line.strip())


def prompt_hash(prompt: str) -> str:
    """A name of the text that a model was given, chat template included: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _text(part: str, as_it_is: bool) -> list[dict[str, Any]]:
    # Rows are clean, but taking a mark out can join the halves of a token.
    part = break_tokens(part if as_it_is else part.strip("\n"))
    return [{"type": "text", "text": part}] if part else []


class ReasoningPrompt(Spec):
    """Instructions that ask for a thought and a boxed answer: what reinforcement learning trains on (paper appendix B.2)."""

    template: str = Field(min_length=1)
    """The whole prompt, with {problem} where the row's own prompt goes; {problem} alone asks for nothing else."""

    @field_validator("template")
    @classmethod
    def _has_its_parts(cls, template: str) -> str:
        if template.count(_PROBLEM) != 1:
            raise ValueError(f"holds {_PROBLEM} {template.count(_PROBLEM)} times; it needs it once")
        if template.strip() != _PROBLEM and (lacking := [part for part in _ASKED_FOR if part not in template]):
            raise ValueError(f"does not ask for {' and '.join(lacking)}, which the rewards pay for")
        if token := control_token(template):
            raise ValueError(f"holds {token}, which tokenizers take for a control token; the chat template adds those that are needed")
        if mark := TAG.search(template):
            raise ValueError(f"holds {mark.group()}, which stands for a clip; the rows' own prompts hold the marks of theirs")
        return template.rstrip("\n")

    def ask(self, row: Row) -> Row:
        """The row with the instructions around its prompt; marks of clips stay where they are."""
        return replace(row, problem=self.template.replace(_PROBLEM, row.problem))


def load_reasoning(name: str) -> ReasoningPrompt:
    """The built-in wording by its name, a YAML file, or a template of the released code (`.jinja`) in which {{ content }} stands for
    a row's own prompt.

    Raises:
        SpecError: no such file, not YAML, or its template is missing or lacks a part.
    """
    if name not in _BUILT_IN and Path(name).suffix == ".jinja":
        return _from_jinja(name)
    return load_prompt_file(ReasoningPrompt, name, key="grpo.prompts", built_in=_BUILT_IN)


def _from_jinja(name: str) -> ReasoningPrompt:
    """A template of Jinja that holds nothing but text and {{ content }}.

    Raises:
        SpecError: there is no such file, or it holds more.
    """
    where = f"grpo.prompts={name}"
    try:
        text = whole_text(Path(name).expanduser()).removesuffix("\n")  # as Jinja does
    except UnreadableFile as cause:
        way_out = "give training/rl/format_prompt/default.jinja of a checkout of the released code"
        raise SpecError(where, f"is no file of a prompt: {cause.what}", way_out) from None
    template = _JINJA_CONTENT.sub(lambda _: _PROBLEM, text)
    if any(sign in template for sign in ("{{", "{%", "{#")):
        raise SpecError(where, "holds more of Jinja than {{ content }}", "write it as a YAML file with {problem}")
    try:
        return ReasoningPrompt(template=template)
    except ValidationError as cause:
        raise SpecError(where, cause.errors()[0]["msg"], "it needs {{ content }} once") from None


def ask_plainly(row: Row) -> Row:
    """The row with its dataset's labels named, unless its prompt names all of them already."""
    labels = row.dataset.labels
    if all(label in row.problem.lower() for label in labels):
        return row
    return replace(row, problem=f"{row.problem}\nReply with one of these labels and nothing else: {', '.join(labels)}.")


def read_answer(response: str, source: AnswerFrom = "boxed") -> str | None:
    """The answer that a response gives, without white space around it, or None.

    Args:
        source: `boxed` takes the last box that is closed; `chain` tries one form after the other as the
            released code does (human_behaviour.py), and always finds something.
    """
    return boxed(response) if source == "boxed" else released_answer(response)


def boxed(response: str) -> str | None:
    r"""What the last closed `\boxed{...}` holds, stripped; None where there is none.

    Braces inside a box are matched. Where a box holds nothing but another box, or nothing but a text
    command such as `\text{...}`, the answer is what that holds.

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
    r"""The answer as the released code reads it (human_behaviour.py): the first box up to its first closing brace,
    else the first [...], else <answer>...</answer>, else all of the text. White space around < > / is taken out first.

    >>> released_answer(r"[1] is wrong, \boxed{happy}")
    'happy'
    >>> released_answer("It is [sad].")
    'sad'
    """
    return _released_answer(response).strip()


def _released_answer(response: str) -> str:
    text = close_up_signs(response)
    return (_between(text, "\\boxed{", "}") or _in_a_line(text, "[", "]") or _in_a_line(text, "<answer>", "</answer>") or (text,))[0]


def read_class(
    response: str, dataset: Dataset, source: AnswerFrom = "boxed", *, matching: Matching = "lenient", split_surprise: bool = False
) -> str | None:
    r"""The label that a response gives, or None; what a lenient and an exact reading are is said at `evaluate.matching`.

    >>> from hba_ray.data.tasks import find_dataset
    >>> meld = find_dataset("meld_emotion")
    >>> [read_class(said, meld, "chain", matching="exact") for said in (r"\boxed{Sad}", r"\boxed{ Sad }", "**Joy.**")]
    ['sad', None, None]
    """
    if matching == "exact":
        answer = _released_answer(response) if source == "chain" else boxed(response)
        labels = (*dataset.labels, *(SPLIT_SURPRISE if split_surprise and "surprise" in dataset.labels else ()))
        return answer.lower() if answer is not None and answer.lower() in labels else None
    answer = read_answer(response, source)
    return None if answer is None else read_label(answer, dataset, split_surprise=split_surprise)


def read_label(answer: str, dataset: Dataset, *, split_surprise: bool = False) -> str | None:
    """The label that an answer is, in any case and any spelling that the sources use; None where it is none of the dataset's.

    >>> from hba_ray.data.tasks import find_dataset
    >>> read_label("**Joy.**", find_dataset("meld_emotion")), read_label("calm", find_dataset("meld_emotion"))
    ('happy', None)
    """
    if dataset.task.is_open:
        return None
    return find_label(comparable(answer).strip(_AROUND_LABELS), dataset, split_surprise=split_surprise)


def close_up_signs(text: str) -> str:
    """The text without white space around the signs < > and /.

    >>> close_up_signs("< think > so < / think >")
    '<think>so</think>'
    """
    parts = _SIGNS.split(text)
    last = len(parts) - 1
    return "".join(_trimmed(part, left=place > 0, right=place < last) for place, part in enumerate(parts))


def plain_text(answer: str) -> str:
    """An answer as it is compared; see `text.comparable`."""
    return comparable(answer)


def _pairs(text: str) -> Iterator[tuple[int, int, bool]]:
    """Pairs of braces in the order in which they close: (place of the opening one, of the closing one, whether they are a box's)."""
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
    """The content, stripped, without the boxes and text commands that enclose all of it."""
    closing = {opening: end for opening, end, _ in _pairs(content)}
    start, end = _stripped(content, 0, len(content))
    while (wrapper := _WRAPPER.match(content, start, end)) and closing.get(wrapper.end() - 1) == end - 1:
        start, end = _stripped(content, wrapper.end(), end - 1)
    return content[start:end]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The bounds of a part of the text without white space at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _trimmed(part: str, *, left: bool, right: bool) -> str:
    part = part.lstrip() if left else part
    return part.rstrip() if right else part


def _between(text: str, opening: str, closing: str) -> tuple[str] | None:
    """What stands between the first opening and the next closing, in a tuple of one; None where there is no such pair."""
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return (text[start + len(opening) : end],) if end >= 0 else None


def _in_a_line(text: str, opening: str, closing: str) -> tuple[str] | None:
    """`_between` of the first line that has both."""
    return next((found for line in text.split("\n") if (found := _between(line, opening, closing))), None)

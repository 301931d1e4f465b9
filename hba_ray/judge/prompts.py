"""What the judge is told, and how its reply is read: TRUE, FALSE, or unreadable; never a guess.

A prompts file is YAML: `user`, a template with {question}, {reference} and {answer}, and `rubrics`,
one system text for each open task. Ours are in `rubrics/`.
"""

from __future__ import annotations

import json
import re
from string import Formatter
from typing import Any, Literal

from pydantic import Field, field_validator

from hba_ray.data.tasks import BENCHMARK_TASKS, TASKS
from hba_ray.data.text import control_token
from hba_ray.errors import DataError
from hba_ray.specs.base import Spec
from hba_ray.specs.load import load_prompt_file

BUILT_IN = {name: f"judge/rubrics/{name}.yaml" for name in ("standard", "paraphrased")}
FIELDS = frozenset({"question", "reference", "answer"})
OPEN_TASKS = tuple(task.id for task in BENCHMARK_TASKS if task.is_open)
"""Open tasks of the benchmark. One of a user's own brings its rubric, which a prompts file may replace."""

ReplyFormat = Literal["schema", "text"]

REPLY_SCHEMA: dict[str, Any] = {
    "name": "verdict",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"explanation": {"type": "string"}, "correct": {"type": "boolean"}},
        "required": ["explanation", "correct"],
        "additionalProperties": False,
    },
}
"""The reply as a JSON schema; the explanation comes first, so that the verdict follows from it."""

REPLY_IN_WORDS: dict[ReplyFormat, str] = {
    "schema": (
        'Reply with one JSON object and nothing else: "explanation", one short sentence, then "correct", '
        "which is true for TRUE and false for FALSE."
    ),
    "text": "Explain your verdict in one short sentence. Then end with a line that holds only the verdict: TRUE or FALSE.",
}

_FENCE = re.compile(r"^```(?:json)?[ \t]*\n(.*)\n```$", re.DOTALL)
_VERDICT_LINE = re.compile(r"^\W*(?:(?:final )?(?:verdict|grade|answer)\W+)?(true|false)\W*$", re.IGNORECASE)


class Prompts(Spec):
    """A set of prompts."""

    user: str = Field(min_length=1)
    """Template of the user's turn, with {question}, {reference} and {answer}, once each."""
    rubrics: dict[str, str]
    """Open task -> system text."""

    @field_validator("user")
    @classmethod
    def _has_its_fields(cls, user: str) -> str:
        parts = [part for part in Formatter().parse(user) if part[1] is not None]
        found = sorted(name for _, name, _, _ in parts if name is not None)
        if any(form or conversion for _, _, form, conversion in parts):
            raise ValueError("holds a field with a format, as in {question:>80} or {question!r}; write {question}")
        if found != sorted(FIELDS):
            raise ValueError(f"holds the fields {found or 'none'}; it needs {{question}}, {{reference}} and {{answer}}, once each")
        return user

    @field_validator("rubrics")
    @classmethod
    def _has_every_task(cls, rubrics: dict[str, str]) -> dict[str, str]:
        lacking = [task for task in OPEN_TASKS if not rubrics.get(task, "").strip()]
        unknown = sorted(task for task in rubrics if task not in TASKS or not TASKS[task].is_open)
        if lacking or unknown:
            raise ValueError(f"needs a text for each of {', '.join(OPEN_TASKS)}; lacking {lacking}, unknown {unknown}")
        return rubrics

    @field_validator("user", "rubrics")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        for text in value.values() if isinstance(value, dict) else [value]:
            if token := control_token(text):
                raise ValueError(f"holds {token}, which a judge takes for a control token; its server adds those that are needed")
        return value

    def system(self, task: str, reply: ReplyFormat) -> str:
        """The system's turn for an open task."""
        return f"{(self.rubrics.get(task) or TASKS[task].rubric).strip()}\n\n{REPLY_IN_WORDS[reply]}"


def load_prompts(name: str) -> Prompts:
    """A built-in set by its name, or a YAML file.

    Raises:
        SpecError: no such file, not YAML, or a field is missing, unknown or empty.
    """
    return load_prompt_file(Prompts, name, key="evaluate.judge.prompts", built_in=BUILT_IN)


def read_verdict(reply: str) -> bool:
    """The verdict that a reply states: a JSON object with `correct`, or a line that holds nothing but TRUE or FALSE.

    >>> read_verdict('{"explanation": "Both say that she apologises.", "correct": true}')
    True
    >>> read_verdict("Another person is meant.\\n**FALSE**")
    False

    Raises:
        DataError: it states none, or both; its `reason` is countable.
    """
    text = reply.rpartition("</think>")[2].strip()
    if not text:
        raise DataError("judge", "the reply is empty", reason="empty reply")
    if "<think>" in text:
        raise DataError("judge", "the reply ends in the middle of a thought", reason="cut off")
    fenced = _FENCE.match(text)
    stated = stated_object(fenced.group(1) if fenced else text)
    if isinstance(stated.get("correct"), bool):
        return stated["correct"]
    verdicts = {match.group(1).lower() for line in text.splitlines() if (match := _VERDICT_LINE.match(line))}
    if len(verdicts) != 1:
        both = "both verdicts" if verdicts else "no verdict"
        raise DataError("judge", f"the reply states {both}", reason=both)
    return verdicts == {"true"}


def stated_object(text: str) -> dict[str, Any]:
    """The JSON object that a text holds; an empty one where it holds none, or one that is nested without end."""
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) else {}

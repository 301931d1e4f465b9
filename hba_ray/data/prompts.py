"""From a row to the chat message that the backbone reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from hba_ray.data.rows import MEDIA_COLUMNS, TAG, Row


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

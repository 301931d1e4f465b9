"""How rows are worded around what they say themselves: the layout of a chat turn, and the system turn before it.

The sentences of the released code are not part of this package. They are read from files that a spec names, a text file or a file of
a checkout of the released repository, of which nothing is executed.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hba_ray.errors import SpecError
from hba_ray.specs.reading.files import UnreadableFile, whole_text
from hba_ray.specs.sections.model import ModelSpec

Layout = Literal["trimmed", "released"]


@dataclass(frozen=True)
class Wording:
    """How rows become chat turns, besides what they say themselves; `model.prompt_layout` and `model.system_prompt` of a spec.

    Attributes:
        system: text of the system turn; None leaves it to the chat template.
    """

    layout: Layout = "trimmed"
    system: str | None = None

    @classmethod
    def of(cls, model: ModelSpec) -> Wording:
        """
        Raises:
            SpecError: the file of the system turn is not there or not in order.
        """
        return cls(model.prompt_layout, None if model.system_prompt is None else load_system_prompt(model.system_prompt))

    def identity(self) -> dict[str, str]:
        """What enters fingerprints: nothing, where rows are worded as before there was a choice."""
        layout = {} if self.layout == "trimmed" else {"prompt_layout": self.layout}
        return layout if self.system is None else {**layout, "system": hashlib.sha256(self.system.encode()).hexdigest()[:16]}


AS_BEFORE = Wording()
"""The wording of specs that state none."""


def load_system_prompt(name: str) -> str:
    """The text of a system turn: all of a text file but a line break at its end, or what a Python file of the released code holds.

    Raises:
        SpecError: no such file, not text, empty, or a Python file without a system turn.
    """
    where, path = f"model.system_prompt={name}", Path(name).expanduser()
    try:
        text = whole_text(path)
        found = _system_turns(ast.parse(text)) if path.suffix == ".py" else [text.removesuffix("\n").removesuffix("\r")]
    except UnreadableFile as cause:
        way_out = "give a text file, or training/sft/dataset/base_dataset.py of a checkout of the released code"
        raise SpecError(where, f"cannot be read: it {cause.what}" if path.is_file() else "no such file", way_out) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:  # the last two for brackets without end
        raise SpecError(where, f"cannot be read: {str(cause) or type(cause).__name__}", "give a text file in UTF-8") from None
    if len(set(found)) != 1 or not found[0].strip():
        what = "is empty" if path.suffix != ".py" else f"holds {len(set(found))} system turns, and one is needed"
        raise SpecError(where, what, "write the text into a file of its own")
    return found[0]


def _system_turns(tree: ast.AST) -> list[str]:
    """The texts of all messages `{"role": "system", "content": ...}` that a program holds as literals; nothing is executed."""
    found = []
    for node in ast.walk(tree):
        try:
            value = ast.literal_eval(node) if isinstance(node, ast.Dict) else None
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue  # a dict with something else than literals in it
        if isinstance(value, dict) and value.get("role") == "system":
            parts = value.get("content")
            found += (
                [parts] if isinstance(parts, str) else [part["text"] for part in parts or () if isinstance(part, dict) and "text" in part]
            )
    return [text for text in found if isinstance(text, str)]

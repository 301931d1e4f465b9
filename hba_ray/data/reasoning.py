"""Prompts that ask for a thought and a boxed answer: what reinforcement learning trains on (paper appendix B.2)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, field_validator

from hba_ray.data.rows import Row
from hba_ray.specs.base import Spec
from hba_ray.specs.prompts import load_prompt_file

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

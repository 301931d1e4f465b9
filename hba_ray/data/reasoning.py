"""Prompts that ask for a thought and a boxed answer: what reinforcement learning trains on (paper appendix B.2)."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from hba_ray.data.rows import Row
from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec

BUILT_IN = "standard"
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
    where = f"grpo.prompts={name}"
    source = files("hba_ray.data") / "reasoning.yaml" if name == BUILT_IN else Path(name)
    way_out = f"give {BUILT_IN} or a YAML file in the form of hba_ray/data/reasoning.yaml"
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as cause:
        raise SpecError(where, f"cannot be read: {cause.strerror}", way_out) from None
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise SpecError(where, f"is not YAML: {str(cause).splitlines()[0]}", way_out) from None
    try:
        return ReasoningPrompt.model_validate(raw)
    except ValidationError as cause:
        defects = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}" for error in cause.errors())
        raise SpecError(where, defects, way_out) from None

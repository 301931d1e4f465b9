"""What all sections of a spec have in common: frozen, strict about keys, hashable by content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A section of a spec. The string under a field is its description, also in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The section as plain JSON values: what enters a fingerprint."""
        return self.model_dump(mode="json")


def fingerprint(identity: Any) -> str:
    """Twelve hexadecimal digits that name what `identity` (JSON values) says.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

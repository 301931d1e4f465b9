"""Steps that a test does in its own way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hba_ray.steps import KINDS
from hba_ray.steps.base import Context, Result


def replace_make(monkeypatch: pytest.MonkeyPatch, kind: str, make: Callable[[Context], Result]) -> None:
    """For the time of a test, steps of a kind are done by this function."""
    monkeypatch.setattr(type(KINDS[kind]), "make", lambda self, context: make(context))

"""Environment variables by which libraries are told how to behave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def variables(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets them for the time of the block, except those that the user has set."""
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)

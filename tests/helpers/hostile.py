"""The one rule for whatever comes in from outside: it is accepted, refused by a located error, or dropped and counted.

Any other exception is a fault, and so are a hang and memory without bound. `outcome` runs one example by this rule. Property
tests over hostile inputs bear the decorator `hostile`, others the mark of the same name; both give the class of input under
which `make nightly` counts what was tried and what was at fault. What the inputs are stands in the files hostile_*.py.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.errors import UnsatisfiedAssumption

from hba_ray.errors import HbaError
from tests.helpers.limits import memory_of_at_most, seconds_of_at_most

ROOT = Path(__file__).parents[2]
NIGHTLY, FAST = "nightly", "fast"
"""Profiles of hypothesis; `--hypothesis-profile` chooses, and FAST is usual."""
CLASSES = (
    "specs",
    "spec bombs",
    "rows",
    "shards",
    "media",
    "checkpoints",
    "kills",
    "kills while MLflow's store is made",
    "damaged steps",
    "HTML",
    "judge replies",
)
SECONDS, BYTES = 20.0, 1 << 30
"""What an example may take: seconds by the clock of a busy machine, and address space beyond what the process has."""


class Outcome(StrEnum):
    """What became of a hostile input."""

    ACCEPTED = "accepted"
    REFUSED = "refused by a located error"
    DROPPED = "dropped and counted"


@dataclass
class Tally:
    """
    Attributes:
        tried: examples.
        faults: distinct ones, each by its exception and the place in the code that raised it.
    """

    tried: int = 0
    faults: set[str] = field(default_factory=set)


TALLIES = {kind: Tally() for kind in CLASSES}
"""Class of input -> what this process has tried so far."""


def register_profiles() -> None:
    """FAST tries the same examples each time, the nightly profile others each time; none limits the time of an example itself."""
    settings.register_profile(FAST, deadline=None, derandomize=True)
    examples = int(os.environ.get("HBA_EXAMPLES", 10_000))
    settings.register_profile(NIGHTLY, deadline=None, max_examples=examples, print_blob=True)
    settings.load_profile(FAST)


def is_nightly() -> bool:
    return settings.get_current_profile_name() == NIGHTLY


def outcome(act: Callable[[], object], *, seconds: float = SECONDS, size: int = BYTES) -> Outcome:
    """Runs one example by the rule at the top and says what became of it.

    What `act` imports counts as its memory, so a test imports before what the code under it imports late.

    Args:
        act: gives the input to the product. A Counter that it returns is the product's count of what it dropped.

    Raises:
        AssertionError: it took too long, or its error does not say where and what.
        Exception: any other that came out.
    """
    try:
        with memory_of_at_most(size), seconds_of_at_most(seconds):
            result = act()
    except HbaError as error:
        assert error.where.strip() and error.what.strip(), f"says not where or not what: {error.args}"
        assert not isinstance(error.__cause__, MemoryError), f"all memory was used up first: {error}"
        return Outcome.REFUSED
    return Outcome.DROPPED if isinstance(result, Counter) and result.total() else Outcome.ACCEPTED


def hostile(
    kind: str, examples: int = 300, inputs: int = 1, *, tallies: Mapping[str, Tally] = TALLIES
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a property test, above its `given`: so many examples in fast tests, those of the profile in nightly ones.

    A function inside a test may be decorated, too; then the test around it bears the mark.

    Args:
        kind: one of CLASSES.
        inputs: that one example holds; by night there are fewer examples then.
        tallies: where to count.
    """
    chosen = settings(
        max_examples=ceil(settings().max_examples / inputs) if is_nightly() else examples,
        # Fixtures are made once for all examples on purpose, and what is hostile may be large or slow to make.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )

    def decorate(test: Any) -> Any:
        inner = test.hypothesis.inner_test

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> None:
            with trying(tallies[kind], inputs):
                inner(*args, **kwargs)

        test.hypothesis.inner_test = counted
        return pytest.mark.hostile(kind)(chosen(test))

    return decorate


@contextmanager
def trying(tally: Tally, inputs: int) -> Iterator[None]:
    """Counts the inputs of one example, and what it raises as a fault."""
    try:
        yield
    except UnsatisfiedAssumption:  # no example at all
        raise
    except Exception as error:
        tally.faults.add(f"{type(error).__name__} at {_place(error)}")
        tally.tried += inputs
        raise
    tally.tried += inputs


def _place(error: BaseException) -> str:
    """The innermost line of the product that an error passed; else of the tests."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(ROOT)]
    ours = [frame for frame in lines if Path(frame.filename).is_relative_to(ROOT / "hba_ray")] or lines
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "no file of the project"


def table() -> list[str]:
    """Lines: each class of input, what was tried and how many faults were found; then the faults."""
    width = max(map(len, CLASSES))
    lines = [f"{'class':{width}}  {'tried':>7}  {'faults':>6}"]
    for kind, tally in TALLIES.items():
        lines.append(f"{kind:{width}}  {tally.tried:>7,}  {len(tally.faults):>6}" if tally.tried else f"{kind:{width}}  not run")
    return lines + [f"{kind}: {fault}" for kind, tally in TALLIES.items() for fault in sorted(tally.faults)]

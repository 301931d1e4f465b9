"""The rule for hostile inputs sees every way to break it."""

import io
import time
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hba_ray.errors import BadMedia, SpecError
from tests.helpers.hostile import Outcome, Tally, hostile, outcome


def refuse(*words: str) -> None:
    raise SpecError(*words)


def test_what_is_accepted_refused_or_dropped_is_told_apart():
    assert outcome(lambda: {"score": 1}) == outcome(Counter) == Outcome.ACCEPTED
    assert outcome(lambda: refuse("sft.lr", "is no number")) == Outcome.REFUSED
    assert outcome(lambda: Counter({"corrupt audio": 2})) == Outcome.DROPPED


def test_any_other_exception_comes_out():
    with pytest.raises(ZeroDivisionError):
        outcome(lambda: 1 / 0)


@pytest.mark.parametrize("words", [("", "is no number"), ("sft.lr", " ")])
def test_an_error_that_says_not_where_or_not_what_is_a_fault(words: tuple[str, str]):
    with pytest.raises(AssertionError, match="says not"):
        outcome(lambda: refuse(*words))


def test_a_hang_is_a_fault_though_everything_is_caught():
    def stubborn() -> None:
        try:
            time.sleep(60)
        except Exception:
            time.sleep(60)

    with pytest.raises(AssertionError, match=r"more than 0\.2 seconds"):
        outcome(stubborn, seconds=0.2)


def test_memory_without_bound_is_a_fault_even_where_it_ends_in_a_located_error():
    def greedy() -> None:
        try:
            io.BytesIO(b"x" * (1 << 30))
        except MemoryError as cause:
            raise BadMedia("row 3", "the clip is too large") from cause

    with pytest.raises(MemoryError):
        outcome(lambda: bytearray(1 << 30), size=1 << 29)
    with pytest.raises(AssertionError, match="all memory"):
        outcome(greedy, size=1 << 29)


def test_examples_and_faults_are_counted_under_their_class():
    tallies = {"rows": Tally()}

    @hostile("rows", 40, tallies=tallies)
    @given(st.integers(0, 9))
    def odd(number: int) -> None:
        assume(number != 4)
        _ = 1 / (number - 7)

    with pytest.raises(ZeroDivisionError):
        odd()
    (fault,) = tallies["rows"].faults
    assert tallies["rows"].tried > 1 and fault.startswith("ZeroDivisionError at tests/test_hostile.py:")

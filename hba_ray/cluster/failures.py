"""Which errors end the work at once, wherever it runs: those that a fresh process would only meet again."""

from __future__ import annotations

from hba_ray.errors import HbaError, TrainingError

MISTAKES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
"""What a lost worker or a broken connection never raises: those are OSErrors and RuntimeErrors."""


def as_final(error: Exception, where: str) -> HbaError | None:
    """The error that ends training, or None where a fresh worker may do better."""
    if isinstance(error, HbaError):
        return error
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which torch alone could name
        return TrainingError(where, str(error).splitlines()[0], "lower compute.micro_batch, or set compute.gradient_checkpointing=true")
    if isinstance(error, MISTAKES):
        return TrainingError(where, f"{type(error).__name__}: {error}", "the traceback is in the run's logs folder")
    return None

"""Which errors end work that runs on Ray at once: those that a new process would only meet again."""

from __future__ import annotations

from hba_ray.errors import HbaError, TrainingError

MISTAKES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
"""Errors of code and data. A lost worker or a broken connection raises none of these, but OSError or RuntimeError."""


def as_final(error: Exception, where: str) -> HbaError | None:
    """The error that ends the work; None where a new worker may succeed.

    Args:
        error: what a worker has raised.
        where: names the worker.
    """
    if isinstance(error, HbaError):
        return error
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this module does not import torch
        return TrainingError(where, str(error).splitlines()[0], "lower compute.micro_batch, or set compute.gradient_checkpointing=true")
    if isinstance(error, MISTAKES):
        return TrainingError(where, f"{type(error).__name__}: {error}", "the traceback is in the run's logs folder")
    return None

"""The error tree. Every error says where it happened, what is wrong, and the way out.

HbaError
├── SpecError          a spec cannot be read or is not valid                     exit code 2
├── DataError          an atlas, a row or a table is not what it should be       exit code 1
│   └── BadMedia       a clip cannot be decoded
├── CheckpointError    a checkpoint is missing, damaged or of another model      exit code 1
├── TrainingError      a training step ended without a result                    exit code 1
├── TrialsFailed       some trials failed or were not started, others are kept   exit code 4
└── EnvironmentMissing a package, a cluster resource or a service is not there   exit code 5
"""

from __future__ import annotations

LEAVE_OUT = "set atlas.on_bad_row=drop to leave such rows out; they are counted"
"""The way out of an error that concerns one row of an atlas."""


class HbaError(Exception):
    """An error that a user can act upon.

    Args:
        where: the file, key, dataset or row it concerns.
        what: what is wrong, with the offending value.
        way_out: what to do about it; may be empty where `what` already says it.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, way_out: str = ""):
        super().__init__(where, what, way_out)
        self.where, self.what, self.way_out = where, what, way_out

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n  {self.way_out}" if self.way_out else "")


class SpecError(HbaError):
    exit_code = 2


class DataError(HbaError):
    """An atlas, a row or a table is not what it should be.

    Args:
        reason: a short name of the defect ("unknown label"), under which dropped rows are counted.
    """

    def __init__(self, where: str, what: str, way_out: str = "", reason: str = "invalid"):
        super().__init__(where, what, way_out)
        self.args = (where, what, way_out, reason)
        self.reason = reason

    def of_a_row(self) -> DataError:
        """This error, with the advice that bad rows can be left out added to its way out."""
        return type(self)(self.where, self.what, "; ".join(part for part in (self.way_out, LEAVE_OUT) if part), self.reason)


class BadMedia(DataError):
    """A clip cannot be decoded."""


class CheckpointError(HbaError):
    pass


class TrainingError(HbaError):
    pass


class TrialsFailed(HbaError):
    exit_code = 4


class EnvironmentMissing(HbaError):
    exit_code = 5

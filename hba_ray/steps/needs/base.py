"""A need, and what comes of holding it against a machine: the one shape for all that can be missing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from hba_ray.cluster.machine import Machine

GB, GIB = 1e9, 2**30
Place = Literal["lead", "anywhere", "worker"]
"""Where a step needs something: in the process that leads the run, on every machine that does a part of it, or where workers are."""


@dataclass(frozen=True)
class Check:
    """One thing that runs need.

    Attributes:
        what: the thing.
        found: what is there of it.
        way_out: what to do about it; empty where it is as it should be.
        needed: whether the spec in hand needs it.
        where: the key of the spec that asks for it.
    """

    what: str
    found: str
    way_out: str = ""
    needed: bool = True
    where: str = ""

    @property
    def state(self) -> str:
        return "ok" if not self.way_out else "missing" if self.needed else "not here"


@dataclass(frozen=True)
class Need(ABC):
    """Something without which a step cannot be done.

    Attributes:
        where: the key of the spec that asks for it.
        place: the machines that must have it.
    """

    where: str
    place: Place = field(default="anywhere", kw_only=True)

    def concerns(self, machine: Machine) -> bool:
        """Whether what needs it would be done on a machine."""
        if self.place == "worker":
            return machine.workers != 0
        return machine.leads or (self.place == "anywhere" and machine.tasks)

    @abstractmethod
    def check(self, machine: Machine) -> Check:
        """What a machine has of it, and the way out where that is not enough."""

    def said(self, what: str, found: str, way_out: str = "") -> Check:
        return Check(what, found, way_out, where=self.where)

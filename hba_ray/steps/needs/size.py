"""Needs that have a size: data and weights, memory, room on disks, CPUs and GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field

from hba_ray.cluster.machine import Machine
from hba_ray.cluster.session import check_capacity, local_cpus
from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.models.size.estimates import Memory
from hba_ray.models.size.published import MODELS
from hba_ray.specs.sections.compute import ComputeSpec
from hba_ray.specs.sections.model import PACKAGE, weights_of
from hba_ray.steps.needs.base import GB, GIB, Check, Need, Place
from hba_ray.store.scratch import folder_here

SEE_PAGE = "as its page says"
LEAST_DISK_GIB = 2.0
"""A rule of thumb, not measured: below it a run is expected to fill the disk, whatever its steps write."""


@dataclass(frozen=True)
class Data(Need):
    """The folder of an atlas or of a corpus.

    Attributes:
        root: as the spec names it.
        facts: its rows and licence, in words.
    """

    root: str
    facts: str
    place: Place = field(default="lead", kw_only=True)

    def check(self, machine: Machine) -> Check:
        folder = folder_here(self.root)
        what = f"data: {self.root}"
        if folder.is_dir():
            return self.said(what, self.facts)
        return self.said(what, f"there is no such folder here, for {self.facts}", f"put it there, or give its folder as {self.where}")


@dataclass(frozen=True)
class Weights(Need):
    """The weights of a model.

    Attributes:
        source: folder or file, `package:NAME`, or hub id.
    """

    source: str
    place: Place = field(default="worker", kw_only=True)

    @property
    def title(self) -> str:
        return f"weights: {self.source}"

    @property
    def from_hub(self) -> bool:
        """Whether the hub has to be asked for them, where they are not in its cache."""
        try:
            return weights_of(self.source, self.where) is None
        except HbaError:
            return False

    def check(self, machine: Machine) -> Check:
        what = self.title
        try:
            place = weights_of(self.source, self.where)
        except HbaError as missing:
            return self.said(what, missing.what, missing.way_out)
        known = MODELS.get(self.source)
        size = known.size if known else "size not known"
        licence = f"licence {(known and known.licence) or SEE_PAGE}"
        if place is not None:
            files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
            total = sum(file.stat().st_size for file in files)
            own = "a package of its own licence" if self.source.startswith(PACKAGE) else "yours"
            return self.said(what, f"{total / GB:.3g} GB in {place}, {own}")
        if self.source in machine.fetched:
            return self.said(what, f"in the hub's cache: {size}, {licence}")
        found = f"not here; the hub has it: {size}, {licence}"
        if known and machine.cache < known.gigabytes * GB:
            way_out = "free some, or name another disk in HF_HOME"
            return self.said(what, f"{found}, and its cache has {machine.cache / GB:.3g} GB of room", way_out)
        if known and known.gated and not machine.variables & {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}:
            return self.said(what, found + ". It wants a token of somebody who has accepted the licence: hf auth login, or HF_TOKEN")
        return self.said(what, found)


@dataclass(frozen=True)
class Fits(Need):
    """Room in memory for a process, and for the others of a machine.

    Attributes:
        what: it does.
        memory: of one process.
        gpu: whether it is a GPU's memory.
        times: such processes of a run; they share the memory of a machine that holds several of them.
        way_out: what makes it smaller.
    """

    what: str
    memory: Memory
    gpu: bool
    times: int
    way_out: str
    place: Place = field(default="worker", kw_only=True)

    def check(self, machine: Machine) -> Check:
        what = f"{'GPU ' if self.gpu else ''}memory: {self.what}"
        times = self.times if machine.workers is None else min(self.times, machine.workers)
        told = str(self.memory) + (f", {times} times" if times > 1 else "")
        if self.gpu and not machine.gpus:
            return self.said(what, f"{told}, estimated; there is no GPU here to hold it")
        place = min(machine.gpus, key=lambda gpu: gpu.memory) if self.gpu else None
        there = place.memory if place else machine.memory
        found = f"{told}, estimated; {f'{place.name} has' if place else 'free are'} {there / GIB:.1f} GiB"
        return self.said(what, found, self.way_out if times * self.memory.least > there > 0 else "")


@dataclass(frozen=True)
class Room(Need):
    """Room for what a step writes: on the disk of runs, which all machines see, or in a bucket's folder on the machine that does it.

    Attributes:
        what: it writes.
        bytes: of it, at its largest.
    """

    what: str
    bytes: float
    place: Place = field(default="lead", kw_only=True)

    def check(self, machine: Machine) -> Check:
        return rooms([self], machine)


def rooms(needs: list[Room], machine: Machine) -> Check:
    """All that steps write, held against one disk: they lie there side by side."""
    total = sum(need.bytes for need in needs)
    largest = sorted(needs, key=lambda need: -need.bytes)[:4]
    parts = ", ".join(f"{need.what} {need.bytes / GB:.3g} GB" for need in largest if need.bytes >= GB / 10)
    found = f"{machine.disk / GB:.1f} GB free" + (f", {total / GB:.3g} GB needed ({parts})" if parts else "")
    short = machine.disk < max(total, LEAST_DISK_GIB * GIB)
    return Check("disk", found, "free some, or give another folder as compute.storage=FOLDER" if short else "", where="compute.storage")


@dataclass(frozen=True)
class Capacity(Need):
    """CPUs and GPUs of the Ray that a run has.

    Attributes:
        rollouts: CPUs that verl holds in it; 0 where it does not run.
        there: CPUs and GPUs of the cluster that was joined; None is a private Ray on the machine in hand.
    """

    compute: ComputeSpec
    rollouts: int
    there: tuple[float, float] | None = None

    def check(self, machine: Machine) -> Check:
        private = (local_cpus(self.compute, rollouts=self.rollouts, cores=machine.cores), len(machine.gpus))
        cpus, gpus = self.there or private
        names = f" ({', '.join(sorted({gpu.name for gpu in machine.gpus}))})" if machine.gpus else ""
        found = f"{machine.cores} cores, {len(machine.gpus)} GPUs{names}" if self.there is None else f"{cpus:g} CPUs, {gpus:g} GPUs"
        try:
            check_capacity(self.compute, cpus, gpus)
        except EnvironmentMissing as missing:
            return self.said("CPUs, GPUs", missing.what, missing.way_out)
        if cpus < self.rollouts:
            needed = f"verl holds {self.rollouts} CPUs, but there are {cpus:g}"
            return self.said("CPUs, GPUs", needed, "lower compute.workers, or add nodes")
        return self.said("CPUs, GPUs", found)

"""What a run or a sweep has cost so far, told while it goes on: to people, to MLflow, and to a sweep's budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hba_ray.cluster.growth import GROWS_TO
from hba_ray.cluster.prices import rate_of
from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.compute import ComputeSpec
from hba_ray.specs.sections.sweep import SweepSpec
from hba_ray.store.folders import ledger
from hba_ray.store.spending import SIGN_SECONDS, SO_FAR, Spent, spent

Log = Callable[[Mapping[str, float], int], None]
"""Takes metrics and their step; see `JournalTracker.log_metrics`."""


class Meter:
    """Adds up what the steps of some runs have held, those of earlier attempts included.

    Ledgers of runs that are not at work are read once.

    Args:
        runs: folders of runs, which may come later.
    """

    def __init__(self, runs: Sequence[Path], compute: ComputeSpec):
        self._runs, self.rate = runs, rate_of(compute)
        known = self.rate.gpus and self.rate.dollars_per_hour is not None
        self._price = (self.rate.dollars_per_hour or 0.0) / self.rate.gpus if known else None
        self._at_work: set[Path] = set()
        self._settled: dict[Path, Spent] = {}

    def begin(self, run: Path) -> None:
        """Says that a run is at work from now on."""
        self._at_work.add(run)

    def end(self, run: Path) -> None:
        """Says that a run is no longer at work."""
        self._at_work.discard(run)
        self._settled.pop(run, None)

    def spent(self) -> Spent:
        """What has been spent until now."""
        total = Spent()
        for run in self._runs:
            if run in self._at_work:
                total += self._read(run)
            else:
                if run not in self._settled:
                    self._settled[run] = self._read(run)
                total += self._settled[run]
        return total

    def _read(self, run: Path) -> Spent:
        return spent(ledger(run), time.time(), self._price)

    @contextmanager
    def telling(self, say: Callable[[str], None], log: Log, *, every_seconds: float = SIGN_SECONDS) -> Iterator[None]:
        """Tells people and MLflow what has been spent, for the time of the block: every few minutes and at its end, where it is more.

        Args:
            log: a point's step is what was spent, in thousandths of a GPU-hour or, without GPUs, in cents: what is told twice is one point.
        """
        ended, told = threading.Event(), [self.spent()]

        def tell() -> None:
            now = self.spent()
            if now and now != told[0]:
                say(SO_FAR + now.in_words())
            told[0] = now
            log(now.metrics(), round(1000 * now.gpu_hours) or round(100 * (now.dollars or 0.0)))

        def watch() -> None:
            while not ended.wait(every_seconds):
                with suppress(EnvironmentMissing, OSError):  # the storage does not answer, which the run itself will find out
                    tell()

        thread = threading.Thread(target=watch, name="tell of costs", daemon=True)
        if self.rate:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if self.rate:
                thread.join()
            tell()


@dataclass(frozen=True)
class Budget:
    """What the trials of a sweep may cost together before no more of them is started; see `SweepSpec.budget`.

    Attributes:
        text: as the spec says it; None is no budget.
    """

    text: str | None
    meter: Meter

    @property
    def is_spent(self) -> bool:
        if self.text is None:
            return False
        amount, unit = _parts(self.text)
        now = self.meter.spent()
        return (now.gpu_hours if unit == "gpuh" else now.dollars or 0.0) >= amount

    def in_words(self) -> str:
        return f"the budget of {self.text} is spent: {self.meter.spent().in_words()}"


def with_budget(spec: ExperimentSpec, text: str | None) -> ExperimentSpec:
    """The spec with another budget; None leaves the one that it has.

    Raises:
        SpecError: it is no amount, or the spec has no sweep.
    """
    if text is None:
        return spec
    if spec.sweep is None:
        raise SpecError("--budget", "a budget stops new trials of a sweep, and the spec has none", "leave it out")
    try:
        sweep = SweepSpec.model_validate({**spec.sweep.model_dump(exclude_unset=True), "budget": text})
    except ValidationError:
        raise SpecError("--budget", f"'{text}' is no amount", "give GPU-hours as 20gpuh, or US dollars as 300usd") from None
    return spec.model_copy(update={"sweep": sweep})


def budget_of(spec: ExperimentSpec, meter: Meter) -> Budget:
    """The budget of a spec's sweep.

    Raises:
        SpecError: it is in GPU-hours, and trials hold no GPU.
        EnvironmentMissing: it is in dollars, and what trials cost is not known.
    """
    text = spec.sweep.budget if spec.sweep else None
    if text is not None:
        _, unit = _parts(text)
        if unit == "gpuh" and not meter.rate.gpus:
            raise SpecError("sweep.budget", f"is {text}, and trials hold no GPU: none would ever be spent", "give it in dollars, as 300usd")
        if unit == "usd" and (meter.rate.dollars_per_hour is None or meter.spent().dollars is None):
            way_out = f"state dollars_per_hour of every kind of node, in compute.grows_to or {GROWS_TO}, or give it in GPU-hours, as 20gpuh"
            raise EnvironmentMissing("sweep.budget", f"is {text}, and the price of what trials hold is not known", way_out)
    return Budget(text, meter)


def _parts(text: str) -> tuple[float, str]:
    """
    >>> _parts("2.5gpuh"), _parts("300usd")
    ((2.5, 'gpuh'), (300.0, 'usd'))
    """
    amount = text.rstrip("gpuhsd")
    return float(amount), text.removeprefix(amount)

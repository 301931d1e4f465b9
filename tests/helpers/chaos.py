"""Drivers that are killed at random moments, and what has to be true afterwards.

Drivers are forked from a server that has imported everything, so that kills hit the work and not the imports. HBA_KILLS says how
often the tests that use this kill in all, HBA_SEED repeats their moments as far as a machine can.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest

from hba_ray.store.folders import ledger
from tests.helpers.hostile import TALLIES
from tests.helpers.waiting import wait_until

KILLS = int(os.environ.get("HBA_KILLS", 20))
SEED = int(os.environ.get("HBA_SEED") or time.time_ns() % 1_000_000)
PATIENCE_SECONDS = 400
PRELOADED = [
    "hba_ray.runs.sweep",
    "hba_ray.training.launch",
    "hba_ray.training.sft",
    "hba_ray.models.tiny",
    "hba_ray.predict.heads",
    "alembic.command",
    "mlflow.store.tracking.sqlalchemy_store",
]
TIMES = ("second", "wait_share")
"""Parts of the names of metrics that say how long something took, which no two runs agree on."""


def moments(test: str) -> random.Random:
    """The random moments of a test."""
    return random.Random(f"{SEED} {test}")


@dataclass
class Drivers:
    """Runs a function of a storage in processes of their own, each a group, whose output goes to a file beside the storage.

    Attributes:
        drive: what a process does.
    """

    drive: Callable[[Path], None]
    started: list[ForkServerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, storage: Path) -> ForkServerProcess:
        process = self._context.Process(target=_driven, args=(self.drive, storage, (ready := self._context.Event())))
        process.start()
        self.started.append(process)
        assert ready.wait(PATIENCE_SECONDS), "the server that has imported everything does not fork"
        return process

    def kill(self, storage: Path, seconds: float) -> bool:
        """Starts a driver and kills it so many seconds after there is a storage. False where it was faster, and ended well."""
        driver = self.start(storage)
        wait_until(lambda: storage.exists() or driver.exitcode is not None, pause=0.01)
        driver.join(seconds)
        _kill(driver)
        assert driver.exitcode in (0, -signal.SIGKILL), f"ended with {driver.exitcode}: {said(storage)[-3000:]}"
        wait_until(lambda: not processes(storage))
        return driver.exitcode != 0

    def finish(self, storage: Path) -> None:
        """Runs a driver to its end."""
        driver = self.start(storage)
        driver.join(PATIENCE_SECONDS)
        assert driver.exitcode == 0, f"ended with {driver.exitcode}: {said(storage)[-3000:]}"

    def end(self) -> None:
        for process in self.started:
            _kill(process)


def _kill(process: ForkServerProcess) -> None:
    """Kills the group of a process that has not ended."""
    with suppress(ProcessLookupError):  # it ends just now
        if process.exitcode is None and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _driven(drive: Callable[[Path], None], storage: Path, ready: Event) -> None:
    os.setsid()
    os.environ["RAY_TMPDIR"] = _ray_folder(storage)
    with (storage.parent / f"{storage.name}.said").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        ready.set()
        drive(storage)


def _ray_folder(storage: Path) -> str:
    (folder := storage.parent / f"{storage.name}.ray").mkdir(exist_ok=True)
    return str(folder)


def said(storage: Path) -> str:
    """What all drivers of a storage said, one after the other."""
    return (storage.parent / f"{storage.name}.said").read_text()


def processes(storage: Path) -> list[psutil.Process]:
    """Those that Ray runs for a storage, which have its folder in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == f"{storage}.ray" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets; no process that works in a storage in it survives."""
    folder = Path(tempfile.mkdtemp(prefix="hba"))
    try:
        yield folder
    finally:
        for file in folder.glob("*.ray"):
            for process in processes(file.with_suffix("")):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def scores(storage: Path) -> dict[str, bytes]:
    """Finished evaluation -> the bytes of its scores."""
    return {file.parent.name: file.read_bytes() for file in storage.glob("steps/*/scores.json")}


def assert_done_once(storage: Path) -> None:
    """No step of a storage was finished twice, or begun again after it was."""
    events: dict[str, list[str]] = {}
    lines = [line for run in storage.glob("small-*") for line in ledger(run) if "step" in line]
    for line in sorted(lines, key=lambda line: line["time"]):
        events.setdefault(line["fingerprint"], []).append(line["event"])
    marks = {folder.name.rpartition("-")[2] for folder in (storage / "steps").iterdir() if (folder / "done.json").exists()}
    assert marks and set(events) <= marks
    for known in events.values():
        assert known.count("done") <= 1 and ("done" not in known or "started" not in known[known.index("done") + 1 :]), known


def recorded(storage: Path) -> dict[tuple[str, str, int], float]:
    """(run in MLflow, metric, step) -> value, 0 for a time. All runs are finished and of other names, and no metric has a step twice."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = Counter(run.info.run_name for run in runs)
    assert set(names.values()) == {1}, names
    found: dict[tuple[str, str, int], float] = {}
    for run in runs:
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                key = (str(run.info.run_name), name, point.step)
                assert key not in found, f"{key} twice"
                found[key] = 0.0 if any(part in name for part in TIMES) else point.value
    return found


@dataclass(frozen=True)
class Left:
    """What a finished storage holds.

    Attributes:
        metrics: with the run's name and the step.
        seconds: that its driver took.
    """

    scores: dict[str, bytes]
    metrics: dict[tuple[str, str, int], float]
    seconds: float


def unkilled(drivers: Drivers, storage: Path) -> Left:
    """What the same driver leaves where nobody kills it."""
    driver = drivers.start(storage)
    begun = time.monotonic()
    driver.join(PATIENCE_SECONDS)
    assert driver.exitcode == 0, said(storage)
    return Left(scores(storage), recorded(storage), time.monotonic() - begun)


def survive(drivers: Drivers, whole: Left, folder: Path, kills: int, seconds: Callable[[], float], *, kind: str, in_a_row: int = 3) -> None:
    """Kills drivers so many times, up to `in_a_row` in one storage, and holds what the next one leaves against an unkilled run.

    Args:
        seconds: gives the moment of the next kill, counted from the start of the storage or of the driver.
        kind: the class under which kills are counted.
    """
    faults, tally, number = list[str](), TALLIES[kind], 0
    while kills > 0:
        storage, killed_at, number = folder / f"s{number}", list[float](), number + 1
        try:
            while len(killed_at) < min(in_a_row, kills) and drivers.kill(storage, moment := seconds()):
                killed_at.append(moment)
            drivers.finish(storage)
            assert_done_once(storage)
            assert scores(storage) == whole.scores
            assert recorded(storage) == pytest.approx(whole.metrics, rel=1e-6, abs=1e-9)
        except AssertionError as error:
            faults.append(
                f"{error}\n{storage.name}, killed after {', '.join(f'{moment:.2f}' for moment in killed_at)} s: {_last_line(error)}"
            )
        tally.tried += len(killed_at)
        kills -= len(killed_at)
    tally.faults |= {fault.splitlines()[-1] for fault in faults}
    assert not faults, "\n\n".join([f"HBA_SEED={SEED}", *faults])


def _last_line(error: AssertionError) -> str:
    """The last that is not indented: of what a driver said, its error."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip() and not line.startswith(" ")), "")

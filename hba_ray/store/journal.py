"""What a run has to say goes to a file beside its results first, and from there to MLflow.

So a record outlives whoever writes it: a killed driver loses nothing, a server that is away gets
everything when it is back, and trials on other machines never talk to MLflow. A journal can be taken
to MLflow any number of times; what is there already is not written twice.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.store.folders import append_line, read_lines
from hba_ray.store.mlflow import JOURNAL, MlflowTracker, Point, Status, check_finite, csv_text, in_haste

FILE = "tracking.jsonl"
"""The journal's name in a run's folder."""
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts to reach a server that is away."""


class JournalTracker:
    """A tracker that writes to a file. Started again on the same file, it goes on, and repeats no step of a metric."""

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self._lock = file, threading.Lock()
        lines = read_lines(file)
        self._known = {(name, line["step"]) for line in lines if line["do"] == "metrics" for name in line["metrics"]}
        if not any(line["do"] == "journal" for line in lines):
            self._add("journal", id=uuid.uuid4().hex)

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self._add("start", name=name, params=dict(params), tags=dict(tags))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        check_finite(metrics, step)
        new = {name: float(value) for name, value in metrics.items() if (name, step) not in self._known}
        if new:
            self._known |= {(name, step) for name in new}
            self._add("metrics", metrics=new, step=step, milliseconds=time.time_ns() // 10**6)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self._add("artifact", path=str(path.absolute()), folder=folder)

    def log_text(self, text: str, file: str) -> None:
        self._add("text", text=text, file=file)

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        self.log_text(csv_text(rows), file)

    def log_input(self, name: str, digest: str, source: str, context: str = "train") -> None:
        self._add("input", name=name, digest=digest, source=source, context=context)

    def describe(self, text: str) -> None:
        """Markdown that MLflow shows on the record's page, in place of what was there."""
        self._add("describe", text=text)

    def end(self, status: Status = "FINISHED") -> None:
        self._add("end", status=status)

    def _add(self, do: str, **facts: Any) -> None:
        with self._lock:
            append_line(self.file, {"do": do, **facts}, durable=False)


@dataclass(frozen=True)
class Record:
    """How a journal appears in MLflow, in place of what its own `start` says."""

    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass
class _Way:
    """One journal on its way to MLflow: how far it has come."""

    file: Path
    tracker: MlflowTracker
    record: Record | None
    offset: int = 0
    started: bool = False
    journal: str = ""
    outcome: Status | None = None
    """What the driver says it came to; else what the journal says."""
    ended: Status | None = None


@dataclass
class _News:
    """What a journal says since the last look, each thing once."""

    start: Record | None = None
    points: list[Point] = field(default_factory=list)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[tuple[str, str], None] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    description: str | None = None
    status: Status | None = None


class Forwarder:
    """Takes journals to MLflow, in a thread, for as long as its block lasts.

    Args:
        say: takes a line for people: once when MLflow does not answer, once when it does again.
    """

    def __init__(self, mlflow: MlflowTracker, say: Callable[[str], None]):
        self._mlflow, self._say = mlflow, say
        self._ways: dict[Path, _Way] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._away = False
        self._trouble: HbaError | None = None

    def add(self, journal: Path, record: Record | None = None) -> None:
        """Forwards a journal from now on, from its first line."""
        with self._lock:
            self._ways.setdefault(journal, _Way(journal, self._mlflow.another(), record))

    def end(self, journal: Path, status: Status) -> None:
        """Closes the record of a journal whose writer may not have come to its end."""
        with self._lock:
            if journal in self._ways:
                self._ways[journal].outcome = status

    def run_id(self, journal: Path) -> str:
        """MLflow's id of a journal's record."""
        return self._ways[journal].tracker.run_id

    def flush(self) -> None:
        """Takes everything that is there to MLflow.

        Raises:
            EnvironmentMissing: MLflow does not answer; nothing is lost.
        """
        with self._lock:
            for way in self._ways.values():
                _forward(way)

    def run(self) -> None:
        pause = POLL_SECONDS
        while not self._stop.wait(pause):
            pause = POLL_SECONDS if self._try() else min(2 * pause, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        self._stop.set()

    def last_try(self) -> None:
        """Says where the rest waits, if MLflow still does not answer."""
        try:
            self.flush()
        except EnvironmentMissing as away:
            files = ", ".join(str(way.file) for way in self._ways.values() if way.offset < _size(way.file))
            self._say(f"{away.what}; what it has missed waits in {files} and is sent when the same command runs again")

    def _try(self) -> bool:
        try:
            self.flush()
        except EnvironmentMissing as away:
            if not self._away:
                self._say(f"{away.what}; the record goes on in files and is sent later")
            self._away = True
            return False
        if self._away:
            self._say("MLflow answers again; what it has missed is sent")
        self._away = False
        return True


@contextmanager
def forwarding(mlflow: MlflowTracker, say: Callable[[str], None]) -> Iterator[Forwarder]:
    """A forwarder for the time of the block; at its end everything has been sent, or it is said where it waits."""
    forwarder = Forwarder(mlflow, say)
    thread = threading.Thread(target=forwarder.run, name="forward to MLflow", daemon=True)
    with in_haste():
        thread.start()
        try:
            yield forwarder
        finally:
            forwarder.close()
            thread.join()
            forwarder.last_try()


def _forward(way: _Way) -> None:
    news, offset = _read(way)
    if news.start is not None:
        record = way.record or news.start
        way.tracker.start(record.name, record.params, {**record.tags, JOURNAL: way.journal})
        way.started, way.ended = True, None
    if not way.started:
        return
    way.tracker.log_points(news.points)
    for entry in news.inputs.values():
        way.tracker.log_input(**entry)
    for path, folder in news.artifacts:
        if Path(path).exists():  # a step's folder may have been deleted since
            way.tracker.log_artifact(Path(path), folder)
    for file, text in news.texts.items():
        way.tracker.log_text(text, file)
    if news.description is not None:
        way.tracker.describe(news.description)
    status = way.outcome or news.status
    if status and status != way.ended:
        way.tracker.end(status)
        way.ended = status
    way.offset = offset


def _read(way: _Way) -> tuple[_News, int]:
    """The whole lines since the last look, and where they end."""
    news = _News()
    if _size(way.file) <= way.offset:
        return news, way.offset
    with way.file.open("rb") as file:
        file.seek(way.offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.splitlines():
        try:
            facts = json.loads(line)
        except ValueError:
            continue  # its writer died within the line
        _take(facts, news, way)
    return news, way.offset + len(whole)


def _take(facts: dict[str, Any], news: _News, way: _Way) -> None:
    do = facts.pop("do")
    if do == "journal":
        way.journal = facts["id"]
    elif do == "start":
        news.start, news.status = Record(**facts), None
    elif do == "metrics":
        news.points += [Point(name, value, facts["step"], facts["milliseconds"]) for name, value in facts["metrics"].items()]
    elif do == "input":
        news.inputs[facts["name"]] = facts
    elif do == "artifact":
        news.artifacts[facts["path"], facts["folder"]] = None
    elif do == "text":
        news.texts[facts["file"]] = facts["text"]
    elif do == "describe":
        news.description = facts["text"]
    elif do == "end":
        news.status = facts["status"]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0

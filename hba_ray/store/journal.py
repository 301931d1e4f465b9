"""A run's journal: parameters, metrics and files of its record, a JSON object a line, and the way from there to MLflow.

A run writes only to its journal, a file beside its results; the driver forwards journals to MLflow. So a killed
driver loses nothing, a server that is away gets everything when it is back, and trials on other machines never
talk to MLflow. A journal can be forwarded any number of times: what MLflow has already is not written twice.
"""

from __future__ import annotations

import csv
import io
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hba_ray.errors import EnvironmentMissing, TrainingError
from hba_ray.escaping import csv_cell
from hba_ray.store.folders import append_line, object_in, read_lines
from hba_ray.store.mlflow import JOURNAL, MlflowTracker, Point, Status, short_timeouts

FILE = "tracking.jsonl"
"""The journal's name in a run's folder."""
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""Longest pause between two attempts to reach a server that is away; pauses double until then."""


class JournalTracker:
    """Writes a run's record to a file. Call `start` first and `end` last.

    Started again on the same file it goes on, and a metric that has a value at a step already keeps it.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self._lock = file, threading.Lock()
        lines = read_lines(file)
        self._known = {(name, line["step"]) for line in lines if line.get("do") == "metrics" for name in line["metrics"]}
        if not any(line.get("do") == "journal" for line in lines):
            self._add("journal", id=uuid.uuid4().hex)

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begins or continues the record; `store.mlflow.standard_tags` makes the tags."""
        self._add("start", name=name, params=dict(params), tags=dict(tags))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics at an optimiser step.

        Raises:
            TrainingError: one of them is not a finite number.
        """
        check_finite(metrics, step)
        new = {name: float(value) for name, value in metrics.items() if (name, step) not in self._known}
        if new:
            self._known |= {(name, step) for name in new}
            self._add("metrics", metrics=new, step=step, milliseconds=time.time_ns() // 10**6)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Has a file or a folder copied into `folder` of the record; its path is noted as seen from the journal, so both may be moved."""
        self._add("artifact", path=os.path.relpath(path, self.file.parent), folder=folder)

    def log_text(self, text: str, file: str) -> None:
        """Records a text as a file, in place of one of that name."""
        self._add("text", text=text, file=file)

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Records rows as a CSV file, in place of one of that name."""
        self.log_text(csv_text(rows), file)

    def log_input(self, name: str, digest: str, source: str, context: str = "train") -> None:
        """Records which data was read: its name, a digest of its content, where it lies and what for."""
        self._add("input", name=name, digest=digest, source=source, context=context)

    def describe(self, text: str) -> None:
        """Records Markdown for the record's page, in place of what was there."""
        self._add("describe", text=text)

    def end(self, status: Status = "FINISHED") -> None:
        """Closes the record."""
        self._add("end", status=status)

    def _add(self, do: str, **facts: Any) -> None:
        with self._lock:
            append_line(self.file, {"do": do, **facts}, durable=False)


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Refuses NaN and infinities by name, since a chart would drop them silently.

    Raises:
        TrainingError: a metric is not a finite number.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"metric '{name}'", f"is {value} at step {step}", "lower the learning rate, or look at the rows of this step"
            )


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as CSV; columns in order of first appearance, empty where a row lacks one.

    >>> csv_text([{"a": 1}, {"a": 2, "b": "x"}])
    'a,b\\n1,\\n2,x\\n'
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


@dataclass(frozen=True)
class Record:
    """Name, parameters and tags under which a journal appears in MLflow."""

    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass
class _Forwarded:
    """A journal and how far it has been forwarded.

    Attributes:
        record: what to write in place of what the journal's own `start` says.
        offset: bytes of the file that MLflow has.
        outcome: how the run ended, as the driver says; otherwise the journal says it.
        ended: the status that MLflow has.
    """

    file: Path
    tracker: MlflowTracker
    record: Record | None
    offset: int = 0
    started: bool = False
    journal: str = ""
    outcome: Status | None = None
    ended: Status | None = None


@dataclass
class _News:
    """What was added to a journal since it was last read; of texts, inputs and files that were replaced, the last."""

    start: Record | None = None
    points: list[Point] = field(default_factory=list)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[tuple[str, str], None] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    description: str | None = None
    status: Status | None = None


class Forwarder:
    """Forwards journals to MLflow again and again; see `forwarding`, which runs it in a thread.

    Args:
        say: takes a line for people, once when MLflow does not answer and once when it does again.
    """

    def __init__(self, mlflow: MlflowTracker, say: Callable[[str], None]):
        self._mlflow, self._say = mlflow, say
        self._journals: dict[Path, _Forwarded] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._away = False

    def add(self, journal: Path, record: Record | None = None) -> None:
        """Forwards a journal from now on, from its first line on; its file may come later."""
        with self._lock:
            self._journals.setdefault(journal, _Forwarded(journal, self._mlflow.another(), record))

    def end(self, journal: Path, status: Status) -> None:
        """Closes the record of a journal, whose writer may have died before it could."""
        with self._lock:
            if journal in self._journals:
                self._journals[journal].outcome = status

    def run_id(self, journal: Path) -> str:
        """MLflow's id of a journal's record."""
        return self._journals[journal].tracker.run_id

    def flush(self) -> None:
        """Forwards all that the journals hold by now.

        Raises:
            EnvironmentMissing: MLflow does not answer; nothing is lost.
        """
        with self._lock:
            for source in self._journals.values():
                _forward(source)

    def run(self) -> None:
        """Forwards until `close` is called."""
        pause = POLL_SECONDS
        while not self._stop.wait(pause):
            pause = POLL_SECONDS if self._try() else min(2 * pause, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        self._stop.set()

    def last_try(self) -> None:
        """Forwards what is left, or says in which files it waits."""
        try:
            self.flush()
        except EnvironmentMissing as away:
            files = ", ".join(str(source.file) for source in self._journals.values() if source.offset < _size(source.file))
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
    """A forwarder that runs for the time of the block; at its end all has been sent, or people are told where it waits."""
    forwarder = Forwarder(mlflow, say)
    thread = threading.Thread(target=forwarder.run, name="forward to MLflow", daemon=True)
    with short_timeouts():
        thread.start()
        try:
            yield forwarder
        finally:
            forwarder.close()
            thread.join()
            forwarder.last_try()


def _forward(source: _Forwarded) -> None:
    news, offset = _read(source)
    if news.start is not None:
        record = source.record or news.start
        source.tracker.start(record.name, record.params, {**record.tags, JOURNAL: source.journal}, news.points)
        source.started, source.ended = True, None
    elif source.started:
        source.tracker.log_points(news.points)
    else:
        return
    for entry in news.inputs.values():
        source.tracker.log_input(**entry)
    for path, folder in news.artifacts:
        file = source.file.parent / path
        if file.exists():  # a step's folder may have been deleted since
            source.tracker.log_artifact(file, folder)
    for file, text in news.texts.items():
        source.tracker.log_text(text, file)
    if news.description is not None:
        source.tracker.describe(news.description)
    status = source.outcome or news.status
    if status and status != source.ended:
        source.tracker.end(status)
        source.ended = status
    source.offset = offset


def _read(source: _Forwarded) -> tuple[_News, int]:
    """What the whole lines behind the offset say, and the offset behind them."""
    news = _News()
    if _size(source.file) <= source.offset:
        return news, source.offset
    with source.file.open("rb") as file:
        file.seek(source.offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.splitlines():
        facts = object_in(line)
        if facts is not None and "do" in facts:  # otherwise its writer died within the line
            _take(facts, news, source)
    return news, source.offset + len(whole)


def _take(facts: dict[str, Any], news: _News, source: _Forwarded) -> None:
    do = facts.pop("do")
    if do == "journal":
        source.journal = facts["id"]
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

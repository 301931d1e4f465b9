"""The record of a run: parameters, metrics, tables and artifacts, written by the driver alone.

A run is known by its name and its fingerprint. The same spec started again continues its record, and
what is already there is not written twice. A record whose driver died is closed as KILLED.
MLflow's global active run is never touched, so several trackers can live in one process.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import hba_ray
from hba_ray.environ import variables
from hba_ray.errors import EnvironmentMissing, HbaError, TrainingError
from hba_ray.specs.compute import TrackingSpec
from hba_ray.store.provenance import Process, ray_job, source, user

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

FINGERPRINT, SEED, OWNER, CHANGED = "hba.fingerprint", "hba.seed", "hba.owner", "hba.changed_params"
"""Tags: what the run computes, its seed, the process that writes it, parameters that differ since it was begun."""
JOURNAL, PARENT, NOTE = "hba.journal", "mlflow.parentRunId", "mlflow.note.content"
"""Tags: the file that the record is made from, known to be in one hand; the record of its sweep; text for its page."""
PARAM_CHARACTERS, TAG_CHARACTERS, DIGEST_CHARACTERS, BATCH, POINTS = 6000, 8000, 36, 100, 1000
"""MLflow's limits: of a parameter, a tag, a data set's digest; parameters and metrics in one request."""
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""How long the first request to a server may take; MLflow's own patience is minutes."""


OPENING_SECONDS = 60.0
"""How long another process that opens the store at the same time is waited for."""


class Point(NamedTuple):
    """A metric's value at a step, and when it was measured: milliseconds since 1970."""

    name: str
    value: float
    step: int
    milliseconds: int


class Tracker(Protocol):
    """Where a run is recorded. Call `start` first and `end` last."""

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begins the record, or continues that of the same name and `hba.fingerprint` (see `standard_tags`)."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records `metrics` at `step`; a metric that already has this step keeps its value.

        Raises:
            TrainingError: one of them is not a finite number.
        """
        ...

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copies a file or a folder into `folder` of the record."""
        ...

    def log_text(self, text: str, file: str) -> None:
        """Writes `text` as an artifact, replacing one of that name."""
        ...

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Writes `rows` as a CSV artifact, replacing one of that name."""
        ...

    def log_input(self, name: str, digest: str, source: str, context: str = "train") -> None:
        """Records which data was read: its name, a hash of its content, where it lies, and what for."""
        ...

    def end(self, status: Status = "FINISHED") -> None:
        """Closes the record."""
        ...


def standard_tags(fingerprint: str, seed: int) -> dict[str, str]:
    """The tags of every run: fingerprint, seed, version, user; the Ray job and the source commit where there are such."""
    commit, dirty = source()
    tags = {
        FINGERPRINT: fingerprint,
        SEED: str(seed),
        "hba.version": hba_ray.__version__,
        "mlflow.user": user(),
        "mlflow.source.name": "hba",
    }
    if (job := ray_job()) is not None:
        tags |= {"hba.ray_job": job, "mlflow.source.type": "JOB"}
    return tags if commit is None else tags | {"mlflow.source.git.commit": commit, "hba.dirty": str(dirty).lower()}


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Refuses NaN and infinities, by name: a chart would drop them silently."""
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
    writer.writerows(rows)
    return text.getvalue()


@dataclass
class MemoryTracker:
    """A tracker that only remembers; for tests, and for runs that nobody looks at again."""

    name: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    texts: dict[str, str] = field(default_factory=dict)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    inputs: list[tuple[str, str, str, str]] = field(default_factory=list)
    status: Status | None = None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self.name, self.params, self.tags = name, dict(params), dict(tags)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        check_finite(metrics, step)
        for name, value in metrics.items():
            self.metrics[name].setdefault(step, float(value))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append((path, folder))

    def log_text(self, text: str, file: str) -> None:
        self.texts[file] = text

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        self.log_text(csv_text(rows), file)

    def log_input(self, name: str, digest: str, source: str, context: str = "train") -> None:
        self.inputs.append((name, digest, source, context))

    def end(self, status: Status = "FINISHED") -> None:
        self.status = status


class MlflowTracker:
    """A run in MLflow: an sqlite store in the storage folder, or a server.

    Args:
        spec: `mlflow` is the tracking URI; None is `<storage>/mlflow.db` with artifacts in `<storage>/mlartifacts`.
        storage: `compute.storage`.

    Raises:
        EnvironmentMissing: the store cannot be opened; a server that does not answer is reported within seconds.
    """

    def __init__(self, spec: TrackingSpec, storage: Path):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs, with its traceback, what it raises
        self._steps: dict[str, set[int]] = {}
        self._run_id: str | None = None
        self._resumed = False
        self._storage = storage.absolute()
        self.uri = spec.mlflow or f"sqlite:///{self._storage / 'mlflow.db'}"
        with self._answers(), self._alone(), variables(QUICK):
            self._client = MlflowClient(self.uri)
            self._experiment = self._open(spec.experiment)

    def another(self) -> MlflowTracker:
        """A tracker of another run in the same store."""
        other = copy(self)
        other._run_id, other._resumed, other._steps = None, False, {}
        return other

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        if self._run_id is None:
            raise HbaError("tracking", "the run has not been started", "call start() first")
        return self._run_id

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        mine = Process.current()
        all_tags = {key: value[:TAG_CHARACTERS] for key, value in tags.items()} | {OWNER: mine.to_text()}
        with self._answers():
            runs = self._close_dead(name, tags, mine)
            self._resumed, self._steps = bool(runs), {}
            if runs:
                self._run_id = runs[0].info.run_id
                self._client.update_run(self.run_id, status="RUNNING")
            else:
                self._run_id = self._client.create_run(self._experiment, run_name=name, tags=all_tags).info.run_id
            for key, value in all_tags.items() if runs else ():
                self._client.set_tag(self.run_id, key, value)
            self._log_params({key: str(value) for key, value in params.items()}, runs[0].data.params if runs else {})
        self.log_text(json.dumps(dict(params), indent=2, default=str), "params.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        check_finite(metrics, step)
        now = time.time_ns() // 10**6
        self.log_points([Point(name, float(value), step, now) for name, value in metrics.items()])

    def log_points(self, points: Sequence[Point]) -> None:
        """Many metrics at once; of those with the same name and step the first is kept."""
        from mlflow.entities import Metric

        with self._answers():
            new = {(point.name, point.step): point for point in reversed(points) if point.step not in self._recorded(point.name)}
            metrics = [Metric(point.name, point.value, point.milliseconds, point.step) for point in reversed(new.values())]
            for start in range(0, len(metrics), POINTS):
                self._send(metrics[start : start + POINTS])

    def _send(self, metrics: list[Metric]) -> None:
        heard = False
        try:
            self._client.log_batch(self.run_id, metrics=metrics)
            heard = True
        finally:
            if not heard:  # perhaps it was, and only the answer was lost: MLflow is asked for what it has
                self._resumed, self._steps = True, {}
        for metric in metrics:
            self._recorded(metric.key).add(metric.step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        with self._answers():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder or path.name)
            else:
                self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_text(self, text: str, file: str) -> None:
        with self._answers():
            self._client.log_text(self.run_id, text, file)

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        self.log_text(csv_text(rows), file)

    def log_input(self, name: str, digest: str, source: str, context: str = "train") -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:DIGEST_CHARACTERS], source_type="local", source=json.dumps({"uri": source}))
        with self._answers():
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def describe(self, text: str) -> None:
        """Markdown for the record's page, shortened to what a tag holds."""
        with self._answers():
            self._client.set_tag(self.run_id, NOTE, text[:TAG_CHARACTERS])

    def end(self, status: Status = "FINISHED") -> None:
        with self._answers():
            self._client.set_terminated(self.run_id, status)

    def _open(self, experiment: str) -> str:
        """The experiment's id; it is made where it is missing."""
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            artifacts = (self._storage / "mlartifacts").as_uri() if self._is_file else None
            return self._client.create_experiment(experiment, artifact_location=artifacts)
        if found.lifecycle_stage == "deleted":
            raise EnvironmentMissing("tracking.experiment", f"'{experiment}' was deleted in MLflow", "restore it, or choose another name")
        return found.experiment_id

    def _close_dead(self, name: str, tags: Mapping[str, str], mine: Process) -> list[Run]:
        """Closes the records whose driver is dead.

        Returns:
            The records to continue, the newest first: of this journal, or of this name, fingerprint and
            parent and not in the hands of another machine.
        """
        resumable: list[Run] = []
        wanted = [f"attributes.run_name = '{name}'", "attributes.status = 'RUNNING'"]
        runs = [
            run for which in wanted for run in self._client.search_runs([self._experiment], which, order_by=["attributes.start_time DESC"])
        ]
        for run in {run.info.run_id: run for run in reversed(runs)}.values():
            same = run.info.run_name == name and _are_one(run.data.tags, tags)
            owner = Process.from_text(run.data.tags.get(OWNER, ""))
            mine_now = same and JOURNAL in tags and run.data.tags.get(JOURNAL) == tags[JOURNAL]
            if run.info.status == "RUNNING" and owner != mine and not mine_now:
                if owner is None or owner.host != mine.host:
                    continue  # whether that driver still lives cannot be seen from here
                if owner.is_alive():
                    if same:
                        way_out = "wait for it, end it, or give this experiment another name"
                        raise HbaError("tracking", f"process {owner.pid} is running '{name}' right now", way_out)
                    continue
                self._client.set_terminated(run.info.run_id, "KILLED")
            if same:
                resumable.append(run)
        return sorted(resumable, key=lambda run: run.info.start_time, reverse=True)

    def _log_params(self, params: Mapping[str, str], known: Mapping[str, str]) -> None:
        """Adds the new ones. MLflow's parameters cannot change: what differs goes into a tag."""
        from mlflow.entities import Param

        short = {key: value if len(value) <= PARAM_CHARACTERS else value[: PARAM_CHARACTERS - 1] + "…" for key, value in params.items()}
        new = [Param(key, value) for key, value in short.items() if key not in known]
        for start in range(0, len(new), BATCH):
            self._client.log_batch(self.run_id, params=new[start : start + BATCH])
        changed = {key: value for key, value in short.items() if known.get(key, value) != value}
        if changed:
            self._client.set_tag(self.run_id, CHANGED, json.dumps(changed, ensure_ascii=False)[:TAG_CHARACTERS])

    def _recorded(self, name: str) -> set[int]:
        """Steps that a metric already has; asked of MLflow once a metric, and only where the run was continued."""
        if name not in self._steps:
            history = self._client.get_metric_history(self.run_id, name) if self._resumed else []
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]

    @property
    def _is_file(self) -> bool:
        return self.uri.startswith("sqlite:")

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns MLflow's failures into ours."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as cause:
            reason = str(cause).splitlines()[0][:300]
            way_out = (
                "make room, or see that its folder can be written and that no other program holds it; moved away, it is begun anew"
                if self._is_file
                else "check tracking.mlflow and that the server runs"
            )
            raise EnvironmentMissing("tracking.mlflow", f"MLflow at {self.uri} does not do its work: {reason}", way_out) from cause

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets one driver at a time make the tables of a new store; one that could not be made whole is taken away again."""
        if not self._is_file:
            yield
            return
        from filelock import FileLock

        self._storage.mkdir(parents=True, exist_ok=True)
        file = Path(self.uri.removeprefix("sqlite:///"))
        with FileLock(self._storage / "mlflow.db.lock", timeout=OPENING_SECONDS):
            is_half_made = not file.exists()
            try:
                yield
                is_half_made = False
            finally:
                if is_half_made:
                    file.unlink(missing_ok=True)


def _are_one(known: Mapping[str, str], tags: Mapping[str, str]) -> bool:
    """Whether two records of a name say the same: one fingerprint, one parent."""
    return bool(tags.get(FINGERPRINT)) and all(known.get(tag) == tags.get(tag) for tag in (FINGERPRINT, PARENT))


def in_haste() -> AbstractContextManager[None]:
    """For the time of the block, a server that does not answer is given up within seconds."""
    return variables(QUICK)

"""The record of a run in MLflow: parameters, metrics, texts and files. `store/journal.py` writes it from the run's journal.

A record is found again by the run's name and fingerprint. The same spec started again continues its record,
and what is there already is not written twice. A record whose driver died is closed as KILLED.
MLflow's global active run is never touched, so several records can be written in one process.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import hba_ray
from hba_ray.environ import variables
from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.specs.reading.secrets import shown, without_secrets
from hba_ray.specs.sections.compute import TrackingSpec
from hba_ray.store.folders import MLFLOW, sqlite_uri
from hba_ray.store.mlflow_store import ARTIFACTS, follow_the_storage, make_store
from hba_ray.store.provenance import Process, ray_job, source, user

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

FINGERPRINT, SEED, OWNER, CHANGED = "hba.fingerprint", "hba.seed", "hba.owner", "hba.changed_params"
"""Tags: fingerprint and seed of the run, the process that writes the record, and parameters that changed since it was begun."""
JOURNAL, PARENT, NOTE = "hba.journal", "mlflow.parentRunId", "mlflow.note.content"
"""Tags: id of the journal that the record is made from; id of the sweep's record above it; text for its page."""
PARAM_CHARACTERS, TAG_CHARACTERS, DIGEST_CHARACTERS, BATCH, POINTS = 6000, 8000, 36, 100, 1000
"""MLflow's limits: letters of a parameter, a tag and a data set's digest; parameters and metrics in one request."""
SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Variables of MLflow: attempts and seconds of a request. By default MLflow tries for minutes."""
OPENING_SECONDS = 60.0
"""How long to wait for another process that is opening the same sqlite store."""


class Point(NamedTuple):
    """A metric's value at an optimiser step, and when it was measured, in milliseconds since 1970."""

    name: str
    value: float
    step: int
    milliseconds: int


def standard_tags(fingerprint: str, seed: int) -> dict[str, str]:
    """The tags of every run: fingerprint, seed, version and user, and where there are such, the Ray job and the source's commit."""
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


class MlflowTracker:
    """Writes the record of one run into an sqlite store in the storage folder, or to a server. Call `start` first, `end` last.

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
        self._below: dict[str, dict[str, list[Run]]] = {}
        self._run_id: str | None = None
        self._resumed = False
        self._storage = storage.absolute()
        self.uri = spec.uri or sqlite_uri(self._storage / MLFLOW)
        self._stated = spec.mlflow or self.uri
        with self._answers(), self._alone(), short_timeouts():
            if (file := self._file) is not None:
                make_store(file)
            if spec.mlflow is None:
                follow_the_storage(self._storage / MLFLOW, self._storage / ARTIFACTS)
            self._client = MlflowClient(self.uri)
            self._experiment = self._open(spec.experiment)

    def another(self) -> MlflowTracker:
        """A tracker for another run in the same store, through the same connection."""
        other = copy(self)
        other._run_id, other._resumed, other._steps = None, False, {}
        return other

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        if self._run_id is None:
            raise HbaError("tracking", "the run has not been started", "call start() first")
        return self._run_id

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        """Begins the record, or continues that of the same journal, or of the same name, fingerprint and sweep.

        Args:
            points: values of metrics that are there already; see `log_points`.

        Raises:
            HbaError: another living process of this machine writes it.
            EnvironmentMissing: MLflow does not answer; so do all methods below.
        """
        mine = Process.current()
        all_tags = {key: value[:TAG_CHARACTERS] for key, value in tags.items()} | {OWNER: mine.to_text()}
        with self._answers(), self._asks_again(tags.get(PARENT)):
            runs = self._close_dead(name, tags, mine)
            self._resumed, self._steps = bool(runs), {}
            if runs:
                self._run_id = runs[0].info.run_id
                self._client.update_run(self.run_id, status="RUNNING")
            else:
                self._run_id = self._client.create_run(self._experiment, run_name=name, tags=all_tags).info.run_id
            for key, value in all_tags.items() if runs else ():
                self._client.set_tag(self.run_id, key, value)
            texts = {key: str(value) for key, value in params.items()}
            self._send(self._new_params(texts, runs[0].data.params if runs else {}), self._new_metrics(points))
        if runs or any(len(text) > PARAM_CHARACTERS for text in texts.values()):  # MLflow's own cannot change, nor be long
            self.log_text(json.dumps(dict(params), indent=2, default=str), "params.json")

    def log_points(self, points: Sequence[Point]) -> None:
        """Adds values of metrics. A metric that has a value at a step already keeps it."""
        with self._answers():
            self._send([], self._new_metrics(points))

    def _new_metrics(self, points: Sequence[Point]) -> list[Metric]:
        """The first value of each metric at each step at which the record has none."""
        from mlflow.entities import Metric

        new = {(point.name, point.step): point for point in reversed(points) if point.step not in self._recorded(point.name)}
        return [Metric(point.name, point.value, point.milliseconds, point.step) for point in reversed(new.values())]

    def _send(self, params: list[Param], metrics: list[Metric]) -> None:
        """Adds parameters and values of metrics, in as few requests as MLflow's limits allow."""
        while params or metrics:
            room = POINTS - len(params[:BATCH])
            self._send_batch(params[:BATCH], metrics[:room])
            params, metrics = params[BATCH:], metrics[room:]

    def _send_batch(self, params: list[Param], metrics: list[Metric]) -> None:
        heard = False
        try:
            self._client.log_batch(self.run_id, metrics=metrics, params=params)
            heard = True
        finally:
            if not heard:  # perhaps MLflow got it and only its answer was lost: next time it is asked what it has
                self._resumed, self._steps = True, {}
        for metric in metrics:
            self._recorded(metric.key).add(metric.step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copies a file or a folder into `folder` of the record's artifacts."""
        with self._answers():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder or path.name)
            else:
                self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_text(self, text: str, file: str) -> None:
        """Writes a text as an artifact, in place of one of that name."""
        with self._answers():
            self._client.log_text(self.run_id, text, file)

    def log_input(self, name: str, digest: str, source: str, context: str = "train") -> None:
        """Records which data was read: its name, a digest of its content, where it lies and what for."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:DIGEST_CHARACTERS], source_type="local", source=json.dumps({"uri": source}))
        with self._answers():
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def describe(self, text: str) -> None:
        """Shows Markdown on the record's page, cut to what a tag holds, in place of what was there."""
        with self._answers():
            self._client.set_tag(self.run_id, NOTE, text[:TAG_CHARACTERS])

    def end(self, status: Status = "FINISHED") -> None:
        """Closes the record."""
        with self._answers():
            self._client.set_terminated(self.run_id, status)

    def _open(self, experiment: str) -> str:
        """The id of an MLflow experiment, which is made where it is missing."""
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            artifacts = (self._storage / ARTIFACTS).as_uri() if self._file is not None else None
            return self._client.create_experiment(experiment, artifact_location=artifacts)
        if found.lifecycle_stage == "deleted":
            raise EnvironmentMissing("tracking.experiment", f"'{experiment}' was deleted in MLflow", "restore it, or choose another name")
        return found.experiment_id

    def _close_dead(self, name: str, tags: Mapping[str, str], mine: Process) -> list[Run]:
        """Closes records whose driver is dead.

        Returns:
            The records to continue, the newest first: those of this journal, and those of this name, fingerprint and
            sweep which no other machine may be writing.
        """
        resumable: list[Run] = []
        for run in self._candidates(name, tags.get(PARENT)):
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

    def _candidates(self, name: str, parent: str | None) -> list[Run]:
        """The records that a new one of this name may be, and those of drivers that may be dead; the oldest first.

        Below a sweep's record they are looked up once for all trials: its driver is the only one who begins records there, and dead ones
        were closed when it began its own.
        """
        if parent is None or self._run_id is not None:
            wanted = [f"attributes.run_name = '{name}'", "attributes.status = 'RUNNING'"]
            found = [run for which in wanted for run in self._search(which)]
            return list({run.info.run_id: run for run in reversed(found)}.values())
        if parent not in self._below:
            below = self._below.setdefault(parent, {})
            for run in reversed(list(self._search(f"tags.`{PARENT}` = '{parent}'"))):
                below.setdefault(run.info.run_name or "", []).append(run)
        return self._below[parent].get(name, [])

    def _search(self, which: str) -> Iterator[Run]:
        """The records of this experiment for which a condition holds, the newest first."""
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self._experiment], which, order_by=["attributes.start_time DESC"], page_token=token or None)
            yield from page
            token = page.token or None

    @contextmanager
    def _asks_again(self, parent: str | None) -> Iterator[None]:
        """Forgets, where the block fails, which records are below a sweep's: perhaps one was begun and only the answer was lost."""
        heard = False
        try:
            yield
            heard = True
        finally:
            if not heard and parent is not None:
                self._below.pop(parent, None)

    def _new_params(self, params: Mapping[str, str], known: Mapping[str, str]) -> list[Param]:
        """Parameters that the record does not have. MLflow's parameters cannot change, so new values go into a tag."""
        from mlflow.entities import Param

        short = {key: value if len(value) <= PARAM_CHARACTERS else value[: PARAM_CHARACTERS - 1] + "…" for key, value in params.items()}
        changed = {key: value for key, value in short.items() if known.get(key, value) != value}
        if changed:
            self._client.set_tag(self.run_id, CHANGED, json.dumps(changed, ensure_ascii=False)[:TAG_CHARACTERS])
        return [Param(key, value) for key, value in short.items() if key not in known]

    def _recorded(self, name: str) -> set[int]:
        """Steps at which a metric has a value. MLflow is asked once a metric, and only where the record was continued."""
        if name not in self._steps:
            history = self._client.get_metric_history(self.run_id, name) if self._resumed else []
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]

    @property
    def _file(self) -> Path | None:
        """The file of the store, where it is an sqlite file."""
        from sqlalchemy import make_url

        address = make_url(self.uri) if self.uri.startswith("sqlite") else None
        named = "" if address is None or address.database == ":memory:" else address.database or ""
        return Path(named) if named else None

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns failures of MLflow and of its store into EnvironmentMissing."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as cause:
            reason = without_secrets(str(cause).splitlines()[0], self._stated)[:300]
            way_out = (
                "make room, or see that its folder can be written and that no other program holds it; moved away, it is begun anew"
                if self._file is not None
                else "check tracking.mlflow and that the server runs"
            )
            raise EnvironmentMissing(
                "tracking.mlflow", f"MLflow at {shown(self._stated)} does not do its work: {reason}", way_out
            ) from cause

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets one process at a time make the tables of a new sqlite store."""
        if self._file is None:
            yield
            return
        from filelock import FileLock

        self._storage.mkdir(parents=True, exist_ok=True)
        with FileLock(self._storage / f"{MLFLOW}.lock", timeout=OPENING_SECONDS):
            yield


def _are_one(known: Mapping[str, str], tags: Mapping[str, str]) -> bool:
    """Whether two records of the same name are one: the same fingerprint, below the same sweep."""
    return bool(tags.get(FINGERPRINT)) and all(known.get(tag) == tags.get(tag) for tag in (FINGERPRINT, PARENT))


def short_timeouts() -> AbstractContextManager[None]:
    """For the time of the block, a server that does not answer is given up after some ten seconds."""
    return variables(SHORT_TIMEOUTS)

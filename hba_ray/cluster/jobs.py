"""Ray jobs: sends a spec to a running cluster, and lists, follows and stops such jobs from here.

Only this package and one resolved spec are uploaded. There is no checkout on the cluster, so the commit and the changes since
are recorded when a job is sent.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import hba_ray
from hba_ray.cluster import ray_private
from hba_ray.cluster.session import LOOPBACK
from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.load import as_yaml
from hba_ray.store.provenance import COMMIT, DIFF, DIRTY, changes, source, user
from hba_ray.store.spending import last_said

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = f"http://{LOOPBACK}:8265"
WAY_TO_A_DASHBOARD = "give the address of its dashboard, http://HOST:8265, as --address; through a tunnel: ssh -N -L 8265:HOST:8265 HOST"
WAY_TO_A_TOKEN = "if it asks for a token, set RAY_AUTH_TOKEN to it and RAY_AUTH_MODE=token; its Ray must be of the same version"
SPEC_FILE, DIFF_FILE = "spec.yaml", "source.diff"
ENTRYPOINT = f"python -m hba_ray run {SPEC_FILE}"
"""Command of a job. It runs on the cluster's head, in the uploaded folder."""
EXIT = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
"""Status of a job -> exit code where its driver left none."""
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 600.0
"""How long a dashboard that was lost is asked again: a head's restart takes minutes."""
STOP_WAIT, STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 90
"""Ray's variable for how long a job that is stopped may take to end by itself, and its value here: steps on other nodes end first. Ray's
own 3 seconds would leave the leases of a job for other jobs to wait for."""


@dataclass(frozen=True)
class Job:
    """A job on a cluster.

    Attributes:
        name: submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: what `hba` itself would have ended with; None while the job waits or runs.
        lost: whether it ended because a machine did, and not by itself.
    """

    name: str
    status: str
    message: str
    exit_code: int | None
    lost: bool = False


@dataclass(frozen=True)
class Upload:
    """What is sent to a cluster.

    Attributes:
        folder: holds the package and the spec.
        bytes: size of its files together.
        runtime_env: the job's folder and variables, in Ray's form.
        metadata: what Ray shows of the job.
    """

    folder: Path
    bytes: int
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]


def for_cluster(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec as a job runs it: on the cluster that the job is on.

    Raises:
        SpecError: the folder of results or of data is relative, and would be another one on the cluster.
    """
    sources = [(f"atlas.sources.{number}.root", part.root) for number, part in enumerate(spec.atlas.sources)]
    for key, folder in (("compute.storage", spec.compute.storage), ("atlas.root", spec.atlas.root), *sources):
        if folder is not None and "://" not in folder and not Path(folder).is_absolute():
            raise SpecError(
                key, f"'{folder}' is relative, and a job has a working folder of its own", f"give {key}=/FOLDER that all nodes see"
            )
    return spec.model_copy(update={"compute": spec.compute.model_copy(update={"address": "auto"})})


def dashboard_url(address: str) -> str:
    """The URL of a Ray dashboard; HOST:PORT stands for http://HOST:PORT.

    Ray would take an address without http:// for that of a control service, and wait half a minute for an answer.

    >>> dashboard_url("head:8265")
    'http://head:8265'

    Raises:
        SpecError: it is no address of a dashboard.
    """
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or address == "auto":
        raise SpecError("--address", f"'{address}' is no address of a Ray dashboard", WAY_TO_A_DASHBOARD)
    return url.rstrip("/")


def job_name(spec: ExperimentSpec) -> str:
    """The submission id of a spec: equal specs have equal ids, so a command that is typed twice finds its job."""
    return f"hba-{spec.name}-{fingerprint(spec.identity())[:8]}"


@contextmanager
def packed(spec: ExperimentSpec) -> Iterator[Upload]:
    """Makes the upload of a spec in a temporary folder, which is there for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="hba-job-") as place:
        folder = Path(place)
        package = Path(hba_ray.__file__).parent
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        text = as_yaml(spec, exclude_unset=True)
        (folder / SPEC_FILE).write_text(text, encoding="utf-8")
        commit, dirty = source()
        said = {"spec": spec.name, "fingerprint": fingerprint(spec.identity()), "user": user(), "version": hba_ray.__version__}
        variables = {STOP_WAIT: str(STOP_SECONDS)}
        if commit is not None:
            variables |= {COMMIT: commit, DIRTY: str(dirty).lower()}
            said |= {"commit": commit, "dirty": str(dirty).lower()}
            if dirty:
                (folder / DIFF_FILE).write_text(changes(), encoding="utf-8")
                variables[DIFF] = DIFF_FILE
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        yield Upload(folder, size, {"working_dir": str(folder), "env_vars": variables}, said)


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of its dashboard, for example http://HOST:8265; by default the variable RAY_API_SERVER_ADDRESS, or this machine.

    Raises:
        SpecError: it is no address of a dashboard.
        EnvironmentMissing: no dashboard answers there, or it asks for a token.
    """

    def __init__(self, address: str | None = None):
        self.address = dashboard_url(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS)
        with _answers(self.address):
            from ray.job_submission import JobSubmissionClient

            ray_private.use_token()
            self._client: JobSubmissionClient = JobSubmissionClient(self.address)

    def submit(self, spec: ExperimentSpec, say: Callable[[str], None]) -> str:
        """Sends a spec, unless a job for it waits or runs already.

        Returns:
            The submission id: `job_name`, followed by a number where earlier jobs of the spec have ended.

        Raises:
            SpecError: see `for_cluster`.
        """
        spec = for_cluster(spec)
        name = base = job_name(spec)
        with _answers(self.address):
            known = {job.submission_id: job for job in self._client.list_jobs() if job.submission_id}
            attempt = 1
            while name in known:
                if not known[name].status.is_terminal():
                    say(f"{name} is on its way already")
                    return name
                attempt += 1
                name = f"{base}-{attempt}"
            with packed(spec) as upload:
                say(f"uploading {upload.bytes / 2**20:.1f} MiB: the package and {SPEC_FILE}")
                metadata, environment = dict(upload.metadata), dict(upload.runtime_env)
                self._client.submit_job(entrypoint=ENTRYPOINT, submission_id=name, runtime_env=environment, metadata=metadata)
        return name

    def list(self) -> list[Job]:
        """All jobs that were submitted, the newest first."""
        with _answers(self.address):
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return [_job(job) for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)]

    def get(self, name: str) -> Job:
        """The job with this submission id.

        Raises:
            SpecError: there is none.
        """
        with _answers(self.address, name):
            return _job(self._client.get_job_info(name))

    def logs(self, name: str) -> str:
        """All that a job has printed so far."""
        with _answers(self.address, name):
            return self._client.get_job_logs(name)

    def spent(self, name: str) -> str | None:
        """What a job has last said that it has cost so far; None where it has said nothing."""
        return last_said(self.logs(name))

    def follow(self, name: str, show: Callable[[str], None], say: Callable[[str], None], patience: float = PATIENCE_SECONDS) -> Job:
        """Hands what a job prints to `show` as it comes, until the job has ended.

        Once it has answered, a dashboard that is lost is asked again for so many seconds: the job goes on without it.

        Raises:
            SpecError: there is no such job.
            EnvironmentMissing: no dashboard answers.
        """
        shown, answered, lost = Shown(show), False, None
        while True:
            try:
                with _answers(self.address, name):
                    asyncio.run(self._tail(name, shown))
                job = self.get(name)
                answered, lost = True, None
                if job.exit_code is not None:
                    return job
            except EnvironmentMissing as cause:
                if not answered or (lost is not None and time.monotonic() - lost > patience):
                    raise
                if lost is None:
                    lost = time.monotonic()
                    say(f"{cause.what}: it is asked again for {patience / 60:.0f} minutes, while the job goes on")
            time.sleep(POLL_SECONDS)

    async def _tail(self, name: str, shown: Shown) -> None:
        """What the job says until its stream ends; the stream begins with its first word, however often it is asked for."""
        shown.again()
        async for text in self._client.tail_job_logs(name):
            shown.take(text)

    def complete(
        self,
        spec: ExperimentSpec,
        show: Callable[[str], None],
        say: Callable[[str], None],
        retries: int = 0,
        on_submit: Callable[[str], None] = lambda name: None,
    ) -> Job:
        """Submits a spec and follows it to its end; where a machine takes the job with it, it is submitted again, and goes on.

        Args:
            retries: how often it is submitted again.
            on_submit: gets the name of each job.

        Raises:
            SpecError: see `for_cluster`.
            EnvironmentMissing: no dashboard answers, or the head was replaced and knows nothing of the job.
        """
        while True:
            on_submit(name := self.submit(spec, say))
            lost = f"{name} is lost with the machine that it ran on"
            try:
                job = self.follow(name, show, say)
            except SpecError as gone:  # it was there when it was submitted
                if not retries:
                    raise EnvironmentMissing("--address", lost, "submit the spec again: it goes on where it was") from gone
            else:
                if not (job.lost and retries):
                    return job
            say(f"{lost}: it is submitted again, {retries} {'time' if retries == 1 else 'times'} at most")
            retries -= 1

    def stop(self, name: str) -> bool:
        """Stops a job, waits until it has ended, and says whether it was running. Submitted again, its spec goes on where it was.

        Raises:
            SpecError: there is no such job.
            EnvironmentMissing: no dashboard answers, or the job does not end.
        """
        if self.get(name).exit_code is not None:
            return False
        with _answers(self.address, name):
            self._client.stop_job(name)
        ends = time.monotonic() + STOP_SECONDS + PATIENCE_SECONDS
        while (job := self.get(name)).exit_code is None:
            if time.monotonic() > ends:
                raise EnvironmentMissing(name, "was told to stop, and has not ended", "look at the Ray of the cluster's head")
            time.sleep(POLL_SECONDS)
        return job.status == "STOPPED"


class Shown:
    """Hands on the part of a text, which is read from its beginning again and again, that was not shown before."""

    def __init__(self, show: Callable[[str], None]):
        self._show, self._characters, self._place = show, 0, 0

    def again(self) -> None:
        """The text begins once more."""
        self._place = 0

    def take(self, text: str) -> None:
        new = text[max(0, self._characters - self._place) :]
        self._place += len(text)
        if new:
            self._characters = self._place
            self._show(new)


def _job(details: JobDetails) -> Job:
    status, own = details.status.value, getattr(details, "driver_exit_code", None)
    name, message = details.submission_id or "", details.message or ""
    if not details.status.is_terminal():
        return Job(name, status, message, None)
    by_itself = own is not None and 0 <= own < 128
    code = own if status == "FAILED" and by_itself and own else EXIT[status]
    return Job(name, status, message, code, lost=status == "FAILED" and not by_itself)


@contextmanager
def _answers(address: str, name: str = "") -> Iterator[None]:
    """Turns failures of Ray's client, and of what it talks by, into errors of ours."""
    import requests
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as cause:
        raise EnvironmentMissing("--address", f"the Ray cluster at {address} wants another token", WAY_TO_A_TOKEN) from cause
    except (ConnectionError, requests.RequestException, ClientError) as cause:
        raise EnvironmentMissing("--address", f"no Ray dashboard answers at {address}", WAY_TO_A_DASHBOARD) from cause
    except KeyError as cause:  # of the client, in what it took for Ray's version
        raise EnvironmentMissing("--address", f"what answers at {address} is no Ray dashboard", WAY_TO_A_DASHBOARD) from cause
    except (RuntimeError, ValueError) as cause:
        reason = str(cause).strip().splitlines()[0][:300] if str(cause).strip() else type(cause).__name__
        if "404" in reason or "does not exist" in reason:
            if not name:
                raise EnvironmentMissing("--address", f"what answers at {address} is no Ray dashboard", WAY_TO_A_DASHBOARD) from cause
            raise SpecError(name, f"no such job at {address}", "`hba status` lists the jobs") from None
        raise EnvironmentMissing("--address", f"the Ray cluster at {address} refused: {reason}", WAY_TO_A_TOKEN) from cause

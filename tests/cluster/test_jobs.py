"""What is sent to a cluster is small, known by its spec, and says where it comes from; what ends otherwise than well says so."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from hba_ray.cluster import jobs as module
from hba_ray.cluster.jobs import Jobs, _job, for_cluster, job_name, packed
from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.specs import load_spec
from hba_ray.store.provenance import COMMIT, DIFF, DIRTY, JOB_CONFIG, changes, ray_job, source
from tests.helpers.experiments import small_experiment


def test_the_upload_is_the_package_and_one_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "source", lambda: ("c" * 40, True))
    monkeypatch.setattr(module, "changes", lambda: "a patch\n")
    spec = small_experiment(tmp_path)
    with packed(spec) as upload:
        assert {path.name for path in upload.folder.iterdir()} == {"hba_ray", "spec.yaml", "source.diff"}
        assert not list(upload.folder.rglob("*.pyc"))
        assert 10_000 < upload.bytes < 5 * 2**20
        assert load_spec(upload.folder / "spec.yaml") == spec
        assert upload.runtime_env == {
            "working_dir": str(upload.folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90", COMMIT: "c" * 40, DIRTY: "true", DIFF: "source.diff"},
        }
        assert (upload.metadata["commit"], upload.metadata["dirty"], upload.metadata["spec"]) == ("c" * 40, "true", "small")
    assert not upload.folder.exists()


def test_a_job_finds_what_its_senders_checkout_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "source.diff").write_text("a patch\n")
    monkeypatch.setenv(COMMIT, "c" * 40)
    monkeypatch.setenv(DIRTY, "true")
    monkeypatch.setenv(DIFF, str(tmp_path / "source.diff"))
    assert source(tmp_path) == ("c" * 40, True)
    assert changes() == "a patch\n"
    assert ray_job() is None
    monkeypatch.setenv(JOB_CONFIG, '{"metadata": {"job_submission_id": "hba-x-1"}}')
    assert ray_job() == "hba-x-1"


def test_the_name_is_that_of_the_spec(tmp_path: Path):
    spec = small_experiment(tmp_path)
    assert job_name(spec) == job_name(small_experiment(tmp_path)) and job_name(spec).startswith("hba-small-")
    assert job_name(spec) != job_name(small_experiment(tmp_path, seed=1))


@pytest.mark.parametrize(("changes", "key"), [({"compute__storage": "runs"}, "compute.storage"), ({"atlas__root": "data"}, "atlas.root")])
def test_relative_folders_are_refused_since_they_are_others_on_the_cluster(tmp_path: Path, changes: dict, key: str):
    spec = small_experiment(tmp_path)
    for path, value in changes.items():
        section, name = path.split("__")
        spec = spec.model_copy(update={section: getattr(spec, section).model_copy(update={name: value})})
    with pytest.raises(SpecError, match=f"{key}: '.*' is relative"):
        for_cluster(spec)


def test_inside_a_job_the_cluster_is_the_one_that_it_runs_on(tmp_path: Path):
    assert for_cluster(small_experiment(tmp_path)).compute.address == "auto"


@pytest.mark.parametrize(
    ("status", "own", "code"),
    [("RUNNING", None, None), ("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", None, 1), ("FAILED", -9, 1), ("STOPPED", None, 130)],
)
def test_a_job_ends_with_the_code_of_what_it_ran_and_stopped_is_no_success(status: str, own: int | None, code: int | None):
    details = SimpleNamespace(submission_id="hba-x", status=JobStatus(status), message="", driver_exit_code=own)
    assert _job(details).exit_code == code  # type: ignore[arg-type]


def test_what_a_job_has_cost_is_what_it_said_last():
    jobs = Jobs.__new__(Jobs)
    jobs.address, log = (
        "http://here",
        "sft: started\nspent so far: 0.50 GPU-hours\nspent so far: 1.25 GPU-hours, 3.75 dollars\ntrial: done\n",
    )
    jobs._client = SimpleNamespace(get_job_logs=lambda name: {"hba-x": log, "hba-y": "nothing\n"}[name])  # type: ignore[assignment]
    assert (jobs.spent("hba-x"), jobs.spent("hba-y")) == ("1.25 GPU-hours, 3.75 dollars", None)


def test_a_spec_whose_job_is_on_its_way_is_not_sent_again_and_after_its_end_it_is(tmp_path: Path):
    spec = small_experiment(tmp_path)
    name = job_name(for_cluster(spec))
    sent: list[str] = []
    known = [SimpleNamespace(submission_id=name, status=JobStatus.RUNNING)]
    jobs = Jobs.__new__(Jobs)
    jobs.address = "http://here"
    jobs._client = SimpleNamespace(list_jobs=lambda: known, submit_job=lambda **words: sent.append(words["submission_id"]))  # type: ignore[assignment]
    assert jobs.submit(spec, lambda line: None) == name and not sent
    known[0].status = JobStatus.FAILED
    assert jobs.submit(spec, lambda line: None) == f"{name}-2" and sent == [f"{name}-2"]


def test_where_no_dashboard_is_a_way_out_is_named():
    with pytest.raises(EnvironmentMissing, match=r"no Ray dashboard answers at http://127\.0\.0\.1:1\n  give the address"):
        Jobs("http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "auto", "http://", "http://head:port", "head:99999999", "ftp://head:8265"])
def test_what_is_no_address_of_a_dashboard_is_refused_before_anyone_is_asked(address: str):
    with pytest.raises(SpecError, match=r"is no address of a Ray dashboard\n  give the address"):
        Jobs(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1/"])
def test_the_protocol_and_the_last_slash_of_an_address_may_be_left_out_or_not(address: str):
    with pytest.raises(EnvironmentMissing, match=r"no Ray dashboard answers at http://127\.0\.0\.1:1\n"):
        Jobs(address)


class OtherServer(BaseHTTPRequestHandler):
    """A server of somebody else's: each of its pages is the same."""

    status, page = 404, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.parametrize(("status", "page"), [(404, b"not found"), (200, b"{}")])
def test_a_server_that_is_no_dashboard_is_not_taken_for_one_without_the_job(status: int, page: bytes):
    answer = type("Answer", (OtherServer,), {"status": status, "page": page})
    with ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(
                EnvironmentMissing, match=r"what answers at http://127\.0\.0\.1:\d+ is no Ray dashboard\n  give the address"
            ):
                Jobs(f"http://127.0.0.1:{server.server_port}").list()
        finally:
            server.shutdown()


def test_the_spec_that_is_sent_is_resolved(tmp_path: Path):
    with packed(small_experiment(tmp_path, name="sent")) as upload:
        assert yaml.safe_load((upload.folder / "spec.yaml").read_text())["name"] == "sent"


class Dashboard:
    """A client of a dashboard that is away for a while: each answer of the list is text so far, with the status, or an error."""

    def __init__(self, *answers: tuple[str, str] | Exception):
        self.answers, self.stopped = list(answers), 0

    def stop_job(self, name: str) -> bool:
        self.stopped += 1
        return True

    def now(self) -> tuple[str, str]:
        if isinstance(answer := self.answers[0], Exception):
            self.answers.pop(0)
            raise answer
        return answer

    async def tail_job_logs(self, name: str):
        text, _ = self.now()
        for line in text.splitlines(keepends=True):
            yield line

    def get_job_info(self, name: str) -> SimpleNamespace:
        _, status = self.now()
        self.answers.pop(0)
        return SimpleNamespace(submission_id=name, status=JobStatus(status), message="", driver_exit_code=0)


def followed(*answers: tuple[str, str] | Exception, patience: float = 60) -> tuple[str, list[str], int | None]:
    """What was shown of a job, what was said beside it, and its exit code."""
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._client = "http://head:8265", Dashboard(*answers)  # type: ignore[assignment]
    shown: list[str] = []
    said: list[str] = []
    code = jobs.follow("hba-x", shown.append, said.append, patience).exit_code
    return "".join(shown), said, code


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


LOST = (requests.ConnectionError("reset"), aiohttp.ClientConnectionError("gone"), ConnectionError("refused"), requests.Timeout("late"))


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_dashboard_that_is_lost_while_a_job_is_followed_is_asked_again_and_no_line_comes_twice(at_once: None, error: Exception):
    text, said, code = followed(("one\n", "RUNNING"), error, error, ("one\ntwo\n", "RUNNING"), ("one\ntwo\nthree\n", "SUCCEEDED"))
    assert (text, code) == ("one\ntwo\nthree\n", 0)
    assert said == ["no Ray dashboard answers at http://head:8265: it is asked again for 1 minutes, while the job goes on"]


def test_one_that_never_answers_is_no_job_that_failed_and_patience_ends(at_once: None):
    with pytest.raises(EnvironmentMissing, match="no Ray dashboard answers"):
        followed(requests.ConnectionError("refused"))
    with pytest.raises(EnvironmentMissing, match="no Ray dashboard answers"):
        followed(("one\n", "RUNNING"), *[requests.ConnectionError("refused")] * 20, patience=0.0)


def test_a_wrong_token_is_told_as_one(at_once: None):
    with pytest.raises(EnvironmentMissing, match=r"wants another token\n  if it asks for a token, set RAY_AUTH_TOKEN"):
        followed(AuthenticationError("401"))


@pytest.mark.parametrize(
    ("statuses", "sent", "was_running"),
    [
        (("RUNNING", "RUNNING", "RUNNING", "STOPPED"), 1, True),
        (("PENDING", "STOPPED"), 1, True),
        (("RUNNING", "SUCCEEDED"), 1, False),
        (("SUCCEEDED",), 0, False),
        (("STOPPED",), 0, False),
    ],
)
def test_a_job_that_is_stopped_has_ended_when_that_is_said(at_once: None, statuses: tuple[str, ...], sent: int, was_running: bool):
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._client = "http://head:8265", (dashboard := Dashboard(*(("", status) for status in statuses)))  # type: ignore[assignment]
    assert jobs.stop("hba-x") == was_running
    assert (dashboard.answers, dashboard.stopped) == ([], sent)


def test_a_job_that_does_not_end_when_it_is_stopped_is_told(at_once: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", -module.STOP_SECONDS)
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._client = "http://head:8265", Dashboard(*[("", "RUNNING")] * 20)  # type: ignore[assignment]
    with pytest.raises(EnvironmentMissing, match="was told to stop, and has not ended"):
        jobs.stop("hba-x")


class Cluster:
    """A client whose jobs end as a list says: a driver's exit code, None where the machine was lost, "gone" where the head was replaced."""

    def __init__(self, *ends: int | str | None):
        self.ends, self.sent = list(ends), list[str]()

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=name, status=JobStatus.FAILED) for name in self.sent]

    def submit_job(self, submission_id: str, **_: object) -> None:
        self.sent.append(submission_id)

    async def tail_job_logs(self, name: str):
        yield f"{name}\n"

    def get_job_info(self, name: str) -> SimpleNamespace:
        end = self.ends[len(self.sent) - 1]
        if end == "gone":
            raise RuntimeError("Request failed with status code 404: Job does not exist")
        status = JobStatus.SUCCEEDED if end == 0 else JobStatus.FAILED
        return SimpleNamespace(submission_id=name, status=status, message="", driver_exit_code=end)


@pytest.mark.parametrize(
    ("ends", "retries", "sent", "code"),
    [
        ((None, -9, 0), 2, 3, 0),
        (("gone", 0), 1, 2, 0),
        ((2, 0), 5, 1, 2),
        ((1, 0), 5, 1, 1),
        ((None, 0), 0, 1, 1),
        ((None, None, 0), 1, 2, 1),
    ],
)
def test_a_job_that_a_machine_took_with_it_is_sent_again_and_one_that_failed_by_itself_is_not(
    tmp_path: Path, at_once: None, ends: tuple[int | str | None, ...], retries: int, sent: int, code: int
):
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._client = "http://head:8265", (cluster := Cluster(*ends))  # type: ignore[assignment]
    named: list[str] = []
    assert jobs.complete(small_experiment(tmp_path), lambda text: None, lambda line: None, retries, named.append).exit_code == code
    assert len(cluster.sent) == sent == len(set(named)) and named == cluster.sent


def test_a_head_that_was_replaced_is_told_with_the_way_on(tmp_path: Path, at_once: None):
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._client = "http://head:8265", Cluster("gone")  # type: ignore[assignment]
    with pytest.raises(EnvironmentMissing, match=r"is lost with the machine that it ran on\n  submit the spec again"):
        jobs.complete(small_experiment(tmp_path), lambda text: None, lambda line: None)

"""A storage in a bucket: what one host finishes others read, nothing is moved twice, and nobody overwrites anybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hba_ray.errors import DataError, EnvironmentMissing, SpecError
from hba_ray.store.finished import FILES, check_files, keep, list_files
from hba_ray.store.folders import Storage, claimed, clear, done, finish, ledger, note, reopen, share
from hba_ray.store.mirror import Mirror, mirror_of
from hba_ray.store.scratch import folder_here, stated

STEP = ("sft", "0123456789ab")
OnHost = Callable[[str], Storage]


@pytest.fixture
def on_host(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnHost:
    """The storage as a host of this name sees it, which has no folder in common with others."""

    def storage(name: str) -> Storage:
        monkeypatch.setenv("HBA_SCRATCH", str(tmp_path / name))
        return Storage(bucket)

    return storage


def make(folder: Path, **files: str) -> dict:
    """Finishes a step with these files, and returns what its mark says of them."""
    for name, text in files.items():
        (folder / name).write_text(text)
    facts = {"rows": 3, FILES: list_files(folder, without=(), memory=None)}
    finish(folder, facts)
    return facts


def mirror(storage: Storage) -> Mirror:
    found = mirror_of(storage.folder)
    assert found is not None
    return found


def test_a_path_tells_which_bucket_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HBA_SCRATCH", str(tmp_path))
    here = folder_here("s3://my-bucket/a b/runs+1%/")
    assert here.parent == tmp_path
    found = mirror_of(here / "steps" / "sft-1" / "model")
    assert found is not None and (found.root, found.bucket.address) == (here, "s3://my-bucket/a b/runs+1%")
    assert mirror_of(tmp_path / "runs" / "steps") is None
    assert folder_here(tmp_path / "runs") == tmp_path / "runs"
    assert (stated(here), stated(tmp_path)) == ("s3://my-bucket/a b/runs+1%", str(tmp_path))
    assert stated(here / "toy-1" / "report.html") == "s3://my-bucket/a b/runs+1%/toy-1/report.html"
    with pytest.raises(SpecError, match="more than 255"):
        folder_here("s3://bucket/" + "x" * 250)


@pytest.mark.slow
def test_what_one_host_finishes_another_reads_and_each_byte_is_moved_once(on_host: OnHost):
    first = on_host("a")
    folder = first.step(*STEP)
    assert done(folder) is None
    with claimed(folder):
        facts = make(folder, model="w" * 1000, copy="w" * 1000, log="l" * 10)
    assert done(folder) == facts
    assert mirror(first).bucket.moved["written"] < 1010 + 3000, "equal files are one object"
    second = on_host("b")
    folder = second.step(*STEP)
    assert done(folder) == facts
    assert not (folder / "model").exists(), "files are fetched when they are read"
    check_files(folder, facts, "sft", only="log", content=True, memory=None)
    assert (folder / "log").read_text() == "l" * 10
    assert not (folder / "model").exists()
    before = mirror(second).bucket.moved["read"]
    check_files(folder, facts, "sft", only=None, content=True, memory=None)
    check_files(folder, facts, "sft", only=None, content=True, memory=None)
    assert (folder / "copy").read_text() == "w" * 1000
    assert mirror(second).bucket.moved["read"] == before + 2000
    assert second.steps_of("sft") == [folder]


@pytest.mark.slow
def test_of_two_that_finish_a_step_the_first_wins_and_the_other_is_told(on_host: OnHost):
    slow = on_host("a").step(*STEP)
    slow.mkdir(parents=True)
    quick = on_host("b").step(*STEP)
    with claimed(quick):
        facts = make(quick, model="quick")
    with pytest.raises(EnvironmentMissing, match="finished this step meanwhile") as told:
        make(slow, model="slow!")
    assert told.value.exit_code == 5
    assert done(slow) == facts
    check_files(slow, facts, "sft", only=None, content=True, memory=None)
    assert (slow / "model").read_text() == "quick"


@pytest.mark.slow
def test_a_step_that_is_done_again_replaces_what_other_hosts_have_of_it(on_host: OnHost):
    first = on_host("a").step(*STEP)
    with claimed(first):
        make(first, model="old")
    second = on_host("b").step(*STEP)
    old = done(second)
    assert old is not None
    check_files(second, old, "sft", only=None, content=True, memory=None)
    with claimed(first):
        clear(first)
        assert done(first) is None
        facts = make(first, model="new")
    with claimed(second):
        assert done(second) == facts
        check_files(second, facts, "sft", only=None, content=True, memory=None)
    assert (second / "model").read_text() == "new"
    with claimed(second):
        reopen(second)
        assert done(second) is None


@pytest.mark.slow
def test_of_two_processes_of_a_machine_none_takes_away_what_the_other_has_fetched(on_host: OnHost, monkeypatch: pytest.MonkeyPatch):
    made = on_host("a").step(*STEP)
    with claimed(made):
        make(made, model="weights")
    folder = on_host("b").step(*STEP)
    bucket, reads, fetched = mirror(Storage(folder.parents[1])).bucket, list[threading.Thread](), threading.Event()
    other, read = threading.Thread(target=lambda: done(folder)), bucket.read

    def slow(key: str):
        reads.append(threading.current_thread())
        if reads[-1] is other:
            fetched.wait(20)  # until the first one has fetched the files that this one would then remove
        else:
            other.start()
            time.sleep(0.5)
        return read(key)

    monkeypatch.setattr(bucket, "read", slow)
    facts = done(folder)
    assert facts is not None
    check_files(folder, facts, "sft", only=None, content=True, memory=None)
    fetched.set()
    other.join()
    assert (folder / "model").read_text() == "weights" and other not in reads


@pytest.mark.slow
def test_an_object_that_was_damaged_or_taken_away_is_refused(on_host: OnHost):
    storage = on_host("a")
    with claimed(storage.step(*STEP)):
        facts = make(storage.step(*STEP), model="weights")
    (key,) = mirror(storage).bucket.list("steps/")
    digest = facts[FILES]["model"]["sha256"]
    assert key.endswith(digest)
    other = on_host("b").step(*STEP)
    (wrong := other.parents[1] / "wrong").write_text("WEIGHTS")
    mirror(storage).bucket.upload({key: wrong})
    with pytest.raises(DataError, match="other bytes"):
        check_files(other, facts, "sft", only="model", content=True, memory=None)
    mirror(storage).bucket.delete([key])
    with pytest.raises(DataError, match="is gone") as gone:
        check_files(other, facts, "sft", only="model", content=True, memory=None)
    assert "--redo" in gone.value.way_out
    assert not (other / "model").exists()


@pytest.mark.slow
def test_a_ledger_is_folded_from_the_events_of_all_hosts(on_host: OnHost):
    run = on_host("a").run("small", "0123456789ab")
    with claimed(run):
        note(run, event="started")
        assert [line["event"] for line in ledger(run)] == ["started"]
    other = on_host("b").run("small", "0123456789ab")
    note(other, event="judged")
    note(run, event="finished")
    for folder in (run, other):
        assert [line["event"] for line in ledger(folder)] == ["started", "judged", "finished"]


@pytest.mark.slow
def test_a_run_goes_on_with_the_files_that_another_host_left(on_host: OnHost):
    run = on_host("a").run("small", "0123456789ab")
    with claimed(run):
        (run / "tracking.jsonl").write_text("1\n")
        (run / "logs").mkdir()
        (run / "logs" / "ray.log").write_text("of this machine")
        share(run)
        (run / "tracking.jsonl").write_text("1\n2\n")
    other = on_host("b").run("small", "0123456789ab")
    with claimed(other):
        assert (other / "tracking.jsonl").read_text() == "1\n2\n"
        assert not (other / "logs").exists()
        (other / "tracking.jsonl").write_text("1\n2\n3\n")
    (run / "tracking.jsonl").write_text("1\n2\nof one that has lost its lease\n")
    with pytest.raises(EnvironmentMissing, match="written it meanwhile"):
        share(run)
    with claimed(run):
        assert (run / "tracking.jsonl").read_text() == "1\n2\n3\n"


@pytest.mark.slow
def test_a_step_goes_on_from_its_last_checkpoint_on_another_host(on_host: OnHost):
    first = on_host("a").step(*STEP)
    with claimed(first):
        (first / "checkpoint").mkdir()
        (first / "checkpoint" / "state").write_text("step 4")
        (first / "metrics.jsonl").write_text("4 lines")
        keep(first)
        (first / "checkpoint" / "state").write_text("step 8")
        keep(first / "checkpoint")
        (first / "metrics.jsonl").write_text("9 lines")
    second = on_host("b").step(*STEP)
    with claimed(second):
        assert (second / "checkpoint" / "state").read_text() == "step 8"
        assert (second / "metrics.jsonl").read_text() == "4 lines"
        (second / "checkpoint" / "state").write_text("step 12")
        keep(second)
    with pytest.raises(EnvironmentMissing, match="its checkpoint is newer"):
        keep(first)
    with claimed(second):
        assert (second / "checkpoint" / "state").read_text() == "step 12", "what is here already is left alone"
        make(second, model="weights")
    kept = mirror_of(second)
    assert kept is not None
    listed = kept.bucket.list("steps/")
    assert len(listed) == 3, "what only the unfinished step needed is removed: the model, the last state and the log are left"


@pytest.mark.slow
def test_what_is_left_of_before_a_step_was_to_be_done_from_its_beginning_is_not_gone_on_with(on_host: OnHost):
    folder = on_host("a").step(*STEP)
    with claimed(folder):
        (folder / "half").write_text("old")
        keep(folder)
    with claimed(folder):
        assert (folder / "half").read_text() == "old"
    there = on_host("b").step(*STEP)
    with claimed(there):
        assert (there / "half").read_text() == "old"
        clear(there)
    with claimed(there):
        assert not (there / "half").exists()
        (there / "half").write_text("new")
    with claimed(there):
        assert (there / "half").read_text() == "new", "its own half is gone on with"
        clear(there)
        (there / "half").write_text("newer")
    with claimed(there):
        assert (there / "half").read_text() == "newer", "also where it was begun while the former one was cleared"
    on_host("a")
    with claimed(folder):
        assert not (folder / "half").exists()


@pytest.mark.slow
def test_steps_that_were_not_used_for_longest_leave_a_full_cache(on_host: OnHost, monkeypatch: pytest.MonkeyPatch):
    storage = on_host("a")
    facts = {}
    for number in "123":
        with claimed(storage.step("sft", number)):
            facts[number] = make(storage.step("sft", number), model=number * 2000)
    monkeypatch.setenv("HBA_SCRATCH_GIB", str(6000 / 2**30))
    storage = on_host("b")

    def fetch(number: str) -> Path:
        folder = storage.step("sft", number)
        said = done(folder)
        assert said == facts[number]
        check_files(folder, said, "sft", only=None, content=True, memory=None)
        return folder / "model"

    with claimed(storage.run("small", "0123456789ab")):
        one, two = fetch("1"), fetch("2")
    assert fetch("1").exists()  # used again, and in use
    assert fetch("3").exists()
    assert (one.exists(), two.exists()) == (True, False)
    assert fetch("2").read_text() == "2" * 2000


class _Careless(BaseHTTPRequestHandler):
    """A storage that writes whatever it is told to, and looks at no condition."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        content = b"<DeleteResult><Deleted><Key>probe</Key></Deleted></DeleteResult>"
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def careless() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_a_storage_that_ignores_conditions_is_refused(on_host: OnHost, monkeypatch: pytest.MonkeyPatch):
    mirror(on_host("a")).check()
    with careless() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(EnvironmentMissing, match="two processes could work on one step") as refused:
            mirror(on_host("b")).check()
    assert refused.value.exit_code == 5

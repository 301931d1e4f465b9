"""Of several processes one holds a lease; a dead holder's is taken over soon, and a holder that slept finds out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing
from hba_ray.store.bucket import Bucket
from hba_ray.store.leases import FREE, SILENT_BEATS, leased
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow
KEY, BEAT = "leases/steps/sft.json", 0.5
HOLDER = """
import sys, time
from pathlib import Path
from hba_ray.errors import EnvironmentMissing
from hba_ray.store.bucket import Bucket
from hba_ray.store.leases import leased
address, key, beat, told, go_on = sys.argv[1:]
try:
    with leased(Bucket(address), key, wait_seconds=60, beat_seconds=float(beat)) as lease:
        Path(told).write_text("held")
        while not Path(go_on).exists():
            time.sleep(0.05)
        lease.check()
except EnvironmentMissing as lost:
    print(lost.what)
    sys.exit(lost.exit_code)
"""
COUNTER = """
import sys, time
from pathlib import Path
from hba_ray.store.bucket import Bucket
from hba_ray.store.leases import leased
address, key, file = sys.argv[1:]
for _ in range(8):
    with leased(Bucket(address), key, wait_seconds=120, beat_seconds=5):
        number = int(Path(file).read_text())
        time.sleep(0.02)
        Path(file).write_text(str(number + 1))
"""


def holder(bucket: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds the lease until the file `go-on` is there, and asks then whether it still does."""
    told = tmp_path / "told"
    arguments = [bucket, KEY, str(BEAT), str(told), str(tmp_path / "go-on")]
    process = subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True)
    wait_until(told.exists, process, seconds=60)
    return process


def test_processes_that_compete_hold_a_lease_one_after_the_other(bucket: str, tmp_path: Path):
    count = tmp_path / "count"
    count.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNTER, bucket, KEY, str(count)]) for _ in range(3)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
    assert count.read_text() == "24"
    content = Bucket(bucket).read(KEY)
    assert content is not None and content[0] == FREE


def test_a_lease_is_waited_for_as_long_as_its_holder_lives(bucket: str):
    said: list[str] = []
    patience = 3 * SILENT_BEATS * BEAT
    with leased(Bucket(bucket), KEY, wait_seconds=0, beat_seconds=BEAT):
        began = time.monotonic()
        other = leased(Bucket(bucket), KEY, wait_seconds=patience, on_wait=lambda: said.append("waits"), beat_seconds=BEAT)
        with pytest.raises(EnvironmentMissing, match="another process works on this") as refused, other:
            pytest.fail("two hold it")
        assert time.monotonic() - began >= patience
    assert refused.value.exit_code == 5
    assert said == ["waits"]
    with leased(Bucket(bucket), KEY, wait_seconds=0, on_wait=lambda: said.append("waits"), beat_seconds=BEAT):
        pass
    assert said == ["waits"], "one that was given back is taken at once"


def test_the_lease_of_a_dead_holder_is_taken_over_within_two_heartbeats_and_five_seconds(bucket: str, tmp_path: Path):
    process = holder(bucket, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    with leased(Bucket(bucket), KEY, wait_seconds=60, beat_seconds=BEAT) as lease:
        waited = time.monotonic() - began
        lease.check()
    assert SILENT_BEATS * BEAT <= waited <= SILENT_BEATS * BEAT + 5


def test_a_holder_that_was_stopped_finds_out_and_leaves_the_new_holder_alone(bucket: str, tmp_path: Path):
    process = holder(bucket, tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    with leased(Bucket(bucket), KEY, wait_seconds=60, beat_seconds=BEAT) as lease:
        os.kill(process.pid, signal.SIGCONT)
        (tmp_path / "go-on").touch()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 5
        assert "another one has taken over" in said
        lease.check()
        content = Bucket(bucket).read(KEY)
        assert content is not None and json.loads(content[0])["pid"] == os.getpid()


def test_a_write_whose_answer_was_lost_has_succeeded_when_it_is_sent_again(bucket: str):
    storage = Bucket(bucket)
    first = storage.create("one", b"mine")
    assert first is not None
    assert storage.create("one", b"mine") == first
    assert storage.create("one", b"theirs") is None
    second = storage.replace("one", b"next", first)
    assert second is not None
    assert storage.replace("one", b"next", first) == second
    assert storage.replace("one", b"other", first) is None
    assert storage.replace("none", b"other", first) is None


def test_of_many_creators_one_succeeds(bucket: str):
    storage, made = Bucket(bucket), []

    def create(number: int) -> None:
        made.append(storage.create("one", str(number).encode()))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(version is not None for version in made) == 1


def test_a_bucket_that_is_not_there_is_named(bucket: str):
    with pytest.raises(EnvironmentMissing, match="no such bucket") as refused:
        Bucket("s3://bucket-that-nobody-made/runs").create("one", b"")
    assert refused.value.exit_code == 5


def test_a_server_that_is_away_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentMissing, match="does not answer") as refused:
        Bucket(bucket).read("one")
    assert "AWS_ENDPOINT_URL" in refused.value.way_out

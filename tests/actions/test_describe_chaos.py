"""`hba describe` as people use it: killed at any moment and started again, it ends with the bytes of one run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.chaos import moments

ROOT = Path(__file__).parents[2]
ANSWERED_IN = {"acoustic": "toy_tone", "pose": "toy_nod"}
WORDS = ("compute.cpus=4", "compute.extractors=2", "compute.object_store_mib=100")
PATIENCE_SECONDS = 300

pytest.importorskip("opensmile")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One whose path is short enough for Ray's sockets; no process that works in it survives the test."""
    folder = Path(tempfile.mkdtemp(prefix="hba"))
    yield folder
    for process in processes(folder):
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def start(stream: str, atlas: Path, folder: Path, storage: str) -> subprocess.Popen[str]:
    words = [f"atlas.datasets=[{ANSWERED_IN[stream]}]", f"descriptors.streams=[{stream}]", *WORDS, f"compute.storage={storage}"]
    command = [sys.executable, "-m", "hba_ray", "describe", str(atlas), *words]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=environ, stdout=said, stderr=said, text=True, start_new_session=True)


def finished_clips(storage: Path) -> dict[str, int]:
    """Clips with a row that is not folded yet -> the number of its file on the disk."""
    return {file.stem: file.stat().st_ino for file in storage.glob("descriptors/*/pending/*/*.parquet") if file.exists()}


def tables(storage: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in storage.glob("descriptors/*/?.parquet")}


def extracted_now(said: str) -> int:
    (row,) = [line.split() for line in said.splitlines() if line.startswith(tuple(ANSWERED_IN))]
    return int(row[6])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.hostile("kills")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stream", ANSWERED_IN)
def test_killed_at_a_random_moment_it_goes_on_and_ends_with_the_same_bytes(stream: str, toy, folder: Path):
    whole = start(stream, toy.jsonl, folder, "whole")
    assert whole.wait(PATIENCE_SECONDS) == 0, (folder / "said").read_text()
    clips = extracted_now(said := (folder / "said").read_text())
    assert clips > 10
    assert "core_worker" not in said and "raylet" not in said, "what Ray says is in files"

    driver = start(stream, toy.jsonl, folder, "parts")
    threshold = moments(stream).randint(1, clips - 5)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(finished_clips(folder / "parts")) < threshold:
        assert driver.poll() is None and time.monotonic() < deadline, (folder / "said").read_text()
        time.sleep(0.01)
    for pid in [driver.pid, *(process.pid for process in processes(folder))]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.wait()
    while processes(folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = finished_clips(folder / "parts")
    assert threshold <= len(before) < clips

    again = start(stream, toy.jsonl, folder, "parts")
    assert again.wait(PATIENCE_SECONDS) == 0, (folder / "said").read_text()
    assert extracted_now((folder / "said").read_text()) == clips - len(before), "no finished clip is extracted again"
    assert tables(folder / "parts") == tables(folder / "whole") != {}

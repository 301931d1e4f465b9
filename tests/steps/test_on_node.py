"""The process that does a step on a node has its GPUs to itself, also where Ray gave them out before the process before it has ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hba_ray.specs import ComputeSpec
from hba_ray.steps.away import GPUS
from hba_ray.steps.on_node import gpus_to_itself

SECONDS = 30.0


def next_process(share: float, folder: Path) -> tuple[threading.Thread, list[str], threading.Event, threading.Event]:
    """Takes the GPUs while others may hold them.

    Returns:
        It; what it says; what happens when it says something; and when it has them.
    """
    said, told, entered = list[str](), threading.Event(), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        told.set()

    def work() -> None:
        with gpus_to_itself(ComputeSpec(workers=1, gpus_per_worker=share), folder, say):
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, said, told, entered


def test_a_step_waits_for_the_one_before_it_on_the_same_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GPUS, "3,1")
    tmp_path = tmp_path / "not made yet"
    whole = ComputeSpec(workers=1, gpus_per_worker=2)
    with gpus_to_itself(whole, tmp_path, pytest.fail):
        thread, said, told, entered = next_process(1, tmp_path)
        assert told.wait(SECONDS) and not entered.is_set()
        assert said == ["waits for GPU 1, on which the step before it ends"]
        monkeypatch.setenv(GPUS, "0,2")
        with gpus_to_itself(whole, tmp_path, pytest.fail):
            pass
    assert entered.wait(SECONDS)
    thread.join()


def test_workers_that_share_a_gpu_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GPUS, "0")
    with gpus_to_itself(ComputeSpec(workers=1, gpus_per_worker=0.5), tmp_path, pytest.fail):
        thread, said, _, entered = next_process(0.5, tmp_path)
        assert entered.wait(SECONDS) and not said
        thread.join()


def test_a_part_of_a_gpu_is_told_from_other_parts_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for part in ("MIG-GPU-5c89/1/0", "MIG-GPU-5c89/2/0"):
        monkeypatch.setenv(GPUS, part)
        with gpus_to_itself(ComputeSpec(workers=1, gpus_per_worker=1), tmp_path, pytest.fail):
            pass
    assert len(list(tmp_path.iterdir())) == 2


def test_without_gpus_there_is_nothing_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GPUS, "")
    with gpus_to_itself(ComputeSpec(workers=1), tmp_path, pytest.fail):
        assert not list(tmp_path.iterdir())

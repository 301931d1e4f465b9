"""The follower hands on every step once, also where a resumed run takes lines back, and loses no failure."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from hba_ray.errors import EnvironmentMissing, TrainingError
from hba_ray.store.follow import followed
from tests.helpers.waiting import wait_until

wait = partial(wait_until, said=lambda: "the follower did not come so far", seconds=60)


def line(step: int, note: str = "", **facts: object) -> str:
    return json.dumps({"step": step, "note": note, **facts}) + "\n"


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def replace(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    os.replace(draft, path)


def test_lines_arrive_once_in_order_and_half_a_line_waits_for_its_end(tmp_path: Path):
    log, seen = tmp_path / "metrics.jsonl", []
    with followed(log, lambda metrics: seen.append(metrics["step"])):
        write(log, line(1) + line(2)[:7])
        wait(lambda: seen == [1])
        write(log, line(2)[7:] + line(3))
        wait(lambda: seen == [1, 2, 3])
        write(log, line(4))
    assert seen == [1, 2, 3, 4]


def test_a_line_whose_writer_died_within_it_holds_up_no_other(tmp_path: Path):
    log, seen = tmp_path / "metrics.jsonl", []
    with followed(log, lambda metrics: seen.append(metrics["step"])):
        write(log, line(1) + line(2)[:7] + "\n" + "[3]\n" + '{"lr": 1}\n' + "\xff\n" + line(4))
    assert seen == [1, 4]


def test_the_end_of_an_epoch_is_a_line_of_its_own(tmp_path: Path):
    log, seen = tmp_path / "metrics.jsonl", []
    with followed(log, seen.append):
        write(log, line(3) + line(3, epochs_done=1))
    assert [sorted(metrics) for metrics in seen] == [["note", "step"], ["epochs_done", "note", "step"]]


@pytest.mark.parametrize("note", ["", "a line that is longer than it was before it was taken back"])
def test_steps_that_a_resumed_run_takes_back_are_not_repeated(tmp_path: Path, note: str):
    log, seen = tmp_path / "metrics.jsonl", []
    with followed(log, lambda metrics: seen.append(metrics["step"])):
        write(log, line(1) + line(2) + line(3))
        wait(lambda: seen == [1, 2, 3])
        replace(log, line(1) + "".join(line(step, note) for step in (2, 3, 4, 5)))  # at once longer than before
        wait(lambda: len(seen) >= 5)
    assert seen == [1, 2, 3, 4, 5]


def test_a_log_of_an_earlier_attempt_is_handed_on_from_its_start(tmp_path: Path):
    log, seen = tmp_path / "metrics.jsonl", []
    write(log, line(1) + line(2))
    with followed(log, lambda metrics: seen.append(metrics["step"])):
        pass
    assert seen == [1, 2]


def test_what_could_not_be_recorded_is_tried_again(tmp_path: Path):
    log, seen, failures = tmp_path / "metrics.jsonl", [], [EnvironmentMissing("tracking", "is busy")] * 2

    def take(metrics) -> None:
        if metrics["step"] == 2 and failures:
            raise failures.pop()
        seen.append(metrics["step"])

    with followed(log, take):
        write(log, line(1) + line(2) + line(3))
        wait(lambda: seen == [1, 2, 3])
    assert not failures


def test_what_can_never_be_recorded_ends_the_block(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"

    def take(metrics) -> None:
        raise EnvironmentMissing("tracking", "is gone")

    with pytest.raises(EnvironmentMissing, match="is gone"), followed(log, take):
        write(log, line(1))
    with pytest.raises(TrainingError, match="the first cause"), followed(log, take):
        raise TrainingError("loss", "the first cause")

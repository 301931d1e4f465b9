"""What a run has cost is what its ledger says of every attempt; who dies without a word is counted until its last sign of life."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hba_ray.store.folders import ledger, note
from hba_ray.store.spending import SIGN_SECONDS, Rate, Spent, on_record, spent

AT = time.mktime(time.strptime("2026-11-30", "%Y-%m-%d"))
"""Seconds since 1970 at which the first step of the tests begins."""


def line(event: str, minutes: float, step: str = "a", **facts: Any) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(AT + 60 * minutes))
    return {"time": at, "event": event, "step": "sft", "fingerprint": step, **facts}


STARTED = line("started", 0, gpus=8, dollars_per_hour=24.0)


@pytest.mark.parametrize(
    ("lines", "now", "gpu_hours", "dollars"),
    [
        ([STARTED, line("done", 30, seconds=1800.0)], 600, 4, 12),
        ([STARTED, line("interrupted", 15, seconds=900.0)], 600, 2, 6),
        ([STARTED], 3, 0.4, 1.2),
        ([STARTED, line("alive", 5), line("alive", 10)], 12, 1.6, 4.8),
        ([STARTED, line("alive", 5), line("alive", 10)], 600, 2, 6),
        ([STARTED, line("alive", 10), {**STARTED, "time": line("", 60)["time"]}, line("done", 90, seconds=1800.0)], 600, 6, 18),
        ([line("reused", 0), line("started", 0, step="b"), line("done", 60, step="b", seconds=3600.0)], 600, 0, 0),
        ([line("started", 0, gpus=2), line("done", 60, seconds=3600.0)], 600, 2, None),
        ([line("started", 0, dollars_per_hour=1.5), line("done", 60, seconds=3600.0)], 600, 0, 1.5),
        ([{"time": STARTED["time"], "event": "started", "trial": "lr=1", "fingerprint": "a"}], 60, 0, 0),
    ],
    ids=[
        "done",
        "interrupted",
        "running",
        "running with signs",
        "killed",
        "killed and begun again",
        "free",
        "no price",
        "no GPU",
        "a trial",
    ],
)
def test_every_attempt_counts_for_as_long_as_it_held_something(lines, now, gpu_hours, dollars):
    assert SIGN_SECONDS == 300
    found = spent(lines, AT + 60 * now)
    assert found.gpu_hours == pytest.approx(gpu_hours) and found.dollars == (None if dollars is None else pytest.approx(dollars))


def test_a_price_that_was_stated_later_holds_for_what_was_done_before():
    lines = [line("started", 0, gpus=2), line("done", 60, seconds=3600.0), STARTED, line("done", 60, seconds=3600.0)]
    assert spent(lines, AT).dollars is None
    assert spent(lines, AT, price=4.0) == Spent(10.0, 32.0)


def test_the_ledger_tells_what_a_step_holds_and_how_it_ended(tmp_path: Path):
    with on_record(tmp_path, Rate(2.0, 5.0), sign_seconds=0.05, step="sft", fingerprint="a"):
        time.sleep(0.3)
    with pytest.raises(KeyboardInterrupt), on_record(tmp_path, Rate(), sign_seconds=0.01, step="judge", fingerprint="b"):
        time.sleep(0.1)
        raise KeyboardInterrupt
    first, *signs, done, begun, ended = ledger(tmp_path)
    assert (first["event"], first["gpus"], first["dollars_per_hour"]) == ("started", 2.0, 5.0)
    assert signs and {sign["event"] for sign in signs} == {"alive"}
    assert done["event"] == "done" and done["seconds"] >= 0.3
    assert (begun["event"], ended["event"]) == ("started", "interrupted") and "gpus" not in begun and ended["seconds"] >= 0.1
    found = spent(ledger(tmp_path), time.time())
    assert (found.gpu_hours, found.dollars) == pytest.approx((2 * done["seconds"] / 3600, 5 * done["seconds"] / 3600))


def test_former_ledgers_which_do_not_say_what_was_held_cost_nothing_that_is_known(tmp_path: Path):
    for event in ("started", "done"):
        note(tmp_path, event=event, step="sft", fingerprint="a")
    assert not spent(ledger(tmp_path), time.time())

"""A step is claimed, done, timed and finished in one place; what a former version has finished is told apart."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hba_ray.errors import DataError, HbaError
from hba_ray.runs.plan import plan
from hba_ray.steps import KINDS
from hba_ray.steps.base import Context, Draft, Result, Step, StepKind
from hba_ray.steps.run import do_step, done_again
from hba_ray.store.folders import Storage, done, finish, ledger
from tests.helpers.experiments import small_experiment


@dataclass(frozen=True, kw_only=True)
class Counted(Result):
    number: int


@dataclass(frozen=True)
class Counting(StepKind[Counted]):
    """Counts how often it was done."""

    seconds: float = 0.0
    name = "counting"
    version = 3
    unversioned = 2
    raised = "it counts otherwise"
    result_type = Counted

    def plan(self, draft: Draft) -> None:
        draft.add(self, {}, "count")

    def make(self, context: Context) -> Counted:
        time.sleep(self.seconds)
        file = context.folder / "times"
        times = int(file.read_text()) + 1 if file.exists() else 1
        file.write_text(str(times))
        return Counted(number=times)


def context(storage: Path, kind: Counting | None = None) -> Context:
    draft = Draft(small_experiment(storage), Storage(storage))
    (kind or Counting()).plan(draft)
    return Context(draft.spec, draft["counting"], {})


def test_a_step_says_how_long_it_took_and_by_which_version_it_was_done(tmp_path: Path):
    made = do_step(context(tmp_path, Counting(0.2)), lambda line: None, run=tmp_path)
    assert made == Counted(number=1, seconds=made.seconds, version=3) and 0.2 <= (made.seconds or 0) < 60
    assert [line["event"] for line in ledger(tmp_path)] == ["started", "done"]


def test_a_step_that_is_done_is_not_done_again_unless_its_result_asks_for_it(tmp_path: Path):
    said: list[str] = []
    for again in (lambda result: False, lambda result: False, lambda result: result.number < 2):
        made = do_step(context(tmp_path), said.append, again=again)
    assert made.number == 2 and [line.partition(": ")[2] for line in said] == ["count", "done before", "count"]


def test_of_two_who_need_a_step_one_does_it(tmp_path: Path):
    made: list[Result] = []
    slow = context(tmp_path, Counting(0.5))
    threads = [threading.Thread(target=lambda: made.append(do_step(slow, lambda line: None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [one.number for one in made if isinstance(one, Counted)] == [1, 1]


def test_a_result_that_is_not_there_or_damaged_is_refused_by_name(tmp_path: Path):
    step = context(tmp_path).step
    with pytest.raises(HbaError, match="this 'counting' step is not finished"):
        step.result()
    step.folder.mkdir(parents=True)
    finish(step.folder, {"number": "many"})
    with pytest.raises(DataError, match="is damaged: number") as refused:
        step.result()
    assert refused.value.where == str(step.folder / "done.json")


def test_what_another_version_says_besides_is_passed_over(tmp_path: Path):
    step = context(tmp_path).step
    step.folder.mkdir(parents=True)
    finish(step.folder, {"number": 7, "of_a_later_version": {}})
    assert step.result() == Counted(number=7)


def former(storage: Path, **said: object) -> None:
    folder = Storage(storage).step("counting", "0123456789ab")
    folder.mkdir(parents=True)
    finish(folder, {"number": 1, **said})


@pytest.mark.parametrize(("said", "tells"), [({}, True), ({"version": 2}, True), ({"version": 3}, False)])
def test_finished_steps_of_a_former_version_are_told(tmp_path: Path, said: dict, tells: bool):
    former(tmp_path, **said)
    lines = done_again([context(tmp_path).step], Storage(tmp_path))
    expected = "counting: 1 finished step is of an older version and will be done again: it counts otherwise"
    assert lines == ([expected] if tells else [])


def test_nothing_is_told_of_steps_that_are_done(tmp_path: Path):
    former(tmp_path)
    do_step(context(tmp_path), lambda line: None)
    assert done_again([context(tmp_path).step], Storage(tmp_path)) == []


def test_every_kind_whose_version_was_raised_says_what_changed():
    assert all(kind.raised for kind in KINDS.values() if kind.version > kind.unversioned)
    assert all(kind.version >= kind.unversioned for kind in KINDS.values())


def test_what_every_kind_says_is_read_back_as_it_was(tmp_path: Path):
    spec = small_experiment(tmp_path, sft__epochs=1)
    earlier: dict[str, Step] = {}
    for step in plan(spec).steps[:2]:
        made = do_step(Context(spec, step, dict(earlier)), lambda line: None)
        assert step.result() == made and (done(step.folder) or {})["version"] == step.kind.version
        earlier[step.name] = step

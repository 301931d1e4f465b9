"""Grades open answers with a language model: every item once, none lost, none guessed (paper appendix A.5).

The judge sees a row's own question, its reference answer and the candidate answer, in a conversation
of its own. What it says is kept by content, so that a run that was killed goes on where it was and
one that is finished costs nothing to repeat, not even a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from hba_ray.data.tasks import find_dataset
from hba_ray.data.text import break_tokens
from hba_ray.errors import DataError
from hba_ray.judge.batch import grade_in_batches
from hba_ray.judge.cache import Grade, GradeCache, open_cache
from hba_ray.judge.client import Endpoint, ask_all
from hba_ray.judge.prompts import Prompts, ReplyFormat, load_prompts, read_verdict
from hba_ray.judge.replies import Reply
from hba_ray.progress import Bar
from hba_ray.specs.base import fingerprint
from hba_ray.specs.sections.evaluate import JudgeSpec

WAIT_SECONDS = 26 * 3600
"""How long a run waits for another of the same judge; a batch may take a day."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class JudgeItem:
    """An open answer to be graded.

    Attributes:
        sample_id, dataset: name the row; together unique in a run.
        question: the row's own question, without media marks.
        answer: the model's text; may be empty.
        reference: the row's true answer.
    """

    sample_id: str
    dataset: str
    question: str
    answer: str
    reference: str


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one item, or why it said nothing.

    Attributes:
        correct: None where there is no readable verdict.
        defect: why there is none, countable ("no verdict", "cut off", "no reply"); empty where there is one.
        detail: the judge's text, or what went wrong.
        was_cached: the grade was known before this run, so that nothing was asked.
        input_tokens, output_tokens: what the item's grade took when it was asked for.
    """

    sample_id: str
    dataset: str
    correct: bool | None
    defect: str
    detail: str
    served_by: str
    input_tokens: int
    output_tokens: int
    was_cached: bool

    @property
    def label(self) -> str | None:
        """TRUE, FALSE or None; the share of rows labelled TRUE is the paper's accuracy, so unreadable counts as not TRUE."""
        return None if self.correct is None else str(self.correct).upper()


VERDICT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("dataset", pa.string()),
        ("correct", pa.bool_()),
        ("defect", pa.string()),
        ("detail", pa.string()),
        ("served_by", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("was_cached", pa.bool_()),
    ]
)


def verdict_table(verdicts: Sequence[Verdict]) -> pa.Table:
    """Verdicts as a table of VERDICT_SCHEMA."""
    return pa.Table.from_pylist([asdict(verdict) for verdict in verdicts], schema=VERDICT_SCHEMA)


def judge_fingerprint(spec: JudgeSpec) -> str:
    """The name of a judge, by its model, its settings and the content of its prompts, but not by how it is reached.

    Raises:
        SpecError: the prompts file is missing or not in order.
    """
    return fingerprint(_identity(spec, load_prompts(spec.prompts)))


def check_judge(spec: JudgeSpec) -> None:
    """Makes sure that the judge can be asked: prompts, key, endpoint, model. Sends one small request.

    Raises:
        SpecError: the prompts file is missing or not in order.
        EnvironmentMissing: no key, no endpoint, or no such model.
    """
    load_prompts(spec.prompts)
    run_coroutine(_probe(spec))


def judge_items(items: Sequence[JudgeItem], spec: JudgeSpec, cache: Path, progress: Bar) -> list[Verdict]:
    """Grades the items that the cache does not know, equal ones once.

    Args:
        cache: folder of what judges have said; shared by runs and by judges.
        progress: advances by one an item.

    Returns:
        One verdict an item, in their order. Those that got no reply are unreadable and not cached:
        `hba judge` asks them again.

    Raises:
        SpecError, EnvironmentMissing: as `check_judge`, before the first item is sent; or the endpoint
            stopped answering, and what it graded is kept.
        DataError: an item appears twice, has no question or reference, or is of no open task.
    """
    prompts = load_prompts(spec.prompts)
    identity = _identity(spec, prompts)
    by_key = _by_key(_checked(items), identity)
    waits = partial(progress.show, waiting="for another run of this judge")
    with open_cache(cache, fingerprint(identity), wait_seconds=WAIT_SECONDS, on_wait=waits) as known:
        grading = _Grading(spec, prompts, by_key, known, progress)
        if grading.missing:
            run_coroutine(grading.grade())
        verdicts = {item: grading.verdict(key, item) for key, copies in by_key.items() for item in copies}
    return [verdicts[item] for item in items]


class _Grading:
    """Grades the items of one run that the cache does not know, and counts what came of all of them. It is the run's `Collector`.

    Attributes:
        missing: keys that the cache did not know when the run began.
    """

    def __init__(self, spec: JudgeSpec, prompts: Prompts, items: Mapping[str, list[JudgeItem]], known: GradeCache, bar: Bar):
        self.spec, self.prompts, self.items, self.known, self.bar = spec, prompts, items, known, bar
        self.missing = {key: copies[0] for key, copies in items.items() if key not in known}
        self._failures: dict[str, str] = {}
        self._tally: Counter[str] = Counter()
        self._input_tokens = self._output_tokens = 0
        self._count([(key, known[key].correct) for key in items if key in known])

    async def grade(self) -> None:
        """Asks for every missing key."""
        async with Endpoint(self.spec) as endpoint:
            await endpoint.probe()
            turns = {key: self._turns(item, endpoint.dialect.reply) for key, item in self.missing.items()}
            if self.spec.batch:
                await grade_in_batches(endpoint, turns, fingerprint(_identity(self.spec, self.prompts)), self)
            else:
                await ask_all(endpoint, turns, self)

    def keep(self, key: str, reply: Reply) -> None:
        grade = _grade(reply)
        self.known.add(key, grade, _content(self.items[key][0]))
        self._input_tokens += grade.input_tokens
        self._output_tokens += grade.output_tokens
        self._count([(key, grade.correct)])

    def fail(self, key: str, what: str) -> None:
        self._failures[key] = what
        self._count([(key, None)])

    def watch(self, state: str) -> None:
        self.bar.show(batch=state)

    def verdict(self, key: str, item: JudgeItem) -> Verdict:
        if key in self._failures:
            return Verdict(item.sample_id, item.dataset, None, "no reply", self._failures[key], "", 0, 0, False)
        grade = self.known[key]
        names = (item.sample_id, item.dataset, grade.correct, grade.defect, grade.reply, grade.served_by)
        return Verdict(*names, grade.input_tokens, grade.output_tokens, key not in self.missing)

    def _count(self, outcomes: Sequence[tuple[str, bool | None]]) -> None:
        """Adds (key, verdict) pairs to what the bar shows."""
        price = self.spec.price
        for key, correct in outcomes:
            self._tally["unreadable" if correct is None else str(correct).upper()] += len(self.items[key])
        shown: dict[str, float | int] = {name: self._tally[name] for name in ("TRUE", "FALSE", "unreadable")}
        if price:
            shown["dollars"] = (self._input_tokens * price.input + self._output_tokens * price.output) / 1e6
        else:
            shown["tokens"] = self._input_tokens + self._output_tokens
        self.bar.show(**shown)
        self.bar.advance(sum(len(self.items[key]) for key, _ in outcomes))

    def _turns(self, item: JudgeItem, reply: ReplyFormat) -> tuple[str, str]:
        """The system's and the user's turn."""
        user = break_tokens(self.prompts.user.format(question=item.question, reference=item.reference, answer=item.answer))
        return self.prompts.system(find_dataset(item.dataset).task.id, reply), user


async def _probe(spec: JudgeSpec) -> None:
    async with Endpoint(spec) as endpoint:
        await endpoint.probe()


def _identity(spec: JudgeSpec, prompts: Prompts) -> dict[str, Any]:
    return {**spec.identity(), "prompts": prompts.identity()}


def _content(item: JudgeItem) -> dict[str, str]:
    """The part of an item that decides its grade, and so its key in the cache."""
    task = find_dataset(item.dataset).task
    content = {"task": task.id, "question": item.question, "answer": item.answer, "reference": item.reference}
    return {**content, "rubric": task.rubric} if task.rubric else content


def _grade(reply: Reply) -> Grade:
    correct, defect = None, "cut off" if reply.is_cut_off else ""
    if not defect:
        try:
            correct = read_verdict(reply.text)
        except DataError as unreadable:
            defect = unreadable.reason
    return Grade(correct, defect, reply.text, reply.served_by, reply.input_tokens, reply.output_tokens)


def _by_key(items: Sequence[JudgeItem], identity: Mapping[str, Any]) -> dict[str, list[JudgeItem]]:
    """Items by a digest of judge and content; equal ones share a key."""
    judge = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    by_key: dict[str, list[JudgeItem]] = {}
    for item in items:
        digest = judge.copy()
        digest.update(json.dumps(_content(item), sort_keys=True).encode())
        by_key.setdefault(digest.hexdigest(), []).append(item)
    return by_key


def _checked(items: Sequence[JudgeItem]) -> Sequence[JudgeItem]:
    seen: set[tuple[str, str]] = set()
    for item in items:
        where = f"judge ({item.dataset} {item.sample_id})"
        if not find_dataset(item.dataset, where=where).task.is_open:
            raise DataError(where, "is of a task with classes", "only open answers are judged", reason="wrong task")
        for name in ("question", "reference"):
            if not getattr(item, name).strip():
                raise DataError(where, f"has no {name}", "the judge is asked about the row's own question and answer", reason="empty text")
        if (item.dataset, item.sample_id) in seen:
            raise DataError(where, "appears twice", "grade one model's answers at a time", reason="duplicate sample")
        seen.add((item.dataset, item.sample_id))
    return items


def run_coroutine(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine to its end and gives its result, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()

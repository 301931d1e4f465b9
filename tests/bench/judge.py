"""Speed of the judge: ours against a loop of threads with a pause of half a second, and against its own cache.

The stub answers after 200 ms and fails 5% of requests with 429, 500 or 503; both sides ask it the same,
50 items at a time. The loop keeps the released judge's habit of holding an item's place while it pauses
(evaluation/llm_grader/llm_judge_eval.py), but is spared its habit of making a client for each item.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from rich.console import Console

from hba_ray.judge.client import DIALECTS, request_body
from hba_ray.judge.grade import JudgeItem, judge_items
from hba_ray.judge.prompts import load_prompts
from hba_ray.progress import progress
from hba_ray.specs.sections.evaluate import JudgeSpec
from tests.helpers.stub_judge import KEY, KEY_ENV, StubJudge

ITEMS, CONCURRENCY, ROUNDS = 1000, 50, 3
LATENCY_SECONDS, FAILING_SHARE, PAUSE_SECONDS = 0.2, 0.05, 0.5


def measure() -> Iterator[dict[str, float | str]]:
    """Medians over rounds in which ours and the loop take turns; `lost` and `graded_twice` are sums."""
    import openai  # noqa: F401 - neither side's time holds the import

    os.environ[KEY_ENV] = KEY
    rounds = [_round(turn) for turn in range(ROUNDS)]
    middle = {name: median(one[name] for one in rounds) for name in rounds[0]}
    yield {
        "items a second": middle["ours"],
        "items a second, loop with a pause": middle["loop"],
        "speed-up": median(one["ours"] / one["loop"] for one in rounds),
        "speed-up, goal": ">= 2.5",
        "speed-up of a run from cache": median(one["cached"] / one["ours"] for one in rounds),
        "speed-up of a run from cache, goal": ">= 100",
        "items lost": sum(one["lost"] for one in rounds),
        "items graded twice": sum(one["twice"] for one in rounds),
    }


def _round(turn: int) -> dict[str, float]:
    """Items per second of each way, and what ours lost or had graded twice."""
    items = [JudgeItem(f"{place}", "toy_answers", f"Question {turn} {place}?", "It is right.", "That.") for place in range(ITEMS)]
    with StubJudge(latency=LATENCY_SECONDS, failures=FAILING_SHARE, seed=turn) as stub, tempfile.TemporaryDirectory() as folder:
        spec, cache = stub.spec(concurrency=CONCURRENCY), Path(folder)
        ours, lost = _timed(items, spec, cache)
        cached, lost_again = _timed(items, spec, cache)
        graded = stub.graded()
    with StubJudge(latency=LATENCY_SECONDS, failures=FAILING_SHARE, seed=turn) as stub:
        loop = _loop_with_a_pause(items, stub.spec())
    return {"ours": ours, "cached": cached, "loop": loop, "lost": lost + lost_again, "twice": sum(graded.values()) - len(graded)}


def _timed(items: list[JudgeItem], spec: JudgeSpec, cache: Path) -> tuple[float, int]:
    """Items per second, and items without a verdict."""
    with progress("judge", len(items), console=Console(file=io.StringIO())) as bar:
        started = time.perf_counter()
        verdicts = judge_items(items, spec, cache, bar)
        seconds = time.perf_counter() - started
    return len(items) / seconds, sum(verdict.correct is None for verdict in verdicts)


def _loop_with_a_pause(items: list[JudgeItem], spec: JudgeSpec) -> float:
    """Items per second."""
    import openai

    prompts = load_prompts(spec.prompts)

    def ask(item: JudgeItem) -> None:
        user = prompts.user.format(question=item.question, reference=item.reference, answer=item.answer)
        client.chat.completions.create(**request_body(spec, DIALECTS[0], prompts.system("NVC", "schema"), user))
        time.sleep(PAUSE_SECONDS)

    with openai.OpenAI(api_key=KEY, base_url=spec.base_url, max_retries=spec.retries) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        started = time.perf_counter()
        list(pool.map(ask, items))
        return len(items) / (time.perf_counter() - started)

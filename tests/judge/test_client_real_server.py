"""A real server of the OpenAI protocol as the judge: vLLM on a CPU, with the tiny model in it, and with the small one of real weights."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from rich.console import Console

from hba_ray.cluster.environment import vllm_environ
from hba_ray.errors import EnvironmentMissing
from hba_ray.evaluation.retention import DIMENSIONS, HIGHEST, LOWEST, rate_answers
from hba_ray.judge.grade import JudgeItem, check_judge, judge_items
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.models.export import export_thinker
from hba_ray.progress import Bar, progress
from hba_ray.specs.sections.evaluate import JudgeSpec
from tests.helpers.servers import free_port

T = TypeVar("T")
NAME = "local-judge"
PATIENCE_SECONDS = 600


@pytest.fixture(scope="module", params=["tiny_backbone", "small_backbone"])
def base_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server on this machine's loopback, ended with all that it started.

    Started as a module: the command `vllm serve` asks for a distribution of that name, and the build for CPUs has another.
    """
    backbone, folder = str(request.getfixturevalue(request.param)), tmp_path_factory.mktemp("served")
    export_thinker(load_backbone(backbone, dtype=torch.float32), load_processor(backbone), folder / "model")
    port = free_port()
    settings = "--dtype float32 --enforce-eager --max-model-len 4096 --max-num-seqs 8 --skip-mm-profiling --no-enable-log-requests"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder / "model"),
        "--served-model-name",
        NAME,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "said").open("w") as said:
        server = subprocess.Popen(
            [*command, *settings.split()],
            env=os.environ | vllm_environ(gpu=False),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "said").read_text()[-4000:]
            time.sleep(0.5)
        yield f"{url}/v1"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


def answers_of(
    ask: Callable[[list[JudgeItem], JudgeSpec, Path, Bar], list[T]], items: list[JudgeItem], spec: JudgeSpec, cache: Path
) -> list[T]:
    """What a judge says of items, with a bar that nobody sees."""
    with progress("judge", len(items), console=Console(file=io.StringIO())) as bar:
        return ask(items, spec, cache, bar)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_served_model_grades_every_item_once_and_is_not_asked_again(base_url: str, tmp_path: Path):
    spec = JudgeSpec(model=NAME, base_url=base_url, key_env=None, max_tokens=48, temperature=0, concurrency=4)
    check_judge(spec)
    items = [JudgeItem(f"row {number}", "toy_answers", f"What does person {number} do?", "Nods.", "Nods.") for number in range(6)]
    first, second = (answers_of(judge_items, items, spec, tmp_path) for _ in range(2))
    assert [verdict.sample_id for verdict in first] == [item.sample_id for item in items]
    for verdict in first:  # what a poor model says is seldom a verdict; then it is counted as none, and never guessed
        assert (verdict.correct is None) == bool(verdict.defect)
        assert verdict.defect != "no reply" and verdict.output_tokens > 0 and verdict.served_by == NAME
    assert all(verdict.was_cached for verdict in second)
    assert [(verdict.correct, verdict.detail) for verdict in second] == [(verdict.correct, verdict.detail) for verdict in first]

    with pytest.raises(EnvironmentMissing, match=rf"no such model(.|\n)*{NAME}"):
        check_judge(spec.model_copy(update={"model": "local-jugde"}))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_served_model_rates_every_answer_once_on_the_scale_or_not_at_all(base_url: str, tmp_path: Path, request: pytest.FixtureRequest):
    spec = JudgeSpec(model=NAME, base_url=base_url, key_env=None, max_tokens=96, temperature=0, concurrency=4)
    items = [JudgeItem(f"row {number}", "toy_answers", f"What does person {number} do?", "Nods, and leaves.", "-") for number in range(6)]
    first, second = (answers_of(rate_answers, items, spec, tmp_path) for _ in range(2))
    assert len(first) == len(items) and second == first
    for ratings in first:
        assert ratings is None or (ratings.keys() == set(DIMENSIONS) and all(LOWEST <= one <= HIGHEST for one in ratings.values()))
    (cache,) = tmp_path.glob("judge-*.jsonl")
    grades = [json.loads(line)["grade"] for line in cache.read_text().splitlines()]
    assert len(grades) == len(items) and all(grade["served_by"] == NAME and grade["output_tokens"] > 0 for grade in grades)
    if request.node.callspec.params["base_url"] == "small_backbone":
        assert all(first), "a pretrained model keeps to the form"

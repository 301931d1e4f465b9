"""Real verl and real vLLM on a CPU: a run whose engine is killed in the middle, and the run that goes on from its checkpoint.

Three starts of verl, of which each takes a minute or two on two cores: everything that needs one is here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from hba_ray.errors import DataError, EnvironmentMissing, TrainingError
from hba_ray.rl.checkpoints import latest_step, write_trained
from hba_ray.rl.dataset import AtlasDataset
from hba_ray.rl.launch import GrpoJob, _held, check_room, run_grpo
from hba_ray.runtime.session import ray_session
from hba_ray.specs import ExperimentSpec
from tests.rl.conftest import SPEC, Toy

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1500)]

STEPS, KILLED_AFTER = 6, 3
GRPO = {
    "rollouts": 2, "batch": 4, "mini_batch": 4, "micro_batch": 4, "epochs": 2, "steps": STEPS, "save_every": 2, "lr": 2e-4,
    "prompt_tokens": 512, "response_tokens": 12, "validate_every": None, "reward": {"similarity_weight": 0, "shape": "vowels"},
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    logs = tmp_path_factory.mktemp("logs")
    with ray_session(toy.spec.compute, logs, rollouts=True):
        yield logs


@pytest.fixture(scope="module")
def job(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> GrpoJob:
    spec = ExperimentSpec.model_validate(SPEC | {"grpo": GRPO})
    return GrpoJob(spec, toy.start, toy.atlas, toy.index, tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def killed(cluster: Path, job: GrpoJob) -> SimpleNamespace:
    """The first attempt: vLLM's engine is killed once some steps are logged."""
    before, watcher = _held(), threading.Thread(target=kill_engine, args=(job.metrics,), daemon=True)
    watcher.start()
    with pytest.raises(TrainingError) as raised:
        run_grpo(job, print)
    return SimpleNamespace(error=raised.value, lines=lines_of(job.metrics), checkpoint=latest_step(job.checkpoints), left=new_since(before))


@pytest.fixture(scope="module")
def resumed(killed: SimpleNamespace, job: GrpoJob) -> SimpleNamespace:
    """The second attempt, to the end."""
    before = _held()
    run_grpo(job, print)
    write_trained(job.checkpoints / f"global_step_{STEPS}", job.start, job.folder / "model")
    return SimpleNamespace(lines=lines_of(job.metrics), left=new_since(before))


def kill_engine(metrics: Path) -> None:
    while len(lines_of(metrics)) < KILLED_AFTER:
        time.sleep(0.2)
    engines = [process for process in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(process.cmdline())]
    for engine in engines:
        engine.kill()


def lines_of(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def new_since(before: Any) -> list[set[str]]:
    return [now - then for now, then in zip(_held(), before, strict=True)]


def rows_of(job: GrpoJob, step: int) -> set[str]:
    return set(pq.read_table(job.rollouts / f"step-{step:06d}.parquet").column("sample_id").to_pylist())


def test_vllm_dying_in_the_middle_is_told_and_leaves_the_cluster_clean(killed: SimpleNamespace):
    assert "vllm" in str(killed.error).lower() and killed.error.exit_code == 1
    assert killed.left == [set(), set()]
    assert killed.checkpoint == 2


def test_a_resumed_run_goes_on_with_the_next_step_and_the_next_rows(killed: SimpleNamespace, resumed: SimpleNamespace, job: GrpoJob):
    assert [line["step"] for line in killed.lines][:KILLED_AFTER] == [1, 2, 3]
    assert [line["step"] for line in resumed.lines] == [3, 4, 5, 6]
    dataset = AtlasDataset(str(job.atlas / "train"), None, job.config().data)
    for step in range(1, STEPS + 1):
        expected = {dataset[item]["extra_info"]["sample_id"] for item in dataset.batch(step - 1, 4)}
        assert rows_of(job, step) <= expected and rows_of(job, step), f"step {step}"
    assert resumed.left == [set(), set()]


def test_every_part_of_the_reward_is_logged_by_task_and_dataset(resumed: SimpleNamespace, job: GrpoJob):
    data = resumed.lines[-1]["data"]
    for part in ("score", "acc", "format", "shape"):
        assert f"reward/{part}" in data
        assert any(name.startswith("reward/task/") and name.endswith(f"/{part}") for name in data)
        assert any(name.startswith("reward/dataset/toy_") and name.endswith(f"/{part}") for name in data)
    table = pq.read_table(job.rollouts / f"step-{STEPS:06d}.parquet")
    assert {"prompt", "response", "true", "reward_score", "reward_shape"} <= set(table.column_names)
    assert "<think>" in table.column("prompt")[0].as_py()


def test_sampled_and_trained_probabilities_agree(killed: SimpleNamespace, resumed: SimpleNamespace):
    largest = [line["data"]["training/rollout_probs_diff_max"] for line in [*killed.lines, *resumed.lines]]
    assert len(largest) >= 6 and max(largest) < 0.05
    assert any(line["data"]["actor/grad_norm"] for line in resumed.lines)


def test_transformers_and_vllm_load_the_trained_model_and_say_the_same(resumed: SimpleNamespace, toy: Toy, job: GrpoJob, tmp_path: Path):
    """In a process of its own: vLLM holds on to what it is given."""
    lines = [toy.line(signature) for signature in ("text", "text_audio", "text_video", "text_video_audio")]
    code = f"""
import json
from hba_ray.rl.parity import compare
from hba_ray.specs.atlas import MediaSpec
media = MediaSpec.model_validate({toy.spec.atlas.media.model_dump(mode="json")!r})
found = compare({str(job.folder / "model")!r}, {str(toy.atlas / "train")!r}, {lines}, media, ("audio", "video"))
print("FOUND", json.dumps([[list(row.modalities), row.same_prompt, row.same_greedy, row.largest, row.holds] for row in found]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert said, done.stderr[-2000:]
    found = json.loads(said[0].removeprefix("FOUND "))
    assert [row[0] for row in found] == [[], ["audios"], ["videos"], ["videos", "audios"]]
    assert all(row[1] and row[2] and row[4] for row in found), found


def test_too_few_gpus_are_told_before_anything_starts(cluster: Path, toy: Toy):
    spec = ExperimentSpec.model_validate(SPEC | {"compute": {"workers": 8}, "grpo": {"batch": 8, "mini_batch": 8, "micro_batch": 1}})
    with pytest.raises(EnvironmentMissing, match="8 GPUs") as raised:
        check_room(spec)
    assert raised.value.exit_code == 5


def test_a_row_that_cannot_be_asked_ends_the_run_and_is_named(cluster: Path, toy: Toy, tmp_path: Path):
    spec = ExperimentSpec.model_validate(SPEC | {"grpo": GRPO | {"prompt_tokens": 64}})
    before = _held()
    with pytest.raises(DataError, match=r"row toy_.*tokens, more than grpo.prompt_tokens 64") as raised:
        run_grpo(GrpoJob(spec, toy.start, toy.atlas, toy.index, tmp_path), print)
    assert raised.value.reason == "prompt too long" and raised.value.exit_code == 1
    assert new_since(before) == [set(), set()]

"""A benchmark's figures are there as soon as it has them, whatever becomes of the others."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hba_ray.models.size.published import OMNI_7B
from tests.bench.__main__ import NAMES, run
from tests.bench._real_size import REAL, TINY, config_of, thinker_of
from tests.bench.gpu import Bench, Figures, Measurements
from tests.bench.gpu import run as gpu_run

ROOT = Path(__file__).parents[1]


def test_figures_are_printed_and_kept_one_by_one_and_a_failure_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def broken() -> Iterator[dict[str, float | str]]:
        yield {"before": 1.0}
        assert (tmp_path / "figures.jsonl").read_text().count("\n") == 3, "what was measured is there already"
        raise ValueError("broken")

    measures = {"first": lambda: [{"ratio (goal 2)": 2.5}, {"what": "text"}], "second": broken, "third": lambda: [{"rows": 3.0}]}
    assert run(measures, tmp_path / "figures.jsonl", measures.__getitem__) == ["second"]
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [(line["benchmark"], line["value"]) for line in lines] == [("first", 2.5), ("first", "text"), ("second", 1.0), ("third", 3.0)]
    assert "first         ratio (goal 2): 2.5" in capsys.readouterr().out


def test_every_module_beside_it_is_a_benchmark():
    assert "loader" in NAMES and "__main__" not in NAMES


def test_the_model_of_the_gpu_bench_has_the_weights_of_the_released_one():
    thinker = thinker_of(config_of(REAL), torch.bfloat16, "meta")
    assert sum(weight.numel() for weight in thinker.parameters()) == pytest.approx(OMNI_7B.weights, rel=1e-4)


@pytest.mark.slow
def test_the_first_hour_on_a_gpu_runs_at_tiny_size_without_ray_or_vllm(tmp_path: Path):
    code = (
        "import sys; sys.modules.update(ray=None, vllm=None)\n"
        "from tests.bench.__main__ import run\n"
        "from tests.bench import gpu, _real_size\n"
        f"sys.exit(bool(run(['gpu'], __import__('pathlib').Path({str(tmp_path / 'figures.jsonl')!r}),"
        " lambda name: lambda: gpu.run(gpu.Bench(_real_size.TINY, 'cpu')))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line["measure"]: line["value"] for line in map(json.loads, (tmp_path / "figures.jsonl").read_text().splitlines())}
    ends = [json.loads(found[name]) for name in ("1 start", "2 recomputing", "3 modalities", "4 keeping")]
    ends += [json.loads(found[name]) for name in ("5 accumulation", "6 adapters", "7 decoding", "8 actor")]
    assert all(len(end) > 1 and "ended" not in end for end in ends), ends
    assert all(value >= 0 for name, value in found.items() if "percent" in name and "adapters" not in name)


def test_a_measurement_that_runs_out_of_time_or_memory_says_so_and_the_next_begins():
    def small(bench: Bench) -> Iterator[Figures]:
        yield {"figure": 1.0}

    def large(bench: Bench) -> Iterator[Figures]:
        yield {"before": 1.0}
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    def endless(bench: Bench) -> Iterator[Figures]:
        yield {"before": 1.0}
        while True:
            time.sleep(0.01)

    measurements: Measurements = {"1": (large, 1.0), "2": (endless, 0.003), "3": (small, 1.0)}
    found = {name: value for figures in gpu_run(Bench(TINY, "cpu"), measurements) for name, value in figures.items()}
    ends = [json.loads(str(found[name])) for name in measurements]
    assert [end.get("ended") for end in ends] == [
        "out of memory: CUDA out of memory. Tried to allocate 2 GiB",
        "out of time, 0.003 min",
        None,
    ]
    assert found["1: before"] == found["2: before"] == found["3: figure"] == 1.0

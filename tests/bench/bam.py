"""What BAM costs: its forward pass at full width, and a sweep with stored states against one that runs the backbone.

Times are CPU seconds of this process on one thread, which a busy machine disturbs less than the clock.
`python -m tests.bench.bam` prints them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

WIDTHS = {"pose": 3318, "acoustic": 6373}
DATASETS = ("toy_tone", "toy_nod")
TRIALS = [
    {"hidden": hidden, "lr": lr, "streams": streams}
    for hidden in (256, 512)
    for lr in (5e-4, 1e-3)
    for streams in (("pose",), ("acoustic",), ("pose", "acoustic"))
]


def measure() -> dict[str, Any]:
    """Milliseconds a row of the adapters, parameters, and the ratio of the two sweeps with their largest loss difference."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return {**measure_forward(), **measure_sweep(Path(folder))}


def measure_forward(repeats: int = 200) -> dict[str, Any]:
    """Both adapters and each alone, 3318 and 6373 in, 3584 out; at batch 1 the limit is reading the weights once."""
    from hba_ray.models.bam import Bam, Descriptors
    from hba_ray.specs.bam import BamSpec

    bam = Bam(BamSpec(), WIDTHS, 3584, None).eval()
    facts: dict[str, Any] = {"adapter_parameters": sum(weight.numel() for weight in bam.parameters())}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        bam.with_weights_in(dtype)
        for rows in (1, 32):
            given = {stream: Descriptors(torch.randn(rows, width), torch.ones(rows, dtype=torch.bool)) for stream, width in WIDTHS.items()}
            kind = f"{str(dtype).removeprefix('torch.')}_batch_{rows}"
            facts[f"adapters_ms_per_row_{kind}"] = _milliseconds(lambda given=given: bam(given), repeats) / rows
            for stream, one in given.items():
                facts[f"{stream}_ms_per_row_{kind}"] = _milliseconds(lambda s=stream, one=one: bam.adapters[s](*one), repeats) / rows
    bam.with_weights_in(torch.float32)
    facts["weights_read_once_ms"] = _milliseconds(lambda: [weight.sum() for weight in bam.parameters()], repeats)
    return facts


def _milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """CPU milliseconds, median."""
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 5):
            start = time.process_time_ns()
            call()
            seconds.append(time.process_time_ns() - start)
    return statistics.median(seconds[5:]) / 1e6


def describe(split: str, sample_ids: Sequence[str]) -> dict[str, Any]:
    """Noise of the real widths."""
    from hba_ray.models.bam import Descriptors

    generator = torch.Generator().manual_seed(len(sample_ids))
    present = torch.ones(len(sample_ids), dtype=torch.bool)
    return {stream: Descriptors(torch.randn(len(sample_ids), width, generator=generator), present) for stream, width in WIDTHS.items()}


def measure_sweep(folder: Path) -> dict[str, Any]:
    """12 trials of 4 epochs on two toy datasets and the tiny model: states computed once, or the backbone in every step."""
    from hba_ray.data.atlas import build_index
    from hba_ray.data.toy import build_toy
    from hba_ray.models.tiny import build_tiny
    from hba_ray.specs import AtlasSpec, TinySpec, ToySpec
    from hba_ray.training.bam import train_bam
    from tests.training.bam_jobs import make_shop

    build_toy(ToySpec(rows=160), folder / "atlas", "parquet")
    build_tiny(TinySpec(), folder / "tiny", ["what does the person feel"], audio_seconds=2.0)
    index = build_index(AtlasSpec(root=str(folder / "atlas"), datasets=DATASETS), folder / "atlas")
    shop = make_shop(index, folder / "tiny", folder)
    seconds: dict[bool, float] = {}
    losses: dict[bool, list[float]] = {}
    for cache in (True, False):
        start = time.process_time()
        jobs = [shop.job({"compute": {"micro_batch": 8}}, **trial, cache=cache, batch=None) for trial in TRIALS]
        if cache:
            shop.with_states(jobs[0])
        trained = [one for i, job in enumerate(jobs) for one in train_bam(job, DATASETS, describe, folder / f"{cache}-{i}")]
        seconds[cache] = time.process_time() - start
        losses[cache] = [loss for one in trained for loss in (*one.losses, *one.validation)]
    return {
        "sweep_rows": index.table.num_rows,
        "sweep_stored_seconds": seconds[True],
        "sweep_live_seconds": seconds[False],
        "sweep_ratio": seconds[False] / seconds[True],
        "sweep_largest_loss_difference": max(abs(a - b) for a, b in zip(losses[True], losses[False], strict=True)),
        "sweep_largest_loss_difference_relative": max(abs(a - b) / abs(b) for a, b in zip(losses[True], losses[False], strict=True)),
        "sweep_largest_loss": max(losses[False]),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))

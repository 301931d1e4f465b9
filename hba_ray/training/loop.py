"""The loop of one supervised worker: epochs of optimiser steps, each followed by validation. No Ray here.

A step computes on the rows that data/order.py gives it, and each of them weighs 1/`sft.batch` in its gradient, in the
shorter last step of an epoch too. Workers and micro-batches only divide a step's sum, so the gradient is the same however
many there are, but for the rounding of sums, which are in fp32; in bf16 each micro-batch's own gradient is rounded, too.
Dropout is the exception: its masks are drawn by each worker for each micro-batch, so with dropout another split is another draw.

Micro-batches come from a `Feed`, which knows how to go on inside an epoch. Whether Ray or this process makes them, where
checkpoints go and what is logged are arguments and hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed

from hba_ray.data.atlas import AtlasIndex, Drop
from hba_ray.data.feed.batches import MicroBatch
from hba_ray.data.feed.order import Order, Window, micro_batches_per_epoch, plan_epoch
from hba_ray.errors import TrainingError

MakeBatches = Callable[[str, Sequence[Window]], Iterator[MicroBatch]]
"""(split, windows) -> their micro-batches in order."""


@dataclass(frozen=True)
class Feed:
    """The micro-batches of one worker.

    Attributes:
        order: of the training split; validation keeps the order of the files.
    """

    index: AtlasIndex
    order: Order
    make_batches: MakeBatches

    @property
    def micro_batches_per_epoch(self) -> int:
        return micro_batches_per_epoch(self.index, self.order)

    def training(self, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """The epoch's micro-batches from number `start`; windows before it are not read."""
        windows = plan_epoch(self.index, self.order, epoch)
        skipped = 0
        while windows and skipped + windows[0].micro_batches <= start:
            skipped += windows.pop(0).micro_batches
        batches = self.make_batches("train", windows)
        for _ in range(start - skipped):
            next(batches)
        return batches

    @property
    def validates(self) -> bool:
        return len(self.index.rows_of("validation")) > 0

    def validation(self) -> Iterator[MicroBatch]:
        """This worker's micro-batches of the validation split; all workers together see each of its rows once."""
        order = replace(self.order, split="validation", shuffle=False, batch=None)
        return self.make_batches("validation", plan_epoch(self.index, order))


@dataclass
class State:
    """Where training stands: with the engine's own state, all that is needed to go on as if it had never stopped.

    Attributes:
        epoch, micro_batch: the micro-batch that this worker takes next; both are counted from 0.
        step: optimiser steps done.
        best_loss: lowest validation loss so far; None without a validation split.
        best_epoch: the epoch of that loss, or the last one where there is no validation split.
        flat_epochs: epochs since the best one.
        drops: bad rows that were left out so far.
    """

    epoch: int = 0
    micro_batch: int = 0
    step: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
    flat_epochs: int = 0
    finished: bool = False
    drops: list[Drop] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> State:
        return cls(**{**facts, "drops": [Drop(**drop) for drop in facts["drops"]]})


@dataclass
class Totals:
    """Sums over micro-batches, from which the logged ratios are taken."""

    class_loss: float = 0.0
    answer_loss: float = 0.0
    rows: float = 0.0
    class_rows: float = 0.0
    class_correct: float = 0.0
    answer_tokens: float = 0.0
    real_tokens: float = 0.0
    padded_tokens: float = 0.0
    wait_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, batch: MicroBatch, outputs: Any) -> None:
        """Adds a micro-batch.

        Raises:
            TrainingError: a loss is not a finite number; names the rows.
        """
        sums = (outputs.class_loss_sum, outputs.answer_loss_sum, outputs.class_rows, outputs.class_correct, outputs.answer_tokens)
        values = torch.stack([value.detach().double() for value in sums]).tolist()  # one wait for the GPU, not five
        if not all(map(math.isfinite, values)):
            rows = ", ".join(str(row["sample_id"]) for row in batch.rows)
            raise TrainingError("loss", f"is not a finite number on rows {rows}", "lower sft.lr, or set sft.max_gradient_norm=1.0")
        self.class_loss += values[0]
        self.answer_loss += values[1]
        self.class_rows += values[2]
        self.class_correct += values[3]
        self.answer_tokens += values[4]
        self.rows += float(batch.weight.sum())
        self.real_tokens += batch.real_tokens
        self.padded_tokens += batch.padded_tokens

    def over_workers(self) -> Totals:
        """The sums over all workers; seconds are averaged, since workers run side by side."""
        values = torch.tensor(list(asdict(self).values()), dtype=torch.float64)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
            values = values.to(device)
            torch.distributed.all_reduce(values)
            values = values.cpu()
        totals = Totals(*values.tolist())
        workers = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        totals.wait_seconds, totals.seconds = totals.wait_seconds / workers, totals.seconds / workers
        return totals

    def metrics(self, class_weight: float = 1.0, answer_weight: float = 1.0) -> dict[str, float]:
        """Losses per row (the paper's 1/B), accuracy, rows and tokens per second, and the share of time spent waiting for data."""
        if not self.rows:
            return {}
        metrics = {"loss": (class_weight * self.class_loss + answer_weight * self.answer_loss) / self.rows}
        if self.class_rows:
            metrics |= {"class_loss": self.class_loss / self.class_rows, "class_accuracy": self.class_correct / self.class_rows}
        if self.answer_tokens:
            metrics["answer_loss_per_token"] = self.answer_loss / self.answer_tokens
        if self.seconds:
            metrics |= {
                "rows_per_second": self.rows / self.seconds,
                "tokens_per_second": self.real_tokens / self.seconds,
                "data_wait_share": self.wait_seconds / self.seconds,
            }
        if self.real_tokens:
            metrics["padding_ratio"] = self.padded_tokens / self.real_tokens
        return metrics


class Hook:
    """An addition to the loop, such as logging or checkpoints. Every worker calls every hook."""

    def after_step(self, run: Run, metrics: dict[str, float]) -> None:
        """Is called after an optimiser step, with the metrics of its rows over all workers, its learning rate (`lr`) and the norm
        of its gradient before clipping (`gradient_norm`)."""

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        """Is called after validation, with its metrics; `run.improved` says whether the epoch is the best so far."""


@dataclass
class Run:
    """What the loop and its hooks share.

    Attributes:
        engine: a DeepSpeed engine around the model.
        accumulation: micro-batches that this worker takes in a step.
        micro_batch: rows of a full micro-batch.
        seed: of dropout; each step has a seed of its own, so a resumed run draws the same masks.
        class_weight, answer_weight: factors of the two losses.
        keep: which epoch counts as the best: that of the lowest validation loss, or always the last.
        improved: whether the last epoch is the best so far.
        should_stop: set by a hook that ends training.
    """

    engine: Any
    feed: Feed
    epochs: int
    accumulation: int
    micro_batch: int
    seed: int
    class_weight: float = 1.0
    answer_weight: float = 1.0
    keep: Literal["best", "last"] = "best"
    rank: int = 0
    state: State = field(default_factory=State)
    hooks: Sequence[Hook] = ()
    improved: bool = False
    should_stop: bool = False


def fit(run: Run) -> State:
    """Trains from where `run.state` stands to the last epoch, or until a hook ends it.

    Raises:
        TrainingError: a loss is not a finite number.
        DataError: a bad row, where the spec says to fail.
    """
    state = run.state
    while state.epoch < run.epochs and not state.finished:
        _train_epoch(run)
        validation = _validate(run)
        state.drops = gather_drops(state.drops)
        state.epoch, state.micro_batch = state.epoch + 1, 0
        _record_best_epoch(run, validation)
        state.finished = run.should_stop or state.epoch == run.epochs
        for hook in run.hooks:
            hook.after_epoch(run, validation)
            state.finished = state.finished or run.should_stop
    return state


def _train_epoch(run: Run) -> None:
    state, engine, micro_batches = run.state, run.engine, run.feed.micro_batches_per_epoch
    engine.train()
    totals = Totals()
    batches = run.feed.training(state.epoch, state.micro_batch)
    while state.micro_batch < micro_batches:
        if state.micro_batch % run.accumulation == 0:
            torch.manual_seed(_dropout_seed(run))
        started = time.perf_counter()
        batch = _next(batches)
        waited = time.perf_counter() - started
        last = (state.micro_batch + 1) % run.accumulation == 0 or state.micro_batch + 1 == micro_batches
        outputs = _forward(engine, batch)
        # DeepSpeed divides by accumulation and averages over workers, which makes it 1 / sft.batch for every row.
        loss = (run.class_weight * outputs.class_loss_sum + run.answer_weight * outputs.answer_loss_sum) / run.micro_batch
        totals.add(batch, outputs)
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)
        rate = engine.get_lr()[0]  # of this step: the schedule moves on within `step`
        engine.step()
        totals.wait_seconds += waited
        totals.seconds += time.perf_counter() - started
        state.micro_batch += 1
        if state.epoch == 0:
            state.drops += batch.drops
        if last:
            state.step += 1
            metrics = totals.over_workers().metrics(run.class_weight, run.answer_weight)
            metrics |= {"lr": rate, "gradient_norm": float(engine.get_global_grad_norm())}
            totals = Totals()
            for hook in run.hooks:
                hook.after_step(run, metrics)


def _validate(run: Run) -> dict[str, float]:
    """Metrics of the validation split over all workers, named `validation_...`; empty where there is no such split."""
    if not run.feed.validates:
        return {}
    run.engine.eval()
    totals = Totals()
    with torch.no_grad():
        for batch in run.feed.validation():
            totals.add(batch, _forward(run.engine, batch))
            if run.state.epoch == 0:
                run.state.drops += batch.drops
    metrics = totals.over_workers().metrics(run.class_weight, run.answer_weight)
    return {f"validation_{name}": value for name, value in metrics.items() if name != "padding_ratio"}


def _record_best_epoch(run: Run, validation: dict[str, float]) -> None:
    """The epoch of the lowest validation loss is the best (paper appendix C.2); without a validation split, or where the last is to
    be kept, that is the best."""
    state, loss = run.state, validation.get("validation_loss")
    run.improved = run.keep == "last" or loss is None or state.best_loss is None or loss < state.best_loss
    if run.improved:
        state.best_loss, state.best_epoch, state.flat_epochs = loss, state.epoch - 1, 0
    else:
        state.flat_epochs += 1


def _forward(engine: Any, batch: MicroBatch) -> Any:
    device, dtype = engine.device, next(engine.module.parameters()).dtype
    inputs = {name: _to(tensor, device, dtype, name) for name, tensor in batch.inputs_on(device).items()}
    return engine(inputs=inputs, **batch.targets(device))


def _to(tensor: torch.Tensor, device: Any, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The tensor on the device: clips in the model's precision, times and masks as they are."""
    is_media = tensor.is_floating_point() and name != "video_second_per_grid"
    return tensor.to(device=device, dtype=dtype if is_media else None)


def _next(batches: Iterator[MicroBatch]) -> MicroBatch:
    try:
        return next(batches)
    except StopIteration:
        raise TrainingError("training data", "ended before the epoch did", "report this: the plan and the loader disagree") from None


def _dropout_seed(run: Run) -> int:
    return (run.seed * 1_000_003 + run.state.step) * 4_099 + run.rank


def gather_drops(drops: list[Drop]) -> list[Drop]:
    """The drops of all workers, each once, in a fixed order. Every worker must call it."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, drops)
        drops = [drop for part in parts for drop in part]
    return sorted(set(drops), key=lambda drop: (drop.split, drop.dataset, drop.row, drop.reason))

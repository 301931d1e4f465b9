"""Measures what adapters cost at inference: time of a row and peak of memory, with them and without (paper Table 13, appendix D.6)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hba_ray.data.feed.batches import BatchMaker, MicroBatch
from hba_ray.data.feed.order import Share, Window
from hba_ray.data.feed.stream import make_here
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError, EnvironmentMissing
from hba_ray.evaluation.costs import Cost, Latency
from hba_ray.models.backbone import load_processor
from hba_ray.models.bam import DescriptorBatch, attached
from hba_ray.predict.heads import BamPredictor
from hba_ray.predict.jobs import BamPredictJob

MEMORY_ROWS = 16
"""Rows whose peak of memory is looked at."""


def measure_latency(job: BamPredictJob, rows: int = 500, warm_up: int = 1, on_row: Callable[[], None] = lambda: None) -> Latency:
    """Measures what adapters cost: first the peak of memory without them and with them, then the time of each row both ways.

    Of two rows, one is passed first without adapters and one first with them, so that neither way gains by its turn.

    Args:
        rows: of the job's split, spread evenly over it; fewer where it has fewer.
        warm_up: rows before them, not counted.

    Raises:
        DataError: no dataset with adapters has a row in the split.
    """
    lines = np.concatenate([np.array(window.lines, int) for window in job.windows()] or [np.zeros(0, int)])
    if len(lines) <= warm_up:
        raise DataError(f"split {job.split}", f"has {len(lines)} rows with adapters, too few to measure", "measure on another split")
    batches = list(_single(job, lines[np.unique(np.linspace(0, len(lines) - 1, rows + warm_up).astype(int))]))
    predictor = BamPredictor(replace(job, datasets=()))
    given = [predictor.describe(batch) for batch in batches]
    run = _Forward(predictor)
    run.plain(batches[0])  # what a first pass allocates for good belongs to neither
    plain_peak = run.peak(lambda: [run.plain(batch) for batch in batches[:MEMORY_ROWS]])
    predictor.load(job.datasets)
    adapted_peak = run.peak(lambda: [run.adapted(batch, one) for batch, one in zip(batches[:MEMORY_ROWS], given, strict=False)])
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number, (batch, one) in enumerate(zip(batches, given, strict=True)):
        batch.inputs = run.moved(batch)
        calls = {False: partial(run.plain, batch), True: partial(run.adapted, batch, one)}
        for adapted in (False, True) if number % 2 else (True, False):
            taken = run.seconds(calls[adapted])
            if number >= warm_up:
                seconds[adapted].append(taken)
        batch.inputs = {}
        on_row()
    peaks = {False: plain_peak, True: adapted_peak}
    without, adapted = (Cost(statistics.fmean(seconds[kind]), statistics.pstdev(seconds[kind]), peaks[kind]) for kind in (False, True))
    device = torch.cuda.get_device_name() if run.gpu else "CPU, one thread"
    return Latency(without, adapted, device, job.spec.precision, len(seconds[True]), warm_up)


def _single(job: BamPredictJob, lines: np.ndarray) -> Iterator[MicroBatch]:
    """Batches of one row each; a row that cannot be decoded gives none."""
    maker = BatchMaker(job.index, replace(job.settings, micro_batch=1), load_processor(job.backbone), job.split)
    windows = [Window((Share((int(line),), micro_batches=1),), number=number) for number, line in enumerate(lines)]
    return (batch for batch in make_here(maker, windows) if batch.rows)


class _Forward:
    """Passes of one row from its inputs to its logits, and what they cost."""

    def __init__(self, predictor: BamPredictor):
        self.predictor, self.model = predictor, predictor.model
        self.gpu = predictor.device == "cuda"

    def moved(self, batch: MicroBatch) -> dict[str, Tensor]:
        return batch.inputs_on(self.predictor.device)

    @torch.inference_mode()
    def plain(self, batch: MicroBatch) -> Tensor:
        """The SFT model: class logits from the pooled state; for open answers the decoder runs to the logits of a token."""
        h_BH = self.model.pooled(self.moved(batch))
        slot = int(batch.task_slot[0])
        if slot < 0:
            return h_BH
        head = cast(torch.nn.Linear, self.model.heads[slot])
        return head(h_BH.to(head.weight.dtype))

    @torch.inference_mode()
    def adapted(self, batch: MicroBatch, given: Mapping[str, DescriptorBatch]) -> Tensor:
        dataset = str(batch.rows[0]["dataset"])
        bam = self.predictor.bams[dataset]
        delta_BH = bam({stream: one.to(self.predictor.device) for stream, one in given.items()})
        if DATASETS[dataset].task.is_open:
            with attached(self.model, delta_BH, bam.head, at=self.predictor.job.job.bam.decoder_injection):
                return self.model.pooled(self.moved(batch))
        return bam.class_logits(self.model.pooled(self.moved(batch)), delta_BH)

    def seconds(self, call: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], Any]) -> float:
        """MiB at the peak of the call.

        Raises:
            EnvironmentMissing: on a CPU, the system does not say.
        """
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            call()
            return torch.cuda.max_memory_allocated() / 2**20
        try:
            Path("/proc/self/clear_refs").write_text("5")  # starts the peak again (proc(5))
            call()
            status = Path("/proc/self/status").read_text()
        except OSError as cause:
            raise EnvironmentMissing("memory", f"the peak cannot be read: {cause}", "measure on Linux, or on a GPU") from None
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10

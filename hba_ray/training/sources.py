"""Where BAM's training takes the backbone's states from: a store of them, or the backbone itself at every step.

Either kind of source computes the loss of some rows given their delta; the two agree to rounding.

Letters: R rows of a dataset's split, B rows of a step, H hidden size, K classes of the task, S positions,
M kept positions of a row, N answer tokens of all rows together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hba_ray.data.atlas import read_rows
from hba_ray.data.feed.batches import BatchMaker, MicroBatch
from hba_ray.data.feed.order import Share, Window
from hba_ray.data.predictions import ROW_COLUMNS, Columns, row_columns
from hba_ray.data.tasks import CLASS_INDEX
from hba_ray.errors import DataError
from hba_ray.models.bam import DecoderTail, Head, attached
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs.sections.bam import Injection
from hba_ray.training.states import StatesJob, StateStore


class Source(Protocol):
    """A dataset's rows of one split, in the order of their sample ids.

    Attributes:
        samples: of each row, the values of `data.predictions.ROW_COLUMNS`.
    """

    @property
    def samples(self) -> list[Columns]: ...

    def loss_sum(self, rows: Tensor, delta_BH: Tensor, head: Head | None) -> Tensor:
        """Cross-entropy of these rows, summed over rows and, for open answers, over their tokens.

        Args:
            head: of the task; None is the model's own lm_head.
        """
        ...


@dataclass(frozen=True)
class ClassSource:
    """Rows that a classifier head answers.

    Attributes:
        class_R: each row's class, counted within its task.
        pooled: the pooled h^(L-1) of some rows, B H in fp32.
    """

    samples: list[Columns]
    class_R: Tensor
    pooled: Callable[[Tensor], Tensor]

    def logits(self, rows: Tensor, delta_BH: Tensor, head: Head) -> Tensor:
        """Logits B K; delta is the same at all positions, so the pooled state takes it too."""
        return head(self.pooled(rows) + delta_BH)

    def loss_sum(self, rows: Tensor, delta_BH: Tensor, head: Head | None) -> Tensor:
        assert head is not None
        return F.cross_entropy(self.logits(rows, delta_BH, head), self.class_R[rows], reduction="sum")


def stored_classes(store: StateStore, dataset: str, columns: list[int], hidden: int, device: str) -> ClassSource:
    """Class rows from a store of pooled states, all in memory.

    Args:
        columns: global indices of the task's classes.
    """
    table = store.read(dataset, (*ROW_COLUMNS, "class_index", "states")).sort_by("sample_id")
    h_RH = store.tensor(table.column("states").to_pylist(), hidden).to(device, torch.float32)
    classes = torch.tensor([columns.index(index) for index in table.column("class_index").to_pylist()], device=device)
    return ClassSource(table.select(ROW_COLUMNS).to_pylist(), classes, h_RH.__getitem__)


@dataclass(frozen=True)
class StoredAnswers:
    """Open-answer rows from a store. Of the model only the last layer and lm_head run, or lm_head alone.

    Attributes:
        places: (part, line) of each row in the store.
    """

    samples: list[Columns]
    store: StateStore
    places: list[tuple[int, int]]
    tail: DecoderTail
    injection: Injection

    def loss_sum(self, rows: Tensor, delta_BH: Tensor, head: Head | None) -> Tensor:
        device = self.tail.device
        records = [self.store.row(*self.places[row]) for row in rows.tolist()]
        states = [self.store.tensor([record["states"]], delta_BH.shape[1]).to(device, self.tail.dtype) for record in records]
        h_BMH = pad_sequence(states, batch_first=True) + delta_BH.to(self.tail.dtype).unsqueeze(1)
        if self.injection == "penultimate":
            mask = pad_sequence([torch.ones(len(part), dtype=torch.long, device=device) for part in states], batch_first=True)
            positions = [torch.frombuffer(bytearray(record["positions"]), dtype=torch.int32).view(3, -1).T for record in records]
            h_BMH = self.tail.normed(h_BMH, mask, pad_sequence(positions, batch_first=True).permute(2, 0, 1).to(device))
        targets = [torch.tensor(record["targets"], device=device) for record in records]
        read = [h_MH[len(part) - len(target) : len(part)] for h_MH, part, target in zip(h_BMH, states, targets, strict=True)]
        logits_NV = (head or self.tail.lm_head)(torch.cat(read))
        return F.cross_entropy(logits_NV.float(), torch.cat(targets), reduction="sum")


def stored_answers(store: StateStore, dataset: str, tail: DecoderTail, injection: Injection) -> StoredAnswers:
    """Open-answer rows from a store; states are read row by row when asked for."""
    table = store.read(dataset, ROW_COLUMNS).sort_by("sample_id")
    places = list(zip(table.column("part").to_pylist(), table.column("line").to_pylist(), strict=True))
    return StoredAnswers(table.select(ROW_COLUMNS).to_pylist(), store, places, tail, injection)


class LiveBackbone:
    """The SFT model, run on a dataset's rows of one split whenever they are asked for.

    Args:
        in_training: leave LoRA's dropout active in training steps.

    Raises:
        DataError: a bad row, whatever the spec says: a step that lost rows could not be compared.
    """

    def __init__(self, job: StatesJob, dataset: str, model: OmniSapiens, processor: Any, *, in_training: bool):
        self.model, self.in_training = model, in_training
        self.device = next(model.parameters()).device
        self.index = job.rows
        self.settings = replace(job.settings, on_bad_row="fail")
        self.processor, self.split = processor, job.split
        own = np.flatnonzero(np.array(self.index.table.column("dataset").to_pylist()) == dataset)
        rows = []
        for line, row in zip(own.tolist(), read_rows(self.index, own.tolist()), strict=True):
            if isinstance(row, DataError):
                raise row
            rows.append((row, line))
        rows.sort(key=lambda pair: pair[0].sample_id)
        self.lines = [line for _, line in rows]
        self.samples = [row_columns(row) for row, _ in rows]
        self.class_index = [CLASS_INDEX[row.dataset.task.id, row.label] for row, _ in rows if row.label is not None]

    def batch(self, rows: Tensor) -> tuple[MicroBatch, dict[str, Tensor], Tensor]:
        """Some rows as one micro-batch, its inputs on the model's device, and the place of each row in the micro-batch."""
        maker = BatchMaker(self.index, replace(self.settings, micro_batch=len(rows)), self.processor, self.split)
        window = Window((Share(tuple(self.lines[row] for row in rows.tolist()), micro_batches=1),))
        (batch,) = maker.window(window)
        place = {row["sample_id"]: i for i, row in enumerate(batch.rows)}
        inputs = batch.inputs_on(self.device)
        return batch, inputs, torch.tensor([place[self.samples[row]["sample_id"]] for row in rows.tolist()], device=self.device)

    def pooled(self, rows: Tensor) -> Tensor:
        """The pooled h^(L-1) of some rows, B H."""
        self.model.train(self.in_training and torch.is_grad_enabled())
        _, inputs, place_B = self.batch(rows)
        with torch.no_grad():
            return self.model.pooled(inputs)[place_B]

    def answer_loss_sum(self, rows: Tensor, delta_BH: Tensor, head: Head | None, at: Injection) -> Tensor:
        """Cross-entropy of some open-answer rows, summed over their answer tokens."""
        self.model.train(self.in_training and torch.is_grad_enabled())
        batch, inputs, place_B = self.batch(rows)
        with attached(self.model, delta_BH[place_B.argsort()], head, at=at):
            outputs = self.model(inputs=inputs, **batch.targets(self.device))
        return outputs.answer_loss_sum


def live_classes(backbone: LiveBackbone, columns: list[int]) -> ClassSource:
    """Class rows whose states the backbone computes when they are asked for.

    Args:
        columns: global indices of the task's classes.
    """
    classes = torch.tensor([columns.index(index) for index in backbone.class_index], device=backbone.device)
    return ClassSource(backbone.samples, classes, backbone.pooled)


@dataclass(frozen=True)
class LiveAnswers:
    """Open-answer rows whose loss the backbone computes when it is asked for."""

    backbone: LiveBackbone
    injection: Injection

    @property
    def samples(self) -> list[Columns]:
        return self.backbone.samples

    def loss_sum(self, rows: Tensor, delta_BH: Tensor, head: Head | None) -> Tensor:
        return self.backbone.answer_loss_sum(rows, delta_BH, head, self.injection)

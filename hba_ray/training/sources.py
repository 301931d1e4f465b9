"""Where BAM's training on shared states takes them from: a store, all in memory or read as they are needed.

Letters: R rows of a dataset's split, B rows of a step, H hidden size, K classes of the task, S positions,
M kept positions of a row, N answer tokens of all rows together, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hba_ray.data.predictions import ROW_COLUMNS, Columns
from hba_ray.models.bam import DecoderTail, Head
from hba_ray.specs.sections.bam import Injection
from hba_ray.training.states import StateStore


class Source(Protocol):
    """A dataset's rows of one split, in the order of their sample ids.

    Attributes:
        samples: of each row, the values of `data.predictions.ROW_COLUMNS`.
    """

    @property
    def samples(self) -> list[Columns]: ...

    def load(self, rows: Tensor) -> Any:
        """The states of these rows."""
        ...

    def loss_sum(self, states: Any, delta_BH: Tensor, head: Head | None) -> Tensor:
        """Cross-entropy of rows, summed over rows and, for open answers, over their tokens.

        Args:
            states: of the rows, as `load` returns them.
            head: of the task; None is the model's own lm_head.
        """
        ...


def read_ahead(load: Callable[[Tensor], Any], shares: Iterable[Tensor]) -> Iterator[Any]:
    """`load` of each share, in order; a thread loads the next one while the caller is busy with the last."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting: deque[Future[Any]] = deque()
        for share in shares:
            waiting.append(reader.submit(load, share))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class ClassStates(NamedTuple):
    """Pooled h^(L-1) of some rows in fp32, and their classes, counted within the task."""

    h_BH: Tensor
    class_B: Tensor


@dataclass(frozen=True)
class ClassSource:
    """Rows that a classifier head answers, all in memory: the states of all rows, [R, H] and [R]."""

    samples: list[Columns]
    states: ClassStates

    def load(self, rows: Tensor) -> ClassStates:
        return ClassStates(self.states.h_BH[rows], self.states.class_B[rows])

    def loss_sum(self, states: ClassStates, delta_BH: Tensor, head: Head | None) -> Tensor:
        assert head is not None
        return F.cross_entropy(head(states.h_BH + delta_BH), states.class_B, reduction="sum")


def stored_classes(store: StateStore, dataset: str, columns: list[int], hidden: int, device: str) -> ClassSource:
    """Class rows from a store of pooled states, all in memory.

    Args:
        columns: global indices of the task's classes.
    """
    table = store.read(dataset, (*ROW_COLUMNS, "class_index", "states")).sort_by("sample_id")
    h_RH = store.tensor(table.column("states").to_pylist(), hidden).to(device, torch.float32)
    classes = torch.tensor([columns.index(index) for index in table.column("class_index").to_pylist()], device=device)
    return ClassSource(table.select(ROW_COLUMNS).to_pylist(), ClassStates(h_RH, classes))


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

    def load(self, rows: Tensor) -> list[dict[str, Any]]:
        """The rows of the store; it is read here."""
        return [self.store.row(*self.places[row]) for row in rows.tolist()]

    def loss_sum(self, states: list[dict[str, Any]], delta_BH: Tensor, head: Head | None) -> Tensor:
        device, records = self.tail.device, states
        parts = [self.store.tensor([record["states"]], delta_BH.shape[1]).to(device, self.tail.dtype) for record in records]
        h_BMH = pad_sequence(parts, batch_first=True) + delta_BH.to(self.tail.dtype).unsqueeze(1)
        if self.injection == "penultimate":
            mask = pad_sequence([torch.ones(len(part), dtype=torch.long, device=device) for part in parts], batch_first=True)
            positions = [torch.frombuffer(bytearray(record["positions"]), dtype=torch.int32).view(3, -1).T for record in records]
            h_BMH = self.tail.normed(h_BMH, mask, pad_sequence(positions, batch_first=True).permute(2, 0, 1).to(device))
        targets = [torch.tensor(record["targets"], device=device) for record in records]
        read = [h_MH[len(part) - len(target) : len(part)] for h_MH, part, target in zip(h_BMH, parts, targets, strict=True)]
        logits_NV = (head or self.tail.lm_head)(torch.cat(read))
        return F.cross_entropy(logits_NV.float(), torch.cat(targets), reduction="sum")


def stored_answers(store: StateStore, dataset: str, tail: DecoderTail, injection: Injection) -> StoredAnswers:
    """Open-answer rows from a store; states are read row by row when asked for."""
    table = store.read(dataset, ROW_COLUMNS).sort_by("sample_id")
    places = list(zip(table.column("part").to_pylist(), table.column("line").to_pylist(), strict=True))
    return StoredAnswers(table.select(ROW_COLUMNS).to_pylist(), store, places, tail, injection)

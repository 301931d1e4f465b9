"""What there is to predict: a job says which rows go to which model, and how they become micro-batches.

Jobs are plain, picklable data and load no model. `heads`, `generate` and `vllm` hold the models that do
them; the first two run over micro-batches of our own making, by `predict_micro_batches`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from hba_ray.data.atlas import AtlasIndex, Drop
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.feed.order import Order, Share, Window, plan_epoch
from hba_ray.data.feed.stream import loaders_here, make_here, map_with_model_actors, micro_batch_dataset
from hba_ray.data.predictions import Columns, make_record
from hba_ray.data.prompts import AnswerFrom, Matching, ReasoningPrompt, ask_plainly, read_answer, read_class
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.models.backbone import context_length, load_processor
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.wording import AS_BEFORE, Wording

if TYPE_CHECKING:
    from hba_ray.training.bam_inputs import Describe
    from hba_ray.training.bam_job import BamJob

WINDOW_ROWS = 64
"""Rows that are sorted by length together."""


class Predictions(NamedTuple):
    """What became of some rows: each is in one of the two lists.

    Attributes:
        records: of the rows that were predicted; see `data.predictions`.
        drops: the rows that could not be.
    """

    records: list[dict[str, Any]]
    drops: list[Drop]


class MicroBatchJob(Protocol):
    """Prediction on micro-batches of our own making; picklable.

    Attributes:
        backbone: folder or hub id whose processor makes the micro-batches.
        split: the rows of the index that are predicted.
    """

    @property
    def spec(self) -> ExperimentSpec: ...
    @property
    def index(self) -> AtlasIndex: ...
    @property
    def backbone(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def settings(self) -> BatchSettings: ...
    def windows(self) -> list[Window]: ...


class MicroBatchPredictor(Protocol):
    """A loaded model."""

    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """One record for each row of the micro-batch."""
        ...


Job = TypeVar("Job", bound=MicroBatchJob)


@dataclass(frozen=True)
class PredictJob:
    """Prediction by a model with heads.

    Attributes:
        model: folder of the trained tensors.
        withheld: modalities that the model is not shown, besides those that the spec leaves out.
    """

    spec: ExperimentSpec
    backbone: str
    model: str
    index: AtlasIndex
    withheld: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return self.spec.evaluate.split

    @property
    def settings(self) -> BatchSettings:
        return BatchSettings.of(self.spec, "predict", context=context_length(self.backbone), withheld=self.withheld)

    def windows(self) -> list[Window]:
        return _windows_of_split(self)


@dataclass(frozen=True)
class BamPredictJob(PredictJob):
    """Prediction of the datasets that have adapters, by the SFT model with them.

    Attributes:
        adapters: folder with a folder for each of these datasets.
    """

    job: BamJob = field(kw_only=True)
    describe: Describe = field(kw_only=True)
    adapters: Path = field(kw_only=True)
    datasets: Sequence[str] = field(kw_only=True)

    def windows(self) -> list[Window]:
        """Windows that hold rows of one dataset each, since every dataset has adapters of its own."""
        rows, held = self.index.rows_of(self.split), self.index.table.column("dataset").to_numpy(zero_copy_only=False)
        parts = [
            own[start : start + WINDOW_ROWS]
            for own in (rows[held[rows] == dataset] for dataset in self.datasets)
            for start in range(0, len(own), WINDOW_ROWS)
        ]
        size = self.spec.compute.micro_batch
        return [
            Window((Share(tuple(int(line) for line in part), micro_batches=ceil(len(part) / size)),), number=number)
            for number, part in enumerate(parts)
        ]


@dataclass(frozen=True)
class GenerateJob:
    """Prediction by generation, of a model without heads.

    A row becomes a prompt, the response is read for an answer, and the answer is one of the dataset's
    labels or counts as none of them.

    Attributes:
        model: folder or hub id.
        reasoning: instructions around each prompt; None asks plainly.
        answer_from: which part of a response is its answer; see `data.prompts.read_answer`.
        wording: of the chat turns.
    """

    spec: ExperimentSpec
    model: str
    index: AtlasIndex
    reasoning: ReasoningPrompt | None = None
    answer_from: AnswerFrom = "chain"
    wording: Wording = AS_BEFORE

    @property
    def backbone(self) -> str:
        return self.model

    @property
    def split(self) -> str:
        return self.spec.evaluate.split

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and response together, of a Qwen2.5-Omni model."""
        own = context_length(self.model)
        return min(self.spec.evaluate.generation.context or own, own)

    @property
    def settings(self) -> BatchSettings:
        return BatchSettings.of(self.spec, "generate", context=self.context, reword=self.reword, wording=self.wording)

    def windows(self) -> list[Window]:
        return _windows_of_split(self)

    def reword(self, row: Row) -> Row:
        """The row with the prompt that the model is given."""
        return self.reasoning.ask(row) if self.reasoning else ask_plainly(row)

    def record(self, asked: Columns, response: str, *, cut: bool) -> dict[str, Any]:
        """The record of a row that got this response.

        Args:
            cut: whether it ended at the limit of tokens and not by itself.
        """
        dataset = DATASETS[asked["dataset"] or ""]
        answer = read_answer(response, self.answer_from)
        if dataset.task.is_open:
            return make_record(asked, answer=answer, response=response, cut=cut)
        read = partial(read_class, response, dataset, self.answer_from, split_surprise=self.index.split_surprise)
        labels: dict[Matching, str | None] = {"lenient": read(matching="lenient"), "exact": read(matching="exact")}
        label = labels.pop(self.spec.evaluate.matching)
        return make_record(asked, predicted=label, otherwise=next(iter(labels.values())), answer=answer, response=response, cut=cut)


def predict_micro_batches(job: Job, load: Callable[[Job], MicroBatchPredictor]) -> Iterator[Predictions]:
    """Predictions of each micro-batch, in this process where the spec has no workers, else by `compute.workers` model actors.

    Args:
        load: loads the model; called in the process that predicts. Picklable.

    Raises:
        CheckpointError: the model is not there, or damaged.
        DataError: a bad row, where the spec says to fail.
    """
    compute = job.spec.compute
    if not compute.workers:
        predict = _load(job, load)
        maker = BatchMaker(job.index, job.settings, load_processor(job.backbone), job.split)
        for batch in make_here(maker, job.windows()):
            yield predict(batch)
        return
    batches = micro_batch_dataset(
        job.index,
        job.settings,
        job.split,
        partial(load_processor, job.backbone),
        job.windows(),
        loaders=loaders_here(compute),
        cpus_per_loader=compute.cpus_per_loader,
    )
    yield from map_with_model_actors(batches, partial(_load, job, load), compute)


def _load(job: Job, load: Callable[[Job], MicroBatchPredictor]) -> Callable[[MicroBatch], Predictions]:
    predictor = load(job)
    return lambda batch: Predictions(predictor.predict(batch), batch.drops)


def _windows_of_split(job: MicroBatchJob) -> list[Window]:
    return plan_epoch(job.index, Order(job.split, WINDOW_ROWS, job.spec.compute.micro_batch, shuffle=False))

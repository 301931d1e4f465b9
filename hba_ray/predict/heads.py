"""Predictions of a trained model: classes by its heads, open answers by its decoder.

Batch inference on Ray Data with model actors, or in this process; both give the same table.

Predictions with adapters: classes by each dataset's own head, open answers by generation with delta in the decoder.

Classes need no backbone where its states are stored. Rows of datasets without adapters are the reference
arm's own predictions, so on those the arm with adapters is the SFT model, to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa
import torch

from hba_ray.data.atlas import AtlasIndex, Drop
from hba_ray.data.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.order import Order, Share, Window, plan_epoch
from hba_ray.data.stream import made_by_models, make_here, micro_batch_dataset
from hba_ray.data.tasks import ALL_CLASSES, DATASETS
from hba_ray.models.bam import Bam, DescriptorBatch, attached
from hba_ray.models.checkpoints import load_adapters
from hba_ray.specs import ExperimentSpec
from hba_ray.training.bam import BamJob, Describe, Supply, class_probabilities, describe_source
from hba_ray.training.sources import ClassSource

WINDOW_ROWS = 64
"""Rows sorted by length together."""

Made = tuple[list[dict[str, Any]], list[Drop]]
"""Records of SCHEMA, and the rows that should have been among them but could not."""

_TEXTS = ("sample_id", "clip_id", "dataset", "task", "true", "predicted", "answer", "response", "question", "prompt_hash")
SCHEMA = pa.schema([(name, pa.string()) for name in _TEXTS] + [("probability", pa.float32())])
"""`predicted` is the class; for open answers it is null and `answer` holds the text. Both are null where nothing could be read.
`response` is all that a model without heads wrote; `answer` is then the answer in it, also where that is no class of the dataset.
`question` is what the row asks, without the marks of its clips; `prompt_hash` names the text that the model was given.
`probability` is the class's own, of models with heads."""


class MicroBatchPredictor(Protocol):
    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """One record for each row of the micro-batch."""
        ...


class MicroBatchJob(Protocol):
    """Prediction on micro-batches of our own making; picklable."""

    @property
    def spec(self) -> ExperimentSpec: ...
    @property
    def index(self) -> AtlasIndex: ...
    @property
    def backbone(self) -> str:
        """Folder or hub id whose processor makes the micro-batches."""
        ...

    @property
    def split(self) -> str: ...
    @property
    def settings(self) -> BatchSettings: ...
    def windows(self) -> list[Window]: ...
    def predictor(self) -> MicroBatchPredictor:
        """Loads the model into this process."""
        ...


@dataclass(frozen=True)
class PredictJob:
    """What prediction needs, picklable.

    Attributes:
        model: folder of the trained tensors.
        hidden: modalities that the model is not shown, besides those that the spec withholds.
    """

    spec: ExperimentSpec
    backbone: str
    model: str
    index: AtlasIndex
    hidden: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return self.spec.evaluate.split

    @property
    def settings(self) -> BatchSettings:
        from hba_ray.models.backbone import context_length

        atlas = self.spec.atlas
        return BatchSettings(
            media=atlas.media,
            modalities=tuple(name for name in atlas.modalities if name not in self.hidden),
            micro_batch=self.spec.compute.micro_batch,
            purpose="predict",
            shuffle=False,
            on_bad_row=atlas.on_bad_row,
            longest_prompt=context_length(self.backbone),
        )

    def windows(self) -> list[Window]:
        return plan_epoch(self.index, Order(self.split, WINDOW_ROWS, self.spec.compute.micro_batch, shuffle=False))

    def predictor(self) -> MicroBatchPredictor:
        """Loads the model, in the process that predicts."""
        return Predictor(self)


class Predictor:
    """A trained model that turns micro-batches into rows of the predictions table."""

    def __init__(self, job: PredictJob):
        from hba_ray.models.backbone import load_processor
        from hba_ray.models.checkpoints import load_model
        from hba_ray.training.sft import build_model

        torch.set_num_threads(1)
        self.model = build_model(job.spec, job.backbone, bf16=job.spec.uses_bf16)
        load_model(self.model, Path(job.model))
        self.device = "cuda" if torch.cuda.is_available() and job.spec.compute.gpus_per_worker else "cpu"
        self.model.to(self.device).eval()
        self.tokenizer = load_processor(job.backbone).tokenizer
        self.max_new_tokens = job.spec.evaluate.max_new_tokens

    @torch.no_grad()
    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """One record of SCHEMA for each row of the micro-batch; its rows are all classes or all open answers."""
        if not batch.rows:
            return []
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        if int(batch.task_slot[0]) < 0:
            return self._answers(batch, inputs)
        outputs = self.model(inputs=inputs, **batch.targets(self.device))
        probability, index = outputs.class_logits_B25.float().softmax(-1).max(-1)
        return [
            {**row, "predicted": ALL_CLASSES[int(i)][1], "answer": None, "probability": float(p)}
            for row, i, p in zip(batch.rows, index, probability, strict=True)
        ]

    def _answers(self, batch: MicroBatch, inputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        end, pad = self.tokenizer.convert_tokens_to_ids("<|im_end|>"), self.tokenizer.pad_token_id
        tokens = self.model.generate(inputs, max_new_tokens=self.max_new_tokens, eos_token_id=end, pad_token_id=pad)
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]
        return [{**row, "predicted": None, "answer": text, "probability": None} for row, text in zip(batch.rows, texts, strict=True)]


def predict(job: MicroBatchJob) -> Iterator[Made]:
    """(records, dropped rows) of each micro-batch: made in this process where there are no workers, else by model actors."""
    return predict_here(job) if job.spec.compute.workers == 0 else predict_on_ray(job)


def predict_here(job: MicroBatchJob) -> Iterator[Made]:
    """(records, dropped rows) of each micro-batch, made in this process."""
    from hba_ray.models.backbone import load_processor

    predicted = _load(job)
    maker = BatchMaker(job.index, job.settings, load_processor(job.backbone), job.split)
    for batch in make_here(maker, job.windows()):
        yield predicted(batch)


def predict_on_ray(job: MicroBatchJob) -> Iterator[Made]:
    """(records, dropped rows) of each micro-batch, made by `compute.workers` model actors."""
    from hba_ray.models.backbone import load_processor

    compute = job.spec.compute
    batches = micro_batch_dataset(
        job.index,
        job.settings,
        job.split,
        partial(load_processor, job.backbone),
        job.windows(),
        loaders=compute.loaders,
        cpus_per_loader=compute.cpus_per_loader,
    )
    yield from made_by_models(batches, partial(_load, job), compute)


def _load(job: MicroBatchJob) -> Callable[[MicroBatch], Made]:
    predictor = job.predictor()
    return lambda batch: (predictor.predict(batch), batch.drops)


@dataclass(frozen=True)
class BamPredictJob(PredictJob):
    """Prediction of the datasets that have adapters.

    Attributes:
        adapters: folder with a folder for each of these datasets.
    """

    job: BamJob = field(kw_only=True)
    describe: Describe = field(kw_only=True)
    adapters: Path = field(kw_only=True)
    datasets: Sequence[str] = field(kw_only=True)

    def windows(self) -> list[Window]:
        """Each of one dataset only."""
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

    def predictor(self) -> Predictor:
        return BamPredictor(self)

    def load(self, dataset: str, hidden: int) -> Bam:
        """
        Raises:
            CheckpointError: the adapters are missing, damaged, or of another SFT model.
        """
        return load_adapters(self.adapters / dataset, base=self.job.base, hidden=hidden)[0]


class BamPredictor(Predictor):
    """The SFT model with the adapters of a micro-batch's dataset."""

    def __init__(self, job: BamPredictJob):
        super().__init__(job)
        self.job = job
        self.bams: dict[str, Bam] = {}
        self.labels: dict[str, list[str]] = {}
        self.load(job.datasets)

    def load(self, datasets: Sequence[str]) -> None:
        """
        Raises:
            CheckpointError: adapters are missing, damaged, or of another SFT model.
        """
        for dataset in datasets:
            self.bams[dataset] = self.job.load(dataset, self.model.hidden).to(self.device)
            self.labels[dataset] = [label for task, label in self.model.classes if task == DATASETS[dataset].task.id]

    def describe(self, batch: MicroBatch) -> dict[str, DescriptorBatch]:
        """The streams of a micro-batch's rows."""
        return dict(self.job.describe(self.job.split, [str(row["sample_id"]) for row in batch.rows]))

    @torch.no_grad()
    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        if not batch.rows:
            return []
        dataset = str(batch.rows[0]["dataset"])
        bam = self.bams[dataset]
        delta_BH = bam({stream: one.to(self.device) for stream, one in self.describe(batch).items()})
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        if DATASETS[dataset].task.is_open:
            with attached(self.model, delta_BH, bam.head, at=self.job.job.bam.decoder_injection):
                return self._answers(batch, inputs)
        probability, index = bam.class_logits(self.model.pooled(inputs), delta_BH).softmax(-1).max(-1)
        return [
            {**row, "predicted": self.labels[dataset][int(i)], "answer": None, "probability": float(p)}
            for row, i, p in zip(batch.rows, index, probability, strict=True)
        ]


def stored_classes(job: BamPredictJob) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """(dataset, sample id) -> the columns that a prediction changes, of all class rows, from stored states.

    Raises:
        DataError: states or descriptors are not what they should be.
        CheckpointError: adapters are missing, damaged, or of another SFT model.
    """
    supply = Supply(job.job)
    for dataset in job.datasets:
        source = cast(ClassSource, supply.source(dataset, job.split))
        given = describe_source(job.describe, job.job.bam, source, dataset, job.split, supply.device)
        bam = job.load(dataset, supply.hidden).to(supply.device)
        probability, index = class_probabilities(bam, source, given).max(-1)
        labels = [supply.classes[column][1] for column in supply.columns(dataset)]
        for facts, i, p in zip(source.facts, index.tolist(), probability.tolist(), strict=True):
            yield (dataset, str(facts["sample_id"])), {"predicted": labels[i], "probability": p}

"""Predictions with adapters: classes by each dataset's own head, open answers by generation with delta in the decoder.

Classes need no backbone where its states are stored. Rows of datasets without adapters are the reference
arm's own predictions, so on those the arm with adapters is the SFT model, to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch

from hba_ray.data.batches import MicroBatch
from hba_ray.data.tasks import DATASETS
from hba_ray.data.windows import Window
from hba_ray.evaluation.predict import WINDOW_ROWS, PredictJob, Predictor
from hba_ray.models.bam import Bam, Descriptors, attached
from hba_ray.models.checkpoints import load_adapters
from hba_ray.training.bam import BamJob, Describe, Supply, class_probabilities, describe_source
from hba_ray.training.sources import ClassSource


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
            Window(epoch=0, number=number, lines=tuple(int(line) for line in part), micro_batches=ceil(len(part) / size), seed=0)
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

    def describe(self, batch: MicroBatch) -> dict[str, Descriptors]:
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

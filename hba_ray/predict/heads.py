"""Prediction by classifier heads: classes by the head of their task, open answers by the decoder of the same model.

Without adapters the SFT model predicts all rows. With BAM's adapters each dataset has a head and an
adapter of its own, and its open answers are generated with delta in the decoder. Classes need no
backbone where its states are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hba_ray.data.feed.batches import MicroBatch
from hba_ray.data.predictions import make_record
from hba_ray.data.tasks import DATASETS
from hba_ray.models.backbone import load_processor
from hba_ray.models.bam import Bam, DescriptorBatch, attached
from hba_ray.models.checkpoints import load_adapters, load_model
from hba_ray.predict.jobs import BamPredictJob, Predictions, PredictJob, predict_micro_batches
from hba_ray.training.bam import DescribedSplit, class_probabilities
from hba_ray.training.bam_job import Supply
from hba_ray.training.sft import build_model
from hba_ray.training.states import device_of


def predict(job: PredictJob) -> Iterator[Predictions]:
    """Predictions of a trained model, micro-batch by micro-batch; see `predict_micro_batches`."""
    return predict_micro_batches(job, Predictor)


def predict_with_adapters(job: BamPredictJob) -> Iterator[Predictions]:
    """Predictions of the SFT model with adapters, micro-batch by micro-batch; see `predict_micro_batches`."""
    return predict_micro_batches(job, BamPredictor)


class Predictor:
    """A trained model that turns micro-batches into records of a predictions table."""

    def __init__(self, job: PredictJob):
        torch.set_num_threads(job.spec.compute.threads)
        self.model = build_model(job.spec, job.backbone, bf16=job.spec.uses_bf16)
        load_model(self.model, Path(job.model))
        self.device = device_of(job.spec)
        self.model.to(self.device).eval()
        self.tokenizer = load_processor(job.backbone).tokenizer
        self.max_new_tokens = job.spec.evaluate.max_new_tokens

    @torch.no_grad()
    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """One record for each row of the micro-batch; its rows are all classes or all open answers."""
        if not batch.rows:
            return []
        inputs = self.moved(batch)
        if int(batch.task_slot[0]) < 0:
            return self.answers(batch, inputs)
        outputs = self.model(inputs=inputs, **batch.targets(self.device))
        probabilities_B25 = outputs.class_logits_B25.float().softmax(-1)
        return class_records(batch, probabilities_B25, [label for _, label in self.model.classes])

    def moved(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """The inputs of a micro-batch on the model's device."""
        return batch.inputs_on(self.device)

    def answers(self, batch: MicroBatch, inputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Records of open questions, answered by greedy decoding."""
        end, pad = self.tokenizer.convert_tokens_to_ids("<|im_end|>"), self.tokenizer.pad_token_id
        tokens = self.model.generate(inputs, max_new_tokens=self.max_new_tokens, eos_token_id=end, pad_token_id=pad)
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]
        cut = [len(ids) == self.max_new_tokens for ids in tokens]  # one that ended by itself has an end mark besides
        return [make_record(row, answer=text, cut=is_cut) for row, text, is_cut in zip(batch.rows, texts, cut, strict=True)]


class BamPredictor(Predictor):
    """The SFT model with the adapters of whichever dataset a micro-batch is of."""

    def __init__(self, job: BamPredictJob):
        super().__init__(job)
        self.job = job
        self.bams: dict[str, Bam] = {}
        self.labels: dict[str, list[str]] = {}
        self.load(job.datasets)

    def load(self, datasets: Sequence[str]) -> None:
        """Loads the adapters of these datasets beside those that are loaded already.

        Raises:
            CheckpointError: adapters are missing, damaged, or of another SFT model.
        """
        for dataset in datasets:
            self.bams[dataset] = adapters_of(self.job, dataset, self.model.hidden).to(self.device)
            self.labels[dataset] = [label for task, label in self.model.classes if task == DATASETS[dataset].task.id]

    def describe(self, batch: MicroBatch) -> dict[str, DescriptorBatch]:
        """Stream -> descriptors of a micro-batch's rows."""
        return dict(self.job.describe(self.job.split, [str(row["sample_id"]) for row in batch.rows]))

    @torch.no_grad()
    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """One record for each row of the micro-batch; its rows are all of one dataset."""
        if not batch.rows:
            return []
        dataset = str(batch.rows[0]["dataset"])
        bam = self.bams[dataset]
        delta_BH = bam({stream: one.to(self.device) for stream, one in self.describe(batch).items()})
        inputs = self.moved(batch)
        if DATASETS[dataset].task.is_open:
            with attached(self.model, delta_BH, bam.head, at=self.job.job.bam.decoder_injection):
                return self.answers(batch, inputs)
        probabilities_BK = bam.class_logits(self.model.pooled(inputs), delta_BH).softmax(-1)
        return class_records(batch, probabilities_BK, self.labels[dataset])


def class_records(batch: MicroBatch, probabilities_BK: torch.Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Records of class rows, each with its likeliest class.

    Args:
        labels: of the K classes.
    """
    probability_B, index_B = probabilities_BK.max(-1)
    found = zip(batch.rows, index_B, probability_B, strict=True)
    return [make_record(row, predicted=labels[int(index)], probability=float(probability)) for row, index, probability in found]


def adapters_of(job: BamPredictJob, dataset: str, hidden: int) -> Bam:
    """The trained adapters of a dataset, on the CPU.

    Args:
        hidden: size of the model's hidden state.

    Raises:
        CheckpointError: they are missing, damaged, or of another SFT model.
    """
    return load_adapters(job.adapters / dataset, base=job.job.base, hidden=hidden)[0]


def stored_classes(job: BamPredictJob) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """(dataset, sample id) -> the columns that adapters change in a prediction, of all class rows, from stored states.

    Raises:
        DataError: states or descriptors are not what they should be.
        CheckpointError: adapters are missing, damaged, or of another SFT model.
    """
    supply = Supply(job.job)
    for dataset in job.datasets:
        source = supply.source(dataset, job.split)
        given = DescribedSplit.of(job.describe, job.job.bam, source, dataset, job.split, supply.device)
        bam = adapters_of(job, dataset, supply.hidden).to(supply.device)
        probability, index = class_probabilities(bam, given).max(-1)
        labels = [supply.classes[column][1] for column in supply.columns(dataset)]
        for sample, i, p in zip(source.samples, index.tolist(), probability.tolist(), strict=True):
            yield (dataset, str(sample["sample_id"])), {"predicted": labels[i], "probability": p}

"""Prediction by generation, for models without heads: a model that reinforcement learning trained, or any model as it is.

A row becomes a prompt, the response is read for an answer, and the answer is one of the dataset's
labels or counts as none of them. Two engines: transformers on the path that training uses, and vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.batches import BatchSettings, MicroBatch
from hba_ray.data.order import Order, Window, plan_epoch
from hba_ray.data.prompts import AnswerFrom, ReasoningPrompt, read_answer
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, Dataset, consolidate
from hba_ray.errors import DataError
from hba_ray.predict.heads import WINDOW_ROWS, Made, MicroBatchPredictor, predict
from hba_ray.specs import ExperimentSpec, fingerprint

_AROUND = " \t\r\n.,;:!?*_`'\"“”‘’()[]{}"


@dataclass(frozen=True)
class GenerateJob:
    """What prediction by generation needs, picklable.

    Attributes:
        model: folder or hub id.
        reasoning: instructions around each prompt; None asks plainly.
        answer_from: what of a response is its answer; see `data.prompts`.
    """

    spec: ExperimentSpec
    model: str
    index: AtlasIndex
    reasoning: ReasoningPrompt | None = None
    answer_from: AnswerFrom = "chain"

    @property
    def backbone(self) -> str:
        return self.model

    @property
    def split(self) -> str:
        return self.spec.evaluate.split

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and response together, of a Qwen2.5-Omni model."""
        from hba_ray.models.backbone import context_length

        own = context_length(self.model)
        return min(self.spec.evaluate.generation.context or own, own)

    @property
    def settings(self) -> BatchSettings:
        atlas = self.spec.atlas
        return BatchSettings(
            media=atlas.media,
            modalities=atlas.modalities,
            micro_batch=self.spec.compute.micro_batch,
            purpose="generate",
            shuffle=False,
            on_bad_row=atlas.on_bad_row,
            reword=self.reword,
            longest_prompt=self.context - 1,
        )

    def windows(self) -> list[Window]:
        return plan_epoch(self.index, Order(self.split, WINDOW_ROWS, self.spec.compute.micro_batch, shuffle=False))

    def reword(self, row: Row) -> Row:
        """The row as it is asked."""
        return self.reasoning.ask(row) if self.reasoning else ask_plainly(row)

    def predictor(self) -> MicroBatchPredictor:
        return Generator(self)

    def record(self, facts: dict[str, str | None], response: str) -> dict[str, Any]:
        """A record of predict.SCHEMA, from the row's facts and the model's response."""
        dataset = DATASETS[facts["dataset"] or ""]
        answer = read_answer(response, self.answer_from)
        label = None if answer is None else read_label(answer, dataset, split_surprise=self.index.split_surprise)
        return {**facts, "predicted": label, "answer": answer, "response": response, "probability": None}


def ask_plainly(row: Row) -> Row:
    """The row with its dataset's labels named, unless its prompt names all of them already."""
    labels = row.dataset.labels
    if all(label in row.problem.lower() for label in labels):
        return row
    return replace(row, problem=f"{row.problem}\nReply with one of these labels and nothing else: {', '.join(labels)}.")


def read_label(answer: str, dataset: Dataset, *, split_surprise: bool = False) -> str | None:
    """The label that an answer is, in any case and in any spelling that the sources use; None where it is none of the dataset's.

    >>> from hba_ray.data.tasks import find_dataset
    >>> read_label("**Joy.**", find_dataset("meld_emotion")), read_label("calm", find_dataset("meld_emotion"))
    ('happy', None)
    """
    if dataset.task.is_open:
        return None
    try:
        return consolidate(answer.strip(_AROUND), dataset, where="answer", split_surprise=split_surprise)
    except DataError:
        return None


def generate_rows(job: GenerateJob) -> Iterator[Made]:
    """(records, dropped rows), part by part, by the engine that the spec names.

    A record also has `withheld`: the modalities of the row that the model does not take, and `as_images`
    where it was given the frames of a video as images.

    Raises:
        CheckpointError: the model is not there, is damaged, or is none that the engine knows.
        EnvironmentMissing: vLLM is not installed for this device.
        DataError: a bad row, where the spec says to fail; a prompt longer than the context is one.
    """
    if job.spec.evaluate.generation.engine == "vllm":
        from hba_ray.predict.vllm import generate_with_vllm

        return generate_with_vllm(job)
    return predict(job)


class Generator:
    """A Qwen2.5-Omni thinker that answers micro-batches, on the loading path of training."""

    def __init__(self, job: GenerateJob):
        from hba_ray.models.backbone import load_backbone, load_processor
        from hba_ray.models.omni import Decoding

        torch.set_num_threads(1)
        self.job, generation = job, job.spec.evaluate.generation
        self.thinker = load_backbone(job.model, dtype=torch.bfloat16 if job.spec.uses_bf16 else torch.float32)
        self.device = "cuda" if torch.cuda.is_available() and job.spec.compute.gpus_per_worker else "cpu"
        self.thinker.to(self.device).eval()  # type: ignore[arg-type]
        self.tokenizer = load_processor(job.model).tokenizer
        self.decoding = Decoding(
            max_new_tokens=generation.max_new_tokens,
            eos_token_id=self.tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=self.tokenizer.pad_token_id,
            temperature=generation.temperature,
            top_p=generation.top_p,
            seed=generation.seed,
        )

    def predict(self, batch: MicroBatch) -> list[dict[str, Any]]:
        """One record of predict.SCHEMA for each row of the micro-batch."""
        from hba_ray.models.omni import decode

        if not batch.rows:
            return []
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        if "input_features" in inputs:  # the vision tower casts its input, the audio tower does not
            inputs["input_features"] = inputs["input_features"].to(self.thinker.audio_tower.dtype)
        room = self.job.context - batch.inputs["input_ids"].shape[1]  # at least 1: longer prompts are bad rows
        tokens = min(room, self.decoding.max_new_tokens)
        decoding = replace(self.decoding, max_new_tokens=tokens, seed=_seed(self.decoding.seed, batch.rows))
        written = decode(self.thinker, inputs, decoding)
        responses = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
        return [self.job.record(row, response) for row, response in zip(batch.rows, responses, strict=True)]


def _seed(seed: int, rows: list[dict[str, str | None]]) -> int:
    """The same for the same rows, whichever actor has them."""
    return int(fingerprint([seed, [row["sample_id"] for row in rows]]), 16)

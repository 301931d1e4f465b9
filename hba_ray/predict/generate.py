"""Prediction by generation, and the choice of who generates: transformers, here, or vLLM, in `vllm`.

The models have no heads: one that reinforcement learning trained, or any model as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from hba_ray.data.feed.batches import MicroBatch
from hba_ray.data.predictions import Columns
from hba_ray.models.backbone import allow_tf32, load_backbone, load_processor
from hba_ray.models.omni import Decoding, decode
from hba_ray.predict.jobs import GenerateJob, Predictions, predict_micro_batches
from hba_ray.predict.vllm import generate_with_vllm
from hba_ray.specs import fingerprint
from hba_ray.training.states import device_of


def generate_rows(job: GenerateJob) -> Iterator[Predictions]:
    """Predictions, part by part, by the engine that the spec names.

    A record of vLLM also has `withheld`, the modalities of the row that the model does not take, and
    `as_images`, whether it was given the frames of a video as images.

    Raises:
        CheckpointError: the model is not there, is damaged, or is none that the engine knows.
        EnvironmentMissing: vLLM is not installed for this device.
        DataError: a bad row, where the spec says to fail; a prompt longer than the context is one.
    """
    if job.spec.evaluate.generation.engine == "vllm":
        return generate_with_vllm(job)
    return predict_micro_batches(job, Generator)


class Generator:
    """A Qwen2.5-Omni thinker that answers micro-batches, loaded as for training."""

    def __init__(self, job: GenerateJob):
        torch.set_num_threads(job.spec.compute.threads)
        self.job, generation = job, job.spec.evaluate.generation
        dtype = torch.bfloat16 if job.spec.uses_bf16 else torch.float32
        allow_tf32(job.spec.precision == "tf32")
        self.thinker = load_backbone(job.model, dtype=dtype, attention=job.spec.model.attention)
        self.device = device_of(job.spec)
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
        """One record for each row of the micro-batch."""
        if not batch.rows:
            return []
        inputs = batch.inputs_on(self.device)
        if "input_features" in inputs:  # the vision tower casts its input, the audio tower does not
            inputs["input_features"] = inputs["input_features"].to(self.thinker.audio_tower.dtype)
        room = self.job.context - batch.inputs["input_ids"].shape[1]  # at least 1: longer prompts are bad rows
        tokens = min(room, self.decoding.max_new_tokens)
        decoding = replace(self.decoding, max_new_tokens=tokens, seed=_seed(self.decoding.seed, batch.rows))
        written = decode(self.thinker, inputs, decoding)
        responses = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
        cut = [len(ids) == tokens for ids in written]  # one that ended by itself has an end mark besides, which is not among its ids
        return [self.job.record(row, response, cut=is_cut) for row, response, is_cut in zip(batch.rows, responses, cut, strict=True)]


def _seed(seed: int, rows: list[Columns]) -> int:
    """A seed of these rows, the same whichever actor has them."""
    return int(fingerprint([seed, [row["sample_id"] for row in rows]]), 16)

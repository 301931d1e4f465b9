"""The `transfer` section: a short fine-tuning on each held-out dataset for itself (paper sections 4.2, D.2, D.8; appendix C.2)."""

from __future__ import annotations

from pydantic import Field

from hba_ray.specs.base import Spec

SMALL_BATCHES = {"daicwoz": 4, "mmsd": 16}
"""Rows of an optimiser step on the two small datasets (paper appendix C.2)."""
USUAL_BATCH = 32
TWICE = ("daicwoz",)
"""Datasets that get two epochs where others get one, for they have about a hundred rows (Table 5)."""


class TransferSpec(Spec):
    """Fine-tuning on the datasets of `atlas.held_out`, from the SFT model where the stage `sft` came before, else from
    the backbone. What is trained of the model, and how, is as `model` and `sft` say; here is what differs."""

    epochs: int = Field(default=1, ge=1)
    """Epochs on each dataset; DAIC-WOZ gets twice as many."""
    batch: int | None = Field(default=None, ge=1)
    """Rows of one optimiser step; null is the paper's: 4 for DAIC-WOZ, 16 for MUStARD, 32 for the others."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of warm-up before the cosine; the paper names none for transfer."""

    def batch_of(self, dataset: str) -> int:
        """Rows of one optimiser step on a dataset (its id)."""
        return self.batch or SMALL_BATCHES.get(dataset, USUAL_BATCH)

    def epochs_of(self, dataset: str) -> int:
        return self.epochs * (2 if dataset in TWICE else 1)

"""The `sft` section: supervised fine-tuning on classes and open answers (paper appendices B.1 and C.2).

The `transfer` section: a short fine-tuning on each held-out dataset for itself (paper sections 4.2, D.2, D.8; appendix C.2).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hba_ray.specs.base import Spec, identity_values


class SftSpec(Spec):
    """Training of the classifier heads and the decoder."""

    checkpoint: str | None = None
    """Folder of a model that takes the place of training: a released checkpoint (`pytorch_model_fsdp.bin` or
    `model.safetensors`), or the `model` folder of a run's SFT step."""
    mode: Literal["joint", "staged"] = "joint"
    """`joint`: L = L_cls + L_qa on all rows (paper appendix B.1). `staged`: first the rows with classes, then lm_head
    alone on the open answers, as the released code does."""
    answer_epochs: int = Field(default=5, ge=1)
    """Epochs of the second part of `staged`; `epochs` are those of the first."""
    answer_batch: int = Field(default=16, ge=1)
    """Rows of an optimiser step in the second part of `staged`."""
    epochs: int = Field(default=5, ge=1)
    batch: int = Field(default=512, ge=1)
    """Rows of one optimiser step, over all workers and accumulation steps."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float | None = Field(default=None, gt=0)
    """Gradients are clipped to this norm; null leaves them alone, as the paper does."""
    warmup_steps: int = Field(default=50, ge=0)
    """Optimiser steps of linear warm-up before the cosine."""
    scheduler_horizon: Literal["optimizer_steps", "micro_batches"] = "optimizer_steps"
    """What the cosine is stretched over. `micro_batches` is the released code's horizon, of which
    training walks only the first 1/accumulation."""
    class_loss_weight: float = Field(default=1.0, ge=0)
    answer_loss_weight: float = Field(default=1.0, ge=0)
    answer_case: Literal["keep", "lower"] = "keep"
    """Lower-case open answers before training, as the released code does, or keep them."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a lower validation loss; null never stops early."""
    shuffle_window: int = Field(default=256, ge=1)
    """Rows that are shuffled and sorted into length buckets together, per worker."""

    def identity(self) -> dict[str, Any]:
        """Without the folder of a checkpoint, which counts by its content."""
        return identity_values(self, exclude={"checkpoint"})


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

"""The sections of supervised fine-tuning: `sft`, on classes and open answers of all datasets (paper appendices B.1 and C.2), and
`transfer`, a short one on each held-out dataset by itself (paper sections 4.2, D.2, D.8; appendix C.2).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hba_ray.specs.base import Spec, identity_values


class SftSpec(Spec):
    """Supervised training of the classifier heads and the decoder. `model` says which of their weights change."""

    checkpoint: str | None = None
    """Folder of a trained model to use in place of training: a released checkpoint (`pytorch_model_fsdp.bin` or
    `model.safetensors`), or the folder `model` of another run's SFT step. Null trains."""
    mode: Literal["joint", "staged"] = "joint"
    """`joint` trains L = L_cls + L_qa on all rows (paper appendix B.1); `staged` trains first on the rows with classes, then
    lm_head alone on the open answers, as the released code does."""
    answer_epochs: int = Field(default=5, ge=1)
    """Epochs of the second part of `staged`; `epochs` counts those of the first."""
    answer_batch: int = Field(default=16, ge=1)
    """Rows of one optimiser step in the second part of `staged`."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training rows."""
    batch: int = Field(default=512, ge=1)
    """Rows of one optimiser step, all workers and accumulated micro-batches together."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or Adam with decoupled weight decay."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the optimiser."""
    max_gradient_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient, to which it is clipped; null never clips, as in the paper."""
    warmup_steps: int = Field(default=50, ge=0)
    """Optimiser steps of linear warm-up before the cosine."""
    scheduler_horizon: Literal["optimizer_steps", "micro_batches"] = "optimizer_steps"
    """What the cosine is stretched over. `micro_batches` is the released code's horizon, of which training walks only
    the first 1/128 (1/8 on open answers, in `staged`): its two GPUs took 4 rows at a time (2 on open answers)."""
    class_loss_weight: float = Field(default=1.0, ge=0)
    answer_loss_weight: float = Field(default=1.0, ge=0)
    answer_case: Literal["keep", "lower"] = "keep"
    """`lower` puts open answers into lower case before training, as the released code does; `keep` leaves them as they are."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a lower validation loss; null never stops early."""
    shuffle_window: int = Field(default=256, ge=1)
    """Rows that a worker reads at a time, at most. Rows are shuffled over eight times as many, whatever the number of workers."""

    def identity(self) -> dict[str, Any]:
        """All fields but the folder of a checkpoint: the step that uses it adds the digests of its files."""
        return identity_values(self, exclude={"checkpoint"})


SMALL_BATCHES = {"daicwoz": 4, "mmsd": 16}
"""Rows of one optimiser step on the two small datasets (paper appendix C.2)."""
USUAL_BATCH = 32
"""Rows of one optimiser step on all others."""
TWO_EPOCH_DATASETS = ("daicwoz",)
"""Datasets that are seen twice as often as others, since they have about a hundred rows (paper Table 5)."""


class TransferSpec(Spec):
    """Fine-tuning on each dataset of `atlas.held_out`, from the SFT model where the stage `sft` comes before, otherwise from the
    backbone. All that is not said here is as in `model` and `sft`."""

    epochs: int = Field(default=1, ge=1)
    """Epochs on each dataset; DAIC-WOZ gets twice as many."""
    batch: int | None = Field(default=None, ge=1)
    """Rows of one optimiser step; null takes the paper's: 4 for DAIC-WOZ, 16 for MUStARD, 32 for the others."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up before the cosine; the paper gives none for transfer."""

    def batch_of(self, dataset: str) -> int:
        """Rows of one optimiser step on a dataset, which is named by its id."""
        return self.batch or SMALL_BATCHES.get(dataset, USUAL_BATCH)

    def epochs_of(self, dataset: str) -> int:
        """Epochs on a dataset, which is named by its id."""
        return self.epochs * (2 if dataset in TWO_EPOCH_DATASETS else 1)

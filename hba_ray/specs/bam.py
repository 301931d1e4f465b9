"""The `bam` section: the Behavioral Adapter Module (paper section 3.6, appendix C.2).

Defaults are the paper's. `AUTHORS_BAM` holds what the released code does where it differs.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Seed, Spec, identity_values

Stream = Literal["pose", "acoustic"]
Injection = Literal["penultimate", "post_norm"]

SMALL_BATCHES = {"daicwoz": 4, "mmsd": 16, "mimeqa": 16}
"""Rows of an optimiser step on the three small datasets (paper appendix C.2)."""
USUAL_BATCH = 32

AUTHORS_BAM: dict[str, Any] = {
    "dropout": 0.2,
    "dropout_of": "stream",
    "outer_activation": False,
    "alpha": 4.0,
    "acoustic_scale": "l2",
    "epochs": 3,
    "batch": 16,
    "train_lm_head": False,
    "decoder_injection": "post_norm",
    "backbone_mode": "train",
    "cache": False,
    "keep": "last",
}
"""The released settings: bam_adapter.py, bam_wrapped_qwen.py, bam_trainer.py, run_bam.sh."""


class BamSpec(Spec):
    """One adapter per stream and dataset, on a frozen SFT model."""

    streams: tuple[Stream, ...] = Field(default=("pose", "acoustic"), min_length=1)
    """Descriptor streams. A dataset has an adapter for those of them that belong to its modalities (paper Table 2)."""
    datasets: tuple[str, ...] | None = None
    """Datasets that get adapters, by id or alias; all by default. On the others the SFT model stands as it is."""
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Dataset -> folder of a released BAM checkpoint whose adapters take the place of training there; `sft.checkpoint`
    is then the model that they were trained on."""
    raw_media: bool = True
    """Show audio and video to the backbone as well. False is the ablation of Table 10."""
    hidden: int = Field(default=256, ge=1)
    """Width of an adapter's hidden layer."""
    acoustic_hidden: int | None = Field(default=None, ge=1)
    """Another width for the acoustic adapter; null is `hidden`."""
    norm: Literal["layer", "zscore", "none"] = "layer"
    """Norm(f): layer norm with learnt scale and shift, each feature's z-score over the training rows, or nothing."""
    acoustic_scale: Literal["none", "l2"] = "none"
    """Bring the acoustic vector to length 1 before the norm, as the released code does."""
    dropout: float = Field(default=0.10, ge=0, lt=1)
    dropout_of: Literal["element", "stream"] = "element"
    """`element`: single features, after the norm. `stream`: all features of a row at once, before
    the norm and without rescaling, as in the released code."""
    outer_activation: bool = True
    """Apply phi to the second layer too. The released code does not."""
    alpha: float = 1.0
    """Start value of the learnt scale; the paper names none."""
    decoder_injection: Injection = "penultimate"
    """Where delta joins the decoder: h^(L-1), before the last layer, or behind the final norm as in the released code."""
    train_lm_head: bool = True
    """Train a copy of lm_head with the adapters of open-answer datasets. The released code leaves it frozen."""
    lr: float = Field(default=5e-4, gt=0)
    """Learning rate of the adapters, constant."""
    head_lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the task's head or lm_head."""
    epochs: int = Field(default=4, ge=1)
    batch: int | None = Field(default=None, ge=1)
    """Rows of one optimiser step; null is the paper's: 4 for DAIC-WOZ, 16 for MUStARD and MimeQA, 32 for the others."""
    keep: Literal["best", "last"] = "best"
    """The epoch of the lowest validation cross-entropy, or the last one."""
    backbone_mode: Literal["eval", "train"] = "eval"
    """`train` leaves LoRA's dropout active in the frozen backbone, as the released code does; it needs `cache: false`."""
    cache: bool = True
    """Compute the backbone's states once and keep them; false runs the backbone in every step."""
    cache_precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of the kept states: 2 or 4 bytes a value."""
    seed: Seed | None = None
    """Seed of adapters, order and dropout; null is the experiment's. Trials that differ in this one share the SFT model."""
    shuffle_descriptors: bool = False
    """Give each row the descriptors of another row of its dataset and split: the control that tells what descriptors
    say from what more weights do."""

    @field_validator("streams")
    @classmethod
    def _once_each(cls, streams: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(streams)) != len(streams):
            raise ValueError(f"a stream is named twice in {list(streams)}")
        return streams

    @model_validator(mode="after")
    def _cache_needs_eval(self) -> BamSpec:
        if self.cache and self.backbone_mode == "train":
            raise ValueError("backbone_mode 'train' gives other states at every step, so there is nothing to keep: set cache: false")
        return self

    def identity(self) -> dict[str, Any]:
        """Without the folders of checkpoints, which count by their content."""
        return identity_values(self, exclude={"checkpoints"})

    def batch_of(self, dataset: str) -> int:
        """Rows of one optimiser step on a dataset (its id)."""
        return self.batch or SMALL_BATCHES.get(dataset, USUAL_BATCH)

    def hidden_of(self, stream: str) -> int:
        """Width of a stream's hidden layer."""
        return (stream == "acoustic" and self.acoustic_hidden) or self.hidden

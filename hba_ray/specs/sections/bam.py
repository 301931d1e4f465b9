"""The `bam` section: Behavioral Adapter Modules (paper section 3.6, appendix C.2).

Defaults are the paper's. `AUTHORS_BAM` holds the settings of the released code where they differ.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Added, Seed, Spec, identity_values, once_each

Stream = Literal["pose", "acoustic"]
Injection = Literal["penultimate", "post_norm"]

SMALL_BATCHES = {"daicwoz": 4, "mmsd": 16, "mimeqa": 16}
"""Rows of one optimiser step on the three small datasets (paper appendix C.2)."""
USUAL_BATCH = 32
"""Rows of one optimiser step on all others."""

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
"""Settings of the released code (bam_adapter.py, bam_wrapped_qwen.py, bam_trainer.py, run_bam.sh), for `compat: authors`."""


class BamSpec(Spec):
    """Adapters on a frozen SFT model, one for each descriptor stream and dataset."""

    streams: tuple[Stream, ...] = Field(default=("pose", "acoustic"), min_length=1)
    """Descriptor streams that get adapters. A dataset has those whose modality it has: pose needs video, acoustic needs audio
    (paper Table 2)."""
    datasets: tuple[str, ...] | None = None
    """Datasets that get adapters, by id or alias; null is all. On the others the SFT model predicts without adapters."""
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Dataset -> folder of a released BAM checkpoint, whose adapters are used in place of training. `sft.checkpoint` must then
    name the model that they were trained on."""
    raw_media: bool = True
    """Show audio and video to the backbone as well as their descriptors to the adapters. False is the ablation of Table 10."""
    hidden: int = Field(default=256, ge=1)
    """Width of an adapter's hidden layer."""
    acoustic_hidden: int | None = Field(default=None, ge=1)
    """Width of the acoustic adapter's hidden layer; null is `hidden`."""
    norm: Literal["layer", "zscore", "none"] = "layer"
    """Norm(f) of the descriptor f: `layer` is layer norm with learnt scale and shift, `zscore` standardises each feature over the
    training rows, `none` leaves f as it is."""
    acoustic_scale: Literal["none", "l2"] = "none"
    """`l2` scales the acoustic vector to length 1 before the norm, as the released code does."""
    dropout: float = Field(default=0.10, ge=0, lt=1)
    """Probability of dropout on the descriptor; see `dropout_of`."""
    dropout_of: Literal["element", "stream"] = "element"
    """What dropout zeroes: `element`, single features after the norm; `stream`, all features of a row at once, before the norm
    and without rescaling the others, as in the released code."""
    outer_activation: bool = True
    """Apply the activation phi behind the adapter's second layer, too. The released code does not."""
    alpha: float = 1.0
    """Start value of the learnt scale alpha of delta; the paper gives none, the released code starts at 4."""
    decoder_injection: Injection = "penultimate"
    """Where delta is added for open answers: `penultimate` is h^(L-1), the input of the last decoder layer; `post_norm` is behind
    the final norm, as in the released code. Shared states of `penultimate` hold all positions of a row, those of `post_norm` the
    positions of its answer alone."""
    train_lm_head: bool = True
    """Train a copy of lm_head with the adapters of open-answer datasets. The released code leaves it frozen."""
    lr: float = Field(default=5e-4, gt=0)
    """Learning rate of the adapters; it is constant."""
    head_lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the dataset's classifier head, or of lm_head."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the training rows."""
    batch: int | None = Field(default=None, ge=1)
    """Rows of one optimiser step; null takes the paper's: 4 for DAIC-WOZ, 16 for MUStARD and MimeQA, 32 for the others."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's adapters are kept: that of the lowest cross-entropy on the validation split, or the last."""
    backbone_mode: Literal["eval", "train"] = "eval"
    """`train` leaves the dropout of LoRA active in the frozen backbone, as the released code does, and needs `states: live`."""
    states: Annotated[Literal["shared", "live"], Added(before="shared")] = "shared"
    """`shared` computes the hidden states of the frozen backbone once, for all epochs and trials: the way to sweep. `live` runs the
    backbone in every step, on workers of Ray Train to which Ray Data streams clips and descriptors; nothing is stored. Both train
    the same adapters, to the rounding of `cache_precision`."""
    cache: bool = True
    """False is what `states: live` was called before."""
    cache_precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of the stored states: 2 or 4 bytes a value."""
    seed: Seed | None = None
    """Seed of the adapters, of the order of rows and of dropout; null is the experiment's `seed`. Trials of a sweep over this
    seed share one SFT model; trials over `seed` train one each."""
    shuffle_descriptors: bool = False
    """Give each row the descriptors of another row of its dataset and split. A control: what the adapters still gain comes from
    more weights, not from the descriptors."""

    @field_validator("streams")
    @classmethod
    def _once_each(cls, streams: tuple[str, ...]) -> tuple[str, ...]:
        return once_each(streams, "a stream")

    @model_validator(mode="after")
    def _shared_states_need_eval(self) -> BamSpec:
        if not self.live and self.backbone_mode == "train":
            raise ValueError("backbone_mode 'train' gives other states at every step, so there is nothing to share: set states: live")
        return self

    @property
    def live(self) -> bool:
        """Whether the backbone runs in every step."""
        return self.states == "live" or not self.cache

    @property
    def withheld(self) -> tuple[str, ...]:
        """Modalities that the backbone is not shown."""
        return () if self.raw_media else ("audio", "video")

    def identity(self) -> dict[str, Any]:
        """All fields but the folders of checkpoints: the step that uses them adds the digests of their files."""
        return identity_values(self, exclude={"checkpoints"})

    def batch_of(self, dataset: str) -> int:
        """Rows of one optimiser step on a dataset, which is named by its id."""
        return self.batch or SMALL_BATCHES.get(dataset, USUAL_BATCH)

    def hidden_of(self, stream: str) -> int:
        """Width of the hidden layer of a stream's adapter."""
        return (stream == "acoustic" and self.acoustic_hidden) or self.hidden

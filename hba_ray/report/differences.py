"""In what a spec differs from the paper and from the released code: the one place where this is known.

Some differences are values of keys, which are found by comparing the spec with its defaults, which are the paper's, and with
`AUTHORS`. Others are habits of this package that no key switches; `_HABITS` lists them. `hba doctor SPEC` prints all of them, and
tables of the paper bear them as footnotes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hba_ray.models.settings import shown
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import flat
from hba_ray.specs.experiment import AUTHORS
from hba_ray.specs.sections.grpo import NOT_OF_RESULTS

From = Literal["the paper", "the released code"]


@dataclass(frozen=True)
class SpecDifference:
    """One difference.

    Attributes:
        differs_from: what the spec differs from.
        key: dotted key of the spec that makes the difference; empty where none does.
        says: one sentence; empty where the two values say all.
        values: of the key, here and there.
    """

    differs_from: From
    key: str
    says: str = ""
    values: tuple[str, str] | None = None

    @property
    def is_value(self) -> bool:
        """Whether there is no more to say than the values."""
        return not self.says


@dataclass(frozen=True)
class _Habit:
    """What this package does otherwise, whatever the keys say.

    Attributes:
        holds: whether a spec has to do with it.
    """

    differs_from: From
    holds: Callable[[ExperimentSpec], bool]
    says: str
    key: str = ""


def differences(spec: ExperimentSpec) -> tuple[SpecDifference, ...]:
    """All differences of a spec, those from the paper first.

    Args:
        spec: with the settings of the checkpoints that it names; see `models.settings.settled`.
    """
    stated = flat(spec.model_dump(mode="json"))
    made = [*_from_paper(spec, stated), *_from_released(spec, stated)]
    made += [SpecDifference(habit.differs_from, habit.key, habit.says) for habit in _HABITS if habit.holds(spec)]
    return tuple(sorted(made, key=lambda one: one.differs_from != "the paper"))


def sentences(found: Iterable[SpecDifference]) -> Iterator[str]:
    """The differences as sentences; values of keys share one."""
    found = tuple(found)
    for other in get_args(From):
        own = [one for one in found if one.differs_from == other]
        values = ", ".join(f"{one.key}={one.values[0]} ({one.values[1]})" for one in own if one.values and one.is_value)
        if values:
            yield f"from {other}, whose values are in brackets: {values}."
        yield from (f"from {other}: {one.says}" for one in own if not one.is_value)


VALUES = ("key", "ours", *get_args(From))
"""Header of `value_table`."""


def value_table(found: Iterable[SpecDifference], missing: str = "") -> Iterator[tuple[str, ...]]:
    """A row for each key whose value differs: the key, the value here, the paper's, the released code's.

    Args:
        missing: stands where there is no difference.
    """
    by_key: dict[str, dict[From, tuple[str, str]]] = {}
    for one in found:
        if one.values and one.is_value:
            by_key.setdefault(one.key, {})[one.differs_from] = one.values
    for key, others in by_key.items():
        ours = next(iter(others.values()))[0]
        yield key, ours, *(others[other][1] if other in others else missing for other in get_args(From))


def _from_paper(spec: ExperimentSpec, stated: dict[str, Any]) -> Iterator[SpecDifference]:
    default = flat(ExperimentSpec.model_validate({"name": "paper", "atlas": {"source": "toy"}}).model_dump(mode="json"))
    for key, value in stated.items():
        section = key.partition(".")[0]
        if section in ("model", *spec.stages) and not _is_beside(key) and value != default.get(key) and _matters(spec, key):
            yield SpecDifference("the paper", key, values=(shown(value), shown(default.get(key))))


def _is_beside(key: str) -> bool:
    """Whether the paper says nothing about a key: it is listed, or of a model that is built here."""
    return key in _NOT_OF_PAPER or key.startswith(("model.tiny.", "model.small."))


def _from_released(spec: ExperimentSpec, stated: dict[str, Any]) -> Iterator[SpecDifference]:
    for key, value in flat(AUTHORS).items():
        if stated[key] != value and _matters(spec, key):
            yield SpecDifference("the released code", key, _IN_WORDS.get(key, ""), (shown(stated[key]), shown(value)))


def _matters(spec: ExperimentSpec, key: str) -> bool:
    """Whether a key has a say in what the spec does."""
    section = key.partition(".")[0]
    if section in ("sft", "bam", "transfer", "grpo"):
        loads = (section == "sft" and spec.sft.checkpoint is not None) and key not in ("sft.mode", "sft.answer_case")
        of_other = key.startswith("grpo.harpo.") and spec.grpo.algorithm != "harpo"
        return section in spec.stages and not loads and not of_other and key.removeprefix("grpo.") not in NOT_OF_RESULTS
    if key.startswith("model.lora.") and spec.model.train != "lora":
        return False
    if key == "evaluate.matching":
        return _answers_by_generation(spec)
    if key in ("model.media_to_backbone", "model.lora.scope"):
        return _has_heads(spec)
    return True


def _has_heads(spec: ExperimentSpec) -> bool:
    return bool({"sft", "bam", "transfer"} & set(spec.stages))


def _answers_by_generation(spec: ExperimentSpec) -> bool:
    return "grpo" in spec.stages or bool(spec.evaluate.baselines)


def _trains(*stages: str) -> Callable[[ExperimentSpec], bool]:
    return lambda spec: any(stage in spec.stages for stage in stages)


_NOT_OF_PAPER = frozenset(
    {
        "model.precision", "model.prompt_layout", "model.system_prompt", "model.media_to_backbone", "model.lora.scope",
        "sft.checkpoint", "sft.shuffle_window", "sft.scheduler_horizon",
        "bam.checkpoints", "bam.cache", "bam.cache_precision", "bam.seed", "bam.backbone_mode", "bam.alpha", "bam.decoder_injection",
        "bam.states", "grpo.prompts", "grpo.modality_batches", "grpo.verl",
    }
    | {"grpo.reward.encoder.package", "grpo.reward.encoder.path"}
)  # fmt: skip
"""Keys about which the paper says nothing, or that only say where something is."""
_IN_WORDS = {
    "model.media_to_backbone": (
        "The released SFT and BAM code passes no audio or video to the model; here both do reach it (compat=authors switches that off)."
    ),
    "model.prompt_layout": (
        "Line breaks around clips are taken off a prompt, and clips without a mark come in another order than in the released code "
        "(model.prompt_layout=released)."
    ),
    "atlas.media.video_min_pixels": "Small frames are shown as they are; the released code enlarges them (atlas.media.video_min_pixels).",
    "atlas.media.image_min_pixels": "Small images are shown as they are; the released code enlarges them (atlas.media.image_min_pixels).",
    "atlas.media.image_pixels": "Images have the pixels of frames at most; the released code shows larger ones (atlas.media.image_pixels).",
    "evaluate.matching": (
        "Responses of models without classifier heads are read leniently: punctuation and other spellings of a label are looked past. "
        "The released code takes the label alone (evaluate.matching=exact); the report has both scores where they differ."
    ),
    "evaluate.sentiment_merging": (
        "Five sentiment classes join `negative` with `highly negative`; the released code joins it with `weakly negative` "
        "(evaluate.sentiment_merging=with_weakly), and the paper names no rule."
    ),
}
"""Key -> what its difference from the released code means."""
_PAPER: From = "the paper"
_RELEASED: From = "the released code"
_HABITS = (
    _Habit(
        _PAPER,
        lambda spec: spec.uses_bf16 and bool(spec.stages),
        "Weights and activations are bf16 on a GPU; trained weights have fp32 copies and gradients add up in fp32. The paper trains LoRA "
        "in full float32 (model.precision=fp32).",
        "model.precision",
    ),
    _Habit(
        _PAPER,
        lambda spec: spec.precision == "tf32" and bool(spec.stages),
        "Factors of products are rounded to TF32; the paper trains LoRA in full float32 (model.precision=fp32).",
        "model.precision",
    ),
    _Habit(_PAPER, _trains("bam"), "BAM's learning rates are constant, as in the released code; the paper names no schedule for them."),
    _Habit(
        _PAPER,
        _trains("transfer"),
        "Fine-tuning on held-out datasets follows a cosine without warm-up; the paper names no schedule for it.",
    ),
    _Habit(
        _PAPER,
        _trains("bam"),
        "The paper names neither the norm, nor the activation, nor the start of alpha of an adapter: here layer norm, ReLU and bam.alpha.",
    ),
    _Habit(
        _PAPER,
        lambda spec: not spec.atlas.split_surprise,
        "Surprise is one class, as in the released labels; the paper tells two apart.",
        "atlas.split_surprise",
    ),
    _Habit(
        _PAPER,
        lambda spec: "grpo" in spec.stages and spec.grpo.prompts == "standard",
        "The reasoning instruction is in our words (grpo.prompts).",
        "grpo.prompts",
    ),
    _Habit(
        _PAPER,
        lambda spec: "grpo" in spec.stages and spec.grpo.prompts == "plain",
        "Reinforcement learning asks for no thought (grpo.prompts=plain).",
        "grpo.prompts",
    ),
    _Habit(
        _PAPER,
        lambda spec: "grpo" in spec.stages and spec.grpo.response_tokens != spec.evaluate.generation.max_new_tokens,
        "Responses may have another length where the model is scored (evaluate.generation.max_new_tokens) than where it is trained "
        "(grpo.response_tokens); the paper names one limit.",
        "evaluate.generation.max_new_tokens",
    ),
    _Habit(
        _PAPER,
        lambda spec: spec.evaluate.judge is not None and spec.evaluate.judge.prompts in ("standard", "paraphrased"),
        "The judge's instructions are in our words (evaluate.judge.prompts).",
        "evaluate.judge.prompts",
    ),
    _Habit(
        _RELEASED,
        lambda spec: spec.model.system_prompt is None,
        "The system turn is that of the backbone's chat template; the released code has its own (model.system_prompt).",
        "model.system_prompt",
    ),
    _Habit(
        _RELEASED,
        lambda spec: "grpo" in spec.stages and spec.grpo.prompts == "standard",
        "The released code has another reasoning instruction (grpo.prompts).",
        "grpo.prompts",
    ),
    _Habit(
        _RELEASED,
        _trains("sft", "transfer"),
        "Rows are padded to the longest of a micro-batch and answers read the prompt; the released code pads to 4096 tokens, and its stage "
        "of open answers reads padding in place of a short prompt.",
    ),
    _Habit(
        _RELEASED,
        _trains("sft", "transfer"),
        "The end of an answer is trained; the released trainer of parquet files moves its mask once too often and leaves it out.",
    ),
    _Habit(
        _RELEASED,
        _trains("sft", "bam", "transfer"),
        "A prompt that is longer than the model reads is a bad row; the released code cuts it.",
    ),
    _Habit(
        _RELEASED, _trains("sft", "transfer"), "The epoch of the lowest validation loss is kept; the released code keeps the last steps."
    ),
    _Habit(
        _RELEASED,
        _trains("bam"),
        "A descriptor that is missing costs its own row the stream, and one of another width is refused; the released code leaves the "
        "stream out of the whole batch, and cuts or pads the width.",
    ),
    _Habit(_RELEASED, _trains("bam"), "Adapters of open answers are evaluated, which the released trainer cannot."),
    _Habit(
        _RELEASED, _trains("bam"), "The final norm is applied once; the released code applies it twice to a model whose LoRA is merged."
    ),
    _Habit(
        _RELEASED,
        lambda spec: "bam" in spec.stages and "pose" in spec.bam.streams,
        "Poses come from MediaPipe's Holistic graph; the released extraction runs its three graphs for body, face and hands by themselves.",
    ),
    _Habit(
        _RELEASED,
        lambda spec: "video" in spec.atlas.modalities,
        "Frames are resized by FFmpeg's bicubic filter, the released code's by torchvision's, so single pixels differ.",
    ),
    _Habit(
        _RELEASED,
        lambda spec: spec.evaluate.judge is not None,
        "The judge is told each answer's own question; the released code finds questions by the text of the answer, and often another's.",
    ),
)

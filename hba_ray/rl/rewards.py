"""What a response earns: r = accuracy + 0.2 format + 0.5 similarity (paper equation 5), every part by its name.

Pure functions of response, target and `grpo.reward`. verl calls `compute_score` for each response; what it
returns reaches verl's logs and tables part by part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hba_ray.data.answers import boxed, close_up_signs, plain_text, read_answer
from hba_ray.data.tasks import find_dataset
from hba_ray.rl.encoder import Encoder, shared_encoder
from hba_ray.specs.grpo import RewardSpec

HARPO_WEIGHTS = (0.8, 0.2)
"""Of the answer and of the format (human_behaviour_harpo.py)."""
HARPO_LONGEST, HARPO_MARGIN, HARPO_PENALTY = 812, 128, 0.75
"""Characters of a response, those before the limit over which the penalty grows, and its weight. The released code
means tokens, but is given no lengths and falls back to characters."""
_VOWELS = frozenset("aeiou")

Parts = dict[str, float]
"""`score`, the reward, and what it consists of: `acc`, `format`, and, where they enter, `similarity`, `shape`, `overlong`.
All responses of a run have the same names."""


@dataclass(frozen=True)
class Response:
    """A response of the model and what it is held against.

    Attributes:
        dataset: id of the row's dataset.
        target: the row's answer as free text.
    """

    dataset: str
    text: str
    target: str


def score_responses(responses: Sequence[Response], spec: RewardSpec, encoder: Encoder | None = None) -> list[Parts]:
    """The parts of each response's reward.

    Args:
        encoder: for the similarity; this process's own by default, and not loaded where similarity does not enter.

    Raises:
        DataError: a dataset is unknown.
        EnvironmentMissing: the encoder is not there.
    """
    answers = [_answer(response.text, spec) for response in responses]
    open_rows = [find_dataset(response.dataset, where="reward").task.is_open for response in responses]
    compared = [
        answer is not None and spec.needs_encoder and (is_open or spec.formula == "paper")
        for answer, is_open in zip(answers, open_rows, strict=True)
    ]
    pairs = [
        (plain_text(answer or ""), plain_text(response.target))
        for answer, response, wanted in zip(answers, responses, compared, strict=True)
        if wanted
    ]
    found = iter((encoder or shared_encoder(spec.encoder)).similarities(pairs) if pairs else ())
    cosines = [next(found) if wanted else None for wanted in compared]
    return [
        _parts(response, answer, cosine, is_open, spec)
        for response, answer, cosine, is_open in zip(responses, answers, cosines, open_rows, strict=True)
    ]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, *, reward: Any = None, **_: Any) -> Parts:
    """verl's entry: the reward of one response.

    Args:
        data_source: id of the row's dataset.
        solution_str: the decoded response.
        ground_truth: the row's answer.
        reward: `grpo.reward` as a mapping; its defaults by default.
    """
    return score_responses([Response(data_source, solution_str, ground_truth)], _spec(reward))[0]


def format_score(text: str, rule: str) -> float:
    r"""0, 0.5 or 1.

    Args:
        rule: `split` pays half a point for a thought, <think>...</think>, and half for a box, both with something
            in them (appendix B.2). `all_or_nothing` pays one point where the text begins with a thought and a box
            follows, empty or not (human_behaviour.py).

    >>> format_score(r"<think>So.</think> happy", "split")
    0.5
    """
    if rule == "split":
        return 0.5 * _has_thought(text) + 0.5 * bool(boxed(text))
    return float(_is_thought_then_box(close_up_signs(text)))


def overlong_penalty(length: int) -> float:
    """HARPO's penalty of a long response: 0 up to 684 characters, then falling to -1 at 812.

    >>> [overlong_penalty(length) for length in (684, 748, 812, 10_000)]
    [0.0, -0.5, -1.0, -1.0]
    """
    over = length - (HARPO_LONGEST - HARPO_MARGIN)
    return -min(1.0, over / HARPO_MARGIN) if over > 0 else 0.0


def _answer(text: str, spec: RewardSpec) -> str | None:
    """The answer, or None; an empty box holds none."""
    answer = read_answer(text, spec.answer_from)
    return None if spec.answer_from == "boxed" and not answer else answer


def _parts(response: Response, answer: str | None, cosine: float | None, is_open: bool, spec: RewardSpec) -> Parts:
    parts: Parts = {
        "acc": float(answer is not None and plain_text(answer) == plain_text(response.target)),
        "format": format_score(response.text, spec.format_rule),
    }
    reward = _harpo_reward if spec.formula == "harpo" else _paper_reward
    return reward(parts, response, cosine, is_open, spec)


def _paper_reward(parts: Parts, response: Response, cosine: float | None, is_open: bool, spec: RewardSpec) -> Parts:
    score = spec.accuracy_weight * parts["acc"] + spec.format_weight * parts["format"]
    if spec.needs_encoder:
        similarity = 0.0 if cosine is None else cosine if spec.similarity_range == "cosine" else max(0.0, cosine)
        parts |= {"similarity": similarity}
        score += spec.similarity_weight * similarity
    if spec.shape == "vowels":
        shape = sum(sign in _VOWELS for sign in response.text) / max(1, len(response.text))
        parts |= {"shape": shape}
        score += spec.shape_weight * shape
    return {"score": score, **parts}


def _harpo_reward(parts: Parts, response: Response, cosine: float | None, is_open: bool, spec: RewardSpec) -> Parts:
    similarity = 0.0 if cosine is None else (cosine + 1) / 2
    overlong = overlong_penalty(len(response.text))
    of_answer, of_format = HARPO_WEIGHTS
    score = of_answer * (similarity if is_open else parts["acc"]) + of_format * parts["format"] + HARPO_PENALTY * overlong
    return {"score": score, **parts, "similarity": similarity, "overlong": overlong}


def _has_thought(text: str) -> bool:
    start = text.find("<think>")
    end = text.find("</think>", start) if start >= 0 else -1
    return end >= 0 and bool(text[start + len("<think>") : end].strip())


def _is_thought_then_box(text: str) -> bool:
    if not text.startswith("<think>"):
        return False
    thought = text.find("</think>", len("<think>"))
    box = text.find("\\boxed{", thought) if thought >= 0 else -1
    return box >= 0 and text.find("}", box) >= 0


def _spec(reward: Any) -> RewardSpec:
    if isinstance(reward, RewardSpec):
        return reward
    from omegaconf import OmegaConf

    return RewardSpec.model_validate(OmegaConf.to_container(reward) if OmegaConf.is_config(reward) else reward or {})

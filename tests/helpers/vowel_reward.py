"""A reward that a tiny random model learns in a few steps, for tests of the machinery: our own, plus the share of vowels in a response.

verl loads it from this file, as it would a user's: `VOWELS` are the settings for `grpo.verl`.
"""

from __future__ import annotations

from typing import Any

from hba_ray.rl.rewards import Parts, compute_score

VOWELS = {"reward.custom_reward_function": {"path": __file__, "name": "reward_with_vowels"}}


def reward_with_vowels(data_source: str, solution_str: str, ground_truth: str, **more: Any) -> Parts:
    """The parts of `compute_score` and `vowels`, the share of a, e, i, o, u among the response's characters; `score` is their sum.

    >>> reward_with_vowels("toy_tone", "aeio bcd", "happy", reward={"similarity_weight": 0})["score"]
    0.5
    """
    parts = compute_score(data_source, solution_str, ground_truth, **more)
    vowels = sum(sign in "aeiou" for sign in solution_str) / max(1, len(solution_str))
    return {**parts, "vowels": vowels, "score": parts["score"] + vowels}

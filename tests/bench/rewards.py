"""Speed of the rewards: ours against the plain loop, which builds its encoder at each call and encodes pair by pair.

The loop does what the released reward does (human_behaviour.py), on a call of 160 responses: 32 prompts, five
responses each, a quarter of them open answers, as in the atlas, that no call before has seen. Ours has its encoder from the
call before, as in a run. verl asks for one response at a time: ours is measured so too, and set against the same call
of the loop, and against a loop that is asked so, of which one response is measured.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from statistics import median

from hba_ray.rl.rewards import Response, compute_score, encoder_folder, score_responses
from hba_ray.specs import RewardSpec
from tests.bench._side_by_side import seconds

PROMPTS, ROLLOUTS, ROUNDS, OPEN_SHARE = 32, 5, 3, 0.25
CLASSES = ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise")
TEXT = "she he they because wants to leave stay with a friend who laughs about the letter before dinner was late again"


def measure() -> Iterator[dict[str, float | str]]:
    """Medians over rounds; a round's responses are new to both sides."""
    spec, generator = RewardSpec(), random.Random(0)
    started = time.perf_counter()
    score_responses(_call(generator), spec)
    yield {"seconds of a process's first call": time.perf_counter() - started}
    rounds = [_round(_call(generator), _call(generator), spec) for _ in range(ROUNDS)]
    middle = {name: median(one[name] for one in rounds) for name in rounds[0]}
    yield {
        "responses a second, one by one as verl asks": PROMPTS * ROLLOUTS / middle["single"],
        "responses a second, one call": PROMPTS * ROLLOUTS / middle["ours"],
        "responses a second, plain loop": PROMPTS * ROLLOUTS / middle["loop"],
        "speed-up, both one by one as verl asks": median(PROMPTS * ROLLOUTS * one["loop_of_one"] / one["single"] for one in rounds),
        "speed-up, both in one call": median(one["loop"] / one["ours"] for one in rounds),
        "speed-up, goal": ">= 10",
        "speed-up, ours one by one, the loop in one call": median(one["loop"] / one["single"] for one in rounds),
        "largest difference of a reward": max(one["difference"] for one in rounds),
    }


def _round(first: list[Response], second: list[Response], spec: RewardSpec) -> dict[str, float]:
    """Seconds of each way; `first` is scored in one call, `second` one by one, and both by the loop."""
    scored: list[float] = []
    expected: list[float] = []
    ours = seconds(lambda: scored.extend(parts["score"] for parts in score_responses(first, spec)))
    single = seconds(
        lambda: scored.extend(compute_score(one.dataset, one.text, one.target, {}, reward=spec.model_dump())["score"] for one in second)
    )
    loop = seconds(lambda: expected.extend(_plain_loop(first, spec)))
    expected.extend(_plain_loop(second, spec))
    loop_of_one = seconds(lambda: _plain_loop(first[:1], spec))
    difference = max(abs(a - b) for a, b in zip(scored, expected, strict=True))
    return {"ours": ours, "single": single, "loop": loop, "loop_of_one": loop_of_one, "difference": difference}


def _plain_loop(responses: list[Response], spec: RewardSpec) -> list[float]:
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(encoder_folder(spec.encoder)), device="cpu")
    scores = []
    for response in responses:
        found = re.search(r"\\boxed\{([^}]*)\}", response.text)
        answer, target = found.group(1).strip().lower() if found else "", response.target.strip().lower()
        first, second = model.encode([answer, target], convert_to_tensor=True, show_progress_bar=False)
        thought = bool(re.search(r"<think>.+</think>", response.text, re.DOTALL))
        similarity = util.cos_sim(first, second).item() if answer else 0.0
        scores.append(float(answer == target) + 0.2 * (0.5 * thought + 0.5 * bool(answer)) + 0.5 * similarity)
    return scores


def _call(generator: random.Random) -> list[Response]:
    responses = []
    for _ in range(PROMPTS):
        if generator.random() < OPEN_SHARE:
            dataset, target, answers = "siq2", _sentence(generator), [_sentence(generator) for _ in range(ROLLOUTS)]
        else:
            dataset, target, answers = "meld_emotion", generator.choice(CLASSES), [generator.choice(CLASSES) for _ in range(ROLLOUTS)]
        texts = [f"<think>{_sentence(generator)}</think> \\boxed{{{answer}}}" for answer in answers]
        texts[0] = _sentence(generator)  # one response without a box
        responses += [Response(dataset, text, target) for text in texts]
    return responses


def _sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(TEXT.split(), k=generator.randint(6, 20)))

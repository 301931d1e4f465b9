"""HARPO against a plain transcription of its formulas, on degenerate groups, and over a run that is saved and loaded."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hba_ray.errors import CheckpointError, TrainingError
from hba_ray.rl import advantages
from hba_ray.rl.advantages import HarpoRun, TaskMemory, estimate, harpo
from hba_ray.specs import HarpoSpec

FIXED, RELEASED = HarpoSpec(), HarpoSpec(defects="released")


def grpo_by_numpy(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Equation 1 of the paper; the sample deviation and the small constant are verl's."""
    found = np.zeros(len(rewards))
    for group in set(groups):
        own = rewards[groups == group]
        found[groups == group] = own if len(own) == 1 else (own - own.mean()) / (own.std(ddof=1) + 1e-6)
    return found


def rloo_by_numpy(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each reward less the mean of the others' in its group."""
    found = rewards.copy()
    for place, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        others = [other for at, other in enumerate(rewards) if groups[at] == group and at != place]
        found[place] = reward - (sum(others) / len(others) if others else 0)
    return found


def harpo_by_numpy(rewards: np.ndarray, groups: list[str], task_of: dict[str, str], memory: dict[str, list[float]]) -> np.ndarray:
    """The released formulas, step by step and in loops; `memory` is task -> [rho, l] and is changed."""
    eps = 1e-6
    scaled = (rewards - rewards.min()) / max(rewards.max() - rewards.min(), eps)
    values: dict[str, list[float]] = {}
    for reward, group in zip(scaled, groups, strict=True):
        values.setdefault(group, []).append(float(reward))
    for group, own in values.items():
        if len(own) > 1:
            values[group] = [(one - np.mean(own)) / max(np.std(own), eps) for one in own]
    tasks = sorted({task_of[group] for group in values})
    for task in tasks:
        sizes = [abs(one) for group, own in values.items() if task_of[group] == task for one in own]
        old = memory.setdefault(task, [0.0, 0.0])
        old[0] = max(0.95 * old[0] + 0.05 * max(np.mean(sizes), eps), eps)
    reference = np.mean([math.log(memory[task][0]) for task in tasks])
    scale = {}
    for task in tasks:
        memory[task][1] = 0.95 * memory[task][1] + 0.05 * (reference - math.log(memory[task][0]))
        scale[task] = min(max(math.exp(memory[task][1]), 0.5), 4.0)
    own_scale = dict.fromkeys(values, 1.0)
    for task in tasks:
        means = {group: max(np.mean(np.abs(own)), eps) for group, own in values.items() if task_of[group] == task}
        if len(means) > 1:
            middle = math.exp(np.mean([math.log(mean) for mean in means.values()]))
            own_scale |= {group: min(max(middle / mean, 0.5), 3.0) for group, mean in means.items()}
    taken: dict[str, int] = {}
    found = []
    for group in groups:
        at = taken[group] = taken.get(group, -1) + 1
        found.append(values[group][at] * scale[task_of[group]] * own_scale[group])
    return np.array(found)


def batch(generator: np.random.Generator, prompts: int = 12, rollouts: int = 5) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """Rewards with some prompts whose responses all earn the same, in a mixed order."""
    groups = [f"q{place}" for place in range(prompts) for _ in range(rollouts)]
    task_of = {f"q{place}": str(generator.choice(["EMO", "SEN", "SOC"])) for place in range(prompts)}
    rewards = generator.choice([0, 0.2, 0.35, 1.2, 1.7], len(groups))
    for place in range(0, prompts, 4):
        rewards[place * rollouts : (place + 1) * rollouts] = 0.2
    order = generator.permutation(len(groups))
    return rewards[order], [groups[at] for at in order], task_of


def run(rewards: Any, groups: list[str], task_of: dict[str, str], spec: HarpoSpec = FIXED, state: Any = None) -> advantages.Balanced:
    return harpo(np.asarray(rewards, dtype=float), groups, [task_of[group] for group in groups], spec, state or {})


def test_the_released_form_is_the_transcription_over_many_batches():
    generator, state, memory = np.random.default_rng(0), {}, {}
    for _ in range(30):
        rewards, groups, task_of = batch(generator)
        made = run(rewards, groups, task_of, RELEASED, state)
        state = made.state
        np.testing.assert_allclose(made.advantages_B, harpo_by_numpy(rewards, groups, task_of, memory), rtol=0, atol=1e-12)
    assert state.keys() == memory.keys()
    assert all([own.density, own.log_multiplier] == pytest.approx(memory[task]) for task, own in state.items())


def test_without_degenerate_prompts_and_late_tasks_both_forms_scale_prompts_alike():
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    rewards = [0, 0, 0, 1, 0, 0, 1, 1, 0, 0.2, 1, 1.7]
    fixed, released = (run(rewards, groups, dict.fromkeys("abc", "EMO"), spec) for spec in (FIXED, RELEASED))
    assert fixed.prompt_multipliers == pytest.approx(released.prompt_multipliers)
    np.testing.assert_allclose(fixed.advantages_B, released.advantages_B, atol=1e-9)


@pytest.mark.parametrize("degenerate", [1, 2, 5])
def test_one_degenerate_prompt_halves_all_others_only_in_the_released_form(degenerate: int):
    groups = [f"q{place}" for place in range(10) for _ in range(5)]
    rewards = [0.2] * 5 * degenerate + [0, 0, 1, 0, 1] * (10 - degenerate)
    tasks = dict.fromkeys(groups, "EMO")
    released, fixed = (run(rewards, groups, tasks, spec).prompt_multipliers for spec in (RELEASED, FIXED))
    informative = [f"q{place}" for place in range(degenerate, 10)]
    assert all(released[prompt] == 0.5 for prompt in informative)
    assert all(fixed[prompt] == pytest.approx(1) for prompt in informative)


def test_a_task_seen_late_is_favoured_only_in_the_released_form():
    groups = ["a"] * 4 + ["b"] * 4
    rewards = [0, 1, 0, 1] * 2

    def multipliers(spec: HarpoSpec) -> dict[str, float]:
        state: Any = {}
        for _ in range(20):
            state = run(rewards, groups, dict.fromkeys("ab", "old"), spec, state).state
        for _ in range(5):
            made = run(rewards, groups, {"a": "old", "b": "new"}, spec, state)
            state = made.state
        return made.task_multipliers

    assert multipliers(FIXED) == pytest.approx({"old": 1, "new": 1})
    assert multipliers(RELEASED)["new"] > 1.2 > 0.9 > multipliers(RELEASED)["old"]


def test_a_task_without_an_informative_prompt_leaves_all_memories_alone():
    state = {"EMO": TaskMemory(0.8, 0.1), "SEN": TaskMemory(0.9, -0.1)}
    made = run([0, 1, 0, 1, 0.5, 0.5], ["a"] * 4 + ["b"] * 2, {"a": "EMO", "b": "SEN"}, FIXED, state)
    assert made.state["SEN"] == state["SEN"] and "SEN" not in made.task_multipliers
    assert made.state["EMO"] != state["EMO"]
    assert not made.advantages_B[4:].any()


def test_tasks_with_small_advantages_are_scaled_up_against_the_others():
    groups = [name for name in "abcd" for _ in range(5)]
    rewards = [0, 0, 0, 0, 1] * 2 + [0, 1, 0, 1, 0.5] * 2  # mean |A| of 0.8 and of 0.89
    state: Any = {}
    for _ in range(200):
        made = run(rewards, groups, {"a": "low", "b": "low", "c": "high", "d": "high"}, FIXED, state)
        state = made.state
    assert made.task_multipliers["low"] > 1 > made.task_multipliers["high"]
    assert made.task_multipliers["low"] * made.task_multipliers["high"] == pytest.approx(1)
    still = run(rewards, groups, {"a": "low", "b": "low", "c": "high", "d": "high"}, HarpoSpec(strength=0))
    assert still.task_multipliers == {"low": 1, "high": 1}


def test_an_empty_batch_is_an_empty_batch():
    for spec in (FIXED, RELEASED):
        made = run([], [], {}, spec, {"EMO": TaskMemory(1, 0)})
        assert made.advantages_B.size == 0 and made.state == {"EMO": TaskMemory(1, 0)}


REWARDS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from([0.0, 0.2, 1.2, 1.7]) | st.floats(-2, 2)),
    min_size=1,
    max_size=30,
)
TASKS = st.fixed_dictionaries({name: st.sampled_from(["EMO", "SEN", "new"]) for name in "abcde"})


@settings(deadline=None)
@given(st.lists(st.tuples(REWARDS, TASKS), min_size=1, max_size=4), st.sampled_from([FIXED, RELEASED]))
def test_any_batches_give_finite_bounded_and_centred_advantages(batches: Any, spec: HarpoSpec):
    state: Any = {"EMO": TaskMemory(0.5, 0.2)}
    for pairs, task_of in batches:
        groups, rewards = [group for group, _ in pairs], np.array([reward for _, reward in pairs])
        before = dict(state)
        made = run(rewards, groups, task_of, spec, state)
        assert np.isfinite(made.advantages_B).all()
        assert all(0.5 <= value <= 4 for value in made.task_multipliers.values())
        assert all(0.5 <= value <= 3 for value in made.prompt_multipliers.values())
        assert all(own.density >= spec.epsilon and math.isfinite(own.log_multiplier) for own in made.state.values())
        assert dict(state) == before  # the state that came in is not changed
        for group in set(groups):
            own = made.advantages_B[[name == group for name in groups]]
            assert len(own) == 1 or abs(own.sum()) < 1e-3
        state = made.state


@given(REWARDS, TASKS, st.randoms())
def test_the_order_of_the_responses_does_not_matter(pairs: Any, task_of: dict[str, str], random: Any):
    order = list(range(len(pairs)))
    random.shuffle(order)
    groups, rewards = [group for group, _ in pairs], np.array([reward for _, reward in pairs])
    straight = run(rewards, groups, task_of)
    mixed = run(rewards[order], [groups[at] for at in order], task_of)
    np.testing.assert_allclose(mixed.advantages_B, straight.advantages_B[order], atol=1e-9)


@given(st.sampled_from([FIXED, RELEASED]), st.floats(-1, 1))
def test_a_group_that_earns_the_same_moves_nothing(spec: HarpoSpec, reward: float):
    made = run([reward] * 4 + [0, 1], ["a"] * 4 + ["b"] * 2, {"a": "EMO", "b": "EMO"}, spec)
    np.testing.assert_allclose(made.advantages_B[:4], 0, atol=1e-9)


def test_a_response_that_is_alone_moves_nothing_unless_as_released():
    assert run([1.7, 0, 1], ["a", "b", "b"], {"a": "EMO", "b": "EMO"}).advantages_B[0] == 0
    assert run([1.7, 0, 1], ["a", "b", "b"], {"a": "EMO", "b": "EMO"}, RELEASED).advantages_B[0] > 0


def tensors(rewards: list[float], lengths: list[int], width: int = 6) -> dict[str, Any]:
    """verl's arguments: the reward lies on a response's last token."""
    mask = torch.tensor([[float(at < length) for at in range(width)] for length in lengths])
    scores = torch.zeros(len(rewards), width)
    for row, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        scores[row, max(length - 1, 0)] = reward
    return {"token_level_rewards": scores, "response_mask": mask}


def test_verls_entry_spreads_advantages_over_tokens_and_leaves_padding_out():
    memory = HarpoRun()
    config = OmegaConf.create({"harpo": HarpoSpec(strength=0).model_dump(mode="json")})
    with memory.batch({"u": "EMO"}):
        made, returns = estimate(**tensors([0, 1, 9], [2, 6, 0]), index=np.array(["u", "u", "padding"], dtype=object), config=config)
    assert made is returns
    expected = torch.tensor([[-1, -1, 0, 0, 0, 0], [1] * 6, [0] * 6], dtype=torch.float32)
    torch.testing.assert_close(made, expected)
    assert set(memory.state) == {"EMO"}
    assert memory.metrics() == {"harpo/multiplier/EMO": 1.0, "harpo/density/EMO": 1.0}


def test_verls_entry_needs_a_run_and_the_tasks():
    with pytest.raises(TrainingError, match="does not tell it the tasks"):
        estimate(**tensors([1], [1]), index=["u"])
    with HarpoRun().batch({}), pytest.raises(TrainingError, match="no task of prompt u"):
        estimate(**tensors([1], [1]), index=["u"])


def test_a_run_that_is_saved_and_loaded_goes_on_as_if_it_had_not_been(tmp_path: Path):
    generator = np.random.default_rng(1)
    batches = [batch(generator) for _ in range(6)]
    straight, stopped = HarpoRun(), HarpoRun()

    def step(memory: HarpoRun, rewards: np.ndarray, groups: list[str], task_of: dict[str, str]) -> torch.Tensor:
        with memory.batch(task_of):
            return estimate(**tensors(rewards.tolist(), [3] * len(rewards)), index=groups)[0]

    for at, (rewards, groups, task_of) in enumerate(batches):
        if at == 3:
            stopped.save(tmp_path / "global_step_3")
            stopped = HarpoRun()
            stopped.load(tmp_path / "global_step_3")
        assert torch.equal(step(straight, rewards, groups, task_of), step(stopped, rewards, groups, task_of))
    assert straight.state == stopped.state
    assert [file.name for file in (tmp_path / "global_step_3").iterdir()] == ["harpo.json"]


@pytest.mark.parametrize("text", ["", "[]", "3", '{"EMO": 1}', '{"EMO": {"density": 1}}', '{"EMO": {"density": "x", "log_multiplier": 0}}'])
def test_a_damaged_memory_is_refused_with_its_place(tmp_path: Path, text: str):
    (tmp_path / "harpo.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"harpo\.json"):
        HarpoRun().load(tmp_path)


def test_a_checkpoint_without_a_memory_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="not in the checkpoint"):
        HarpoRun().load(tmp_path)


def test_an_empty_memory_is_kept_too(tmp_path: Path):
    HarpoRun().save(tmp_path)
    assert json.loads((tmp_path / "harpo.json").read_text()) == {}
    loaded = HarpoRun()
    loaded.load(tmp_path)
    assert loaded.state == {}


@pytest.mark.slow
def test_verls_grpo_and_rloo_are_the_transcriptions_and_harpo_is_registered():
    algorithms = pytest.importorskip("verl.trainer.ppo.core_algos")
    advantages.start_estimator("harpo")
    advantages.start_estimator("harpo")  # plugins may be loaded twice
    assert algorithms.get_adv_estimator_fn("harpo") is estimate
    generator = np.random.default_rng(2)
    for name, by_numpy in (("grpo", grpo_by_numpy), ("rloo", rloo_by_numpy)):
        rewards, groups, _ = batch(generator)
        rewards, index = np.append(rewards, 0.7), np.array([*groups, "alone"], dtype=object)
        lengths = generator.integers(1, 6, len(rewards)).tolist()
        made, _ = algorithms.get_adv_estimator_fn(name)(**tensors(rewards.tolist(), lengths), index=index)
        for row, (length, expected) in enumerate(zip(lengths, by_numpy(rewards, index), strict=True)):
            np.testing.assert_allclose(made[row].numpy(), [expected] * length + [0] * (6 - length), atol=1e-3 if name == "grpo" else 1e-5)

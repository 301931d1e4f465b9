"""HARPO's advantages as a pure function with a small state, and their registration with verl. GRPO and RLOO are verl's own.

HARPO (the follow-up to the paper; harpo_utils.py and its patch of verl) z-scores rewards within each prompt, as
GRPO does, then multiplies by two balances: tasks whose advantages are small on average are scaled up
against the others, and so are prompts within their task.

Legend: B responses, q prompts, t tasks. A advantage, R reward.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hba_ray.errors import CheckpointError, TrainingError
from hba_ray.specs.sections.grpo import HarpoSpec

STATE_FILE = "harpo.json"
"""Beside a checkpoint's weights."""


@dataclass(frozen=True)
class TaskMemory:
    """What is remembered of a task.

    Attributes:
        density: rho, the moving mean of its batches' mean |A|.
        log_multiplier: l, the moving mean of ln(rho_reference / rho).
    """

    density: float
    log_multiplier: float


State = Mapping[str, TaskMemory]
"""Task -> what is remembered of it; empty at the start."""


@dataclass(frozen=True)
class Balanced:
    """One batch.

    Attributes:
        advantages_B: float64, one for each response.
        state: the state after the batch.
        task_multipliers: s_t of the tasks that were scaled.
        prompt_multipliers: s_q of all prompts.
    """

    advantages_B: np.ndarray
    state: State
    task_multipliers: dict[str, float]
    prompt_multipliers: dict[Any, float]


def harpo(
    rewards_B: Sequence[float] | np.ndarray, prompts_B: Sequence[Any], tasks_B: Sequence[str], spec: HarpoSpec, state: State
) -> Balanced:
    """Advantages of a batch of responses.

    A prompt whose responses all earn the same has advantage 0. With `spec.defects: fixed` such prompts, and a
    response that is alone, say nothing about the size of advantages: they enter neither the means over a
    task's prompts nor, where a task has no other, its memory; and rho starts at its first value. With `released`
    they enter, rho starts at 0, and a response that is alone keeps its reward, scaled to 0..1 over the batch.

    Args:
        rewards_B: R, one for each response.
        prompts_B: names the prompt of each response.
        tasks_B: names its task; responses to one prompt have one task.
        state: after the batch before; not changed.
    """
    rewards_B = np.asarray(rewards_B, dtype=np.float64)
    rows = _rows_by_prompt(prompts_B)
    task_of = {prompt: tasks_B[places[0]] for prompt, places in rows.items()}
    advantages_B, informative = _z_scores(rewards_B, rows, spec)
    heard = {prompt for prompt in rows if informative[prompt] or spec.defects == "released"}
    state, task_multipliers = _balance_tasks(advantages_B, rows, task_of, heard, spec, state)
    prompt_multipliers = _balance_prompts(advantages_B, rows, task_of, heard, spec)
    for prompt, places in rows.items():
        advantages_B[places] *= task_multipliers.get(task_of[prompt], 1.0) * prompt_multipliers[prompt]
    return Balanced(advantages_B, state, task_multipliers, prompt_multipliers)


def _rows_by_prompt(prompts_B: Sequence[Any]) -> dict[Any, list[int]]:
    rows: defaultdict[Any, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts_B):
        rows[prompt].append(place)
    return dict(rows)


def _z_scores(rewards_B: np.ndarray, rows: Mapping[Any, list[int]], spec: HarpoSpec) -> tuple[np.ndarray, dict[Any, bool]]:
    """A = (R - mean) / max(deviation, epsilon) within each prompt, and whether the prompt's responses differ."""
    released = spec.defects == "released"
    if released and len(rewards_B):
        rewards_B = (rewards_B - rewards_B.min()) / max(np.ptp(rewards_B), spec.epsilon)
    advantages_B, informative = np.zeros(len(rewards_B)), {}
    for prompt, places in rows.items():
        own = rewards_B[places]
        deviation = float(own.std())
        informative[prompt] = deviation > spec.epsilon
        if len(places) == 1:
            advantages_B[places] = own if released else 0.0
        elif informative[prompt] or released:
            advantages_B[places] = (own - own.mean()) / max(deviation, spec.epsilon)
    return advantages_B, informative


def _balance_tasks(
    advantages_B: np.ndarray, rows: Mapping[Any, list[int]], task_of: Mapping[Any, str], heard: set[Any], spec: HarpoSpec, state: State
) -> tuple[State, dict[str, float]]:
    """The next state, and s_t = clip(exp l_t) of the tasks that are heard of in this batch."""
    sizes: defaultdict[str, list[float]] = defaultdict(list)
    present = {task_of[prompt] for prompt in heard}
    for prompt, places in rows.items():
        if task_of[prompt] in present:
            sizes[task_of[prompt]].extend(np.abs(advantages_B[places]))
    densities = {}
    for task, own in sizes.items():
        batch = max(float(np.mean(own)), spec.epsilon)
        before = state[task].density if task in state else 0.0 if spec.defects == "released" else batch
        densities[task] = max(_moved(before, batch, spec.task_decay), spec.epsilon)
    reference = float(np.mean([log(density) for density in densities.values()])) if densities else 0.0
    after, multipliers = dict(state), {}
    for task, density in densities.items():
        before = state[task].log_multiplier if task in state else 0.0
        moved = _moved(before, spec.strength * (reference - log(density)), spec.multiplier_decay)
        after[task] = TaskMemory(density, moved)
        multipliers[task] = _clipped(exp(moved), spec.task_bounds)
    return after, multipliers


def _balance_prompts(
    advantages_B: np.ndarray, rows: Mapping[Any, list[int]], task_of: Mapping[Any, str], heard: set[Any], spec: HarpoSpec
) -> dict[Any, float]:
    """s_q = clip(geometric mean of m over the task's prompts / m_q), where m_q is the prompt's mean |A|; 1 for a task's only prompt."""
    log_sizes: defaultdict[str, dict[Any, float]] = defaultdict(dict)
    for prompt in rows:
        if prompt in heard:
            log_sizes[task_of[prompt]][prompt] = log(max(float(np.abs(advantages_B[rows[prompt]]).mean()), spec.epsilon))
    multipliers = dict.fromkeys(rows, 1.0)
    for own in log_sizes.values():
        if len(own) > 1:
            middle = float(np.mean(list(own.values())))
            multipliers |= {prompt: _clipped(exp(middle - size), spec.prompt_bounds) for prompt, size in own.items()}
    return multipliers


def _moved(before: float, new: float, decay: float) -> float:
    return decay * before + (1 - decay) * new


def _clipped(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


@dataclass
class HarpoRun:
    """HARPO's memory over a run: what a trainer holds, saves with its checkpoints and loads again.

    Attributes:
        last: the last batch; None before the first.
    """

    state: State = field(default_factory=dict)
    last: Balanced | None = None
    _tasks: Mapping[Any, str] = field(default_factory=dict)

    @contextmanager
    def batch(self, tasks: Mapping[Any, str]) -> Iterator[None]:
        """While this is entered, verl's estimator `harpo` uses and updates this memory.

        Args:
            tasks: uid of each prompt -> its task. verl gives an estimator the uids, but not the tasks.
        """
        self._tasks = tasks
        token = _RUN.set(self)
        try:
            yield
        finally:
            _RUN.reset(token)

    def metrics(self) -> dict[str, float]:
        """Of each task of the last batch: its multiplier and its density rho."""
        multipliers = self.last.task_multipliers if self.last else {}
        return {f"harpo/multiplier/{task}": value for task, value in multipliers.items()} | {
            f"harpo/density/{task}": self.state[task].density for task in multipliers
        }

    def save(self, folder: Path) -> None:
        """Writes the memory into a checkpoint's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{STATE_FILE}.part"
        part.write_text(json.dumps({task: asdict(memory) for task, memory in self.state.items()}, indent=2), encoding="utf-8")
        part.replace(folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Takes the memory from a checkpoint's folder.

        Raises:
            CheckpointError: the file is not there, or is none of ours.
        """
        where = folder / STATE_FILE
        try:
            raw = json.loads(where.read_text(encoding="utf-8"))
            self.state = {task: TaskMemory(float(memory["density"]), float(memory["log_multiplier"])) for task, memory in raw.items()}
        except FileNotFoundError:
            raise CheckpointError(
                str(where), "HARPO's memory is not in the checkpoint", "it was made by another algorithm: start anew"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise CheckpointError(str(where), f"cannot be read: {cause}", "remove this checkpoint; the one before is used") from None


_RUN: ContextVar[HarpoRun | None] = ContextVar("harpo", default=None)


def estimate(token_level_rewards: Any, response_mask: Any, index: Any, config: Any = None, **_: Any) -> tuple[Any, Any]:
    """verl's entry. Rows without a token of response are its padding: they get 0 and are not heard.

    Args:
        token_level_rewards: float tensor (B, length of response).
        response_mask: the same shape, 1 on the response's tokens.
        index: uid of each row's prompt.
        config: `algorithm` of verl's configuration, with our section `harpo`.

    Returns:
        Advantages and returns, which are the same: (B, length), constant over a response's tokens.

    Raises:
        TrainingError: no run has been entered, or a prompt's task is unknown.
    """
    from omegaconf import OmegaConf

    run = _RUN.get()
    if run is None:
        raise TrainingError(
            "grpo", "HARPO was called by a trainer that does not tell it the tasks", "leave trainer.v1.trainer_mode as it is"
        )
    section = (config or {}).get("harpo") or {}
    spec = HarpoSpec.model_validate(OmegaConf.to_container(section) if OmegaConf.is_config(section) else section)
    kept = [place for place, tokens in enumerate(response_mask.sum(-1).tolist()) if tokens]
    prompts = [index[place] for place in kept]
    if unknown := [prompt for prompt in prompts if prompt not in run._tasks]:
        raise TrainingError("grpo", f"HARPO knows no task of prompt {unknown[0]}")
    scores = token_level_rewards.sum(-1).double().cpu().numpy()
    run.last = harpo(scores[kept], prompts, [run._tasks[prompt] for prompt in prompts], spec, run.state)
    run.state = run.last.state
    advantages_B = token_level_rewards.new_zeros(len(scores))
    advantages_B[kept] = token_level_rewards.new_tensor(run.last.advantages_B)
    advantages_BL = advantages_B.unsqueeze(-1) * response_mask
    return advantages_BL, advantages_BL


class Estimator(Protocol):
    """An estimator of advantages that is not verl's own, over a run."""

    def batch(self, tasks: Mapping[Any, str]) -> AbstractContextManager[None]:
        """While this is entered, verl's call for advantages reaches this estimator.

        Args:
            tasks: uid of each prompt -> its task.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What the log shows of the last batch."""
        ...

    def save(self, folder: Path) -> None:
        """Writes its memory into a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Takes its memory from a checkpoint's folder."""
        ...


OWN: dict[str, tuple[Callable[[], Estimator], Callable[..., Any]]] = {"harpo": (HarpoRun, estimate)}
"""`grpo.algorithm` -> what keeps its memory, and the function that verl calls. Of its settings there is a section of the same
name in `GrpoSpec`. Algorithms that are not listed are verl's own (verl 0.9.1: core_algos.py)."""


def start_estimator(algorithm: str) -> Estimator | None:
    """Makes an estimator of ours known to verl; None for one that verl has."""
    if algorithm not in OWN:
        return None
    from verl.trainer.ppo.core_algos import register_adv_est

    make, function = OWN[algorithm]
    register_adv_est(algorithm)(function)
    return make()

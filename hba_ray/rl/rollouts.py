"""One response to one row: its clips are decoded, vLLM answers, and the answer is scored.

Each response has a seed of its own, so that a run which is repeated samples the same responses, whatever is sampled beside them.
`ClipLoop` runs in verl's agent-loop workers (verl 0.9.1). It computes rewards too, since verl's own
reward workers would put every prompt through the processor once more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from ray.exceptions import RayError
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.reward import get_custom_reward_fn

from hba_ray.errors import DataError, HbaError, TrainingError
from hba_ray.rl import CUT
from hba_ray.rl.dataset import Prompt, RowSettings, make_prompt
from hba_ray.rl.records import note_failure

END_MARK = "<|im_end|>"
"""Ends a turn of Qwen2.5-Omni."""
KEPT_ROWS = 64
"""Prompts that a worker remembers with their decoded clips; the rollouts of a row come soon after each other."""


class _Prompts:
    """The prompts of the rows that were asked for last; where several rollouts ask for a row at once, it is decoded once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[tuple[str, int], tuple[threading.Lock, list[Prompt]]] = OrderedDict()

    def get(self, file: str, line: int, settings: RowSettings) -> Prompt:
        with self.lock:
            own, made = self.kept.setdefault((file, line), (threading.Lock(), []))
            self.kept.move_to_end((file, line))
            while len(self.kept) > KEPT_ROWS:
                self.kept.popitem(last=False)
        with own:
            if not made:
                made.append(make_prompt(file, line, settings))
            return made[0]


_PROMPTS = _Prompts()


class ClipLoop(SingleTurnAgentLoop):
    """verl's single-turn agent loop, for rows of an atlas. verl makes one instance for each response."""

    prompt_length: int  # verl's single turn sets both, behind a decorator that hides the class's type
    response_length: int

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings = RowSettings.of(self.data_config)
        self.prompt: Prompt | None = None

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> AgentLoopOutput:
        """Asks the model about a row and scores what it answers. Errors are noted in a file for the driver, too.

        Args:
            row: the columns of `AtlasDataset`, and what verl adds: `global_steps`, the step, and `session_id`, which of the row's
                rollouts this is.

        Raises:
            DataError: the row cannot become a prompt, or its prompt is too long.
            TrainingError: vLLM did not answer.
        """
        file, line = str(row["split_file"]), int(row["index"])
        try:
            prompt: Prompt = await self.loop.run_in_executor(None, _PROMPTS.get, file, line, self.settings)
            self.prompt = prompt
            turn = cast(Any, super().run)  # verl's decorator hides its parameters from type checkers
            seed = sampling_seed(self.settings.seed, int(row["global_steps"]), line, int(row["session_id"]))
            output = await turn({**sampling_params, "seed": seed}, priority, **{**row, "raw_prompt": prompt.messages})
            return await self.loop.run_in_executor(None, self._score, output, row)
        except RayError as cause:
            reason = str(cause).strip().splitlines()[-1]
            error = TrainingError("grpo", f"vLLM ended in the middle of the run: {reason}", "its log is in the run's logs folder")
            note_failure(Path(self.settings.failures), error)
            raise error from cause
        except HbaError as error:
            note_failure(Path(self.settings.failures), error, split=Path(file).name, dataset=str(row["data_source"]))
            raise

    async def process_multi_modal_info(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.prompt is not None
        return dict(self.prompt.media)

    def _get_mm_processor_kwargs(self, audio_data: Any = None) -> dict[str, Any]:
        """verl's settings of a request, with those of this row's clips."""
        assert self.prompt is not None
        return super()._get_mm_processor_kwargs(audio_data) | self.prompt.settings

    async def ct_build_initial_tokens(self, messages: Any, tools: Any = None, **media: Any) -> list[int]:
        """The ids of the prompt. verl's own method would cut a text that is too long; here it is an error."""
        assert self.prompt is not None
        tokens = await self.loop.run_in_executor(
            None, lambda: self.continuous_token_builder.build_initial_tokens(messages, tools=tools, **media)
        )
        if len(tokens) > self.prompt_length:
            raise DataError(
                f"row {self.prompt.sample_id}",
                f"its prompt has {len(tokens)} tokens, more than grpo.prompt_tokens {self.prompt_length}",
                "raise grpo.prompt_tokens, or lower atlas.media.video_frames, video_pixels or audio_seconds",
                reason="prompt too long",
            )
        return tokens

    def _score(self, output: AgentLoopOutput, row: dict[str, Any]) -> AgentLoopOutput:
        assert self.prompt is not None
        text = cast(Any, self.tokenizer).decode(output.response_ids, skip_special_tokens=True)
        result = reward_function(self.config)(
            data_source=row["data_source"],
            solution_str=text,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=dict(row["extra_info"]),
        )
        parts = {name: float(value) for name, value in result.items() if isinstance(value, (int, float, np.number))}
        parts[CUT] = float(is_cut(output.response_ids, self.response_length, self.tokenizer))
        output.reward_score = parts["score"]
        output.extra_fields |= {"reward_extra_info": parts, "sample_id": self.prompt.sample_id}
        return output


def sampling_seed(seed: int, step: int, line: int, rollout: int) -> int:
    """The seed with which vLLM samples a response: 32 bits, which depend on these numbers and on nothing else.

    Args:
        seed: of the experiment.
        line: of the row in the atlas's index.
        rollout: which response to the row it is, from 0.
    """
    return int(np.random.SeedSequence((seed, step, line, rollout)).generate_state(1)[0])


def is_cut(response: Sequence[int], longest: int, tokenizer: Any) -> bool:
    """Whether a response ends at the limit of tokens and not by itself. verl's own `clip_ratio` compares with the longest response
    of the batch.

    Args:
        response: token ids, an end mark included.
        longest: `grpo.response_tokens`.
    """
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_MARK)}
    return len(response) >= longest and response[-1] not in ends


_REWARDS: dict[int, Any] = {}


def reward_function(config: Any) -> Any:
    """The reward function that verl's configuration names, loaded once in a process."""
    if id(config) not in _REWARDS:
        _REWARDS.clear()
        _REWARDS[id(config)] = get_custom_reward_fn(config)
    return _REWARDS[id(config)]

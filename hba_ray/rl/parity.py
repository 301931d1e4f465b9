"""Compares transformers and vLLM on the same rows: prompts must be equal, and probabilities equal to rounding.

vLLM samples the responses of reinforcement learning, and transformers computes the gradient. Where the two
read a prompt differently, for example put a clip at another position, nothing fails but the importance
weights are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from hba_ray.cluster.environment import vllm_environ
from hba_ray.data.media import SAMPLE_RATE
from hba_ray.environ import variables
from hba_ray.errors import EnvironmentMissing
from hba_ray.rl.dataset import Prompt, RowSettings, make_prompt
from hba_ray.specs.sections.atlas import MediaSpec

TOLERANCE = 1e-3
"""Largest allowed difference of a token's log-probability in fp32 on a CPU, where the two libraries add up in different orders."""
TOLERANCE_BF16 = 0.15
"""Largest allowed difference on a GPU, where both compute in bf16."""


@dataclass(frozen=True)
class RowParity:
    """How far transformers and vLLM agree on a row.

    Attributes:
        same_prompt: whether the expanded prompt ids are equal.
        largest: largest absolute difference of a sampled token's log-probability.
        tokens: sampled tokens that were compared.
        same_greedy: whether transformers, too, finds each of the tokens that vLLM chose greedily the likeliest.
        text: the response.
    """

    sample_id: str
    modalities: tuple[str, ...]
    prompt_tokens: int
    same_prompt: bool
    largest: float
    tokens: int
    same_greedy: bool
    text: str

    @property
    def holds(self) -> bool:
        return self.same_prompt and self.same_greedy and self.largest <= (TOLERANCE_BF16 if torch.cuda.is_available() else TOLERANCE)


def compare(
    model: str, file: str, lines: Sequence[int], media: MediaSpec, modalities: tuple[str, ...], *, new_tokens: int = 8
) -> list[RowParity]:
    """Has vLLM answer greedily, computes the log-probabilities of its tokens with transformers, and compares.

    Args:
        model: folder in full layout.
        file: `FOLDER/SPLIT` of an atlas index; `lines` are lines of it.
        new_tokens: tokens of a response at most.

    Raises:
        EnvironmentMissing: vLLM is not installed.
        DataError: a row cannot be read.
    """
    from hba_ray.rl import patches

    patches.apply(cpu=not torch.cuda.is_available())
    settings = RowSettings(media.model_dump(mode="json"), modalities, "{problem} <think></think> \\boxed", 0, False, "", False, 0)
    prompts = [make_prompt(file, line, settings) for line in lines]
    actor, processor = load_actor(model)
    inputs = [model_inputs(processor, prompt) for prompt in prompts]
    with _engine(model, new_tokens + max(int(row["input_ids"].shape[1]) for row in inputs)) as engine:
        outputs = [_generate(engine, processor, row, prompt, new_tokens) for row, prompt in zip(inputs, prompts, strict=True)]
    found = []
    for prompt, row, output in zip(prompts, inputs, outputs, strict=True):
        ids, own = list(output.outputs[0].token_ids), row["input_ids"][0].tolist()
        theirs = [step[token].logprob for token, step in zip(ids, output.outputs[0].logprobs, strict=True)]
        scores_TV = log_probabilities(actor, processor, row, ids)
        ours = scores_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        found.append(
            RowParity(
                prompt.sample_id,
                tuple(prompt.media),
                len(own),
                list(output.prompt_token_ids) == own,
                float((torch.tensor(theirs) - ours).abs().max()),
                len(ids),
                scores_TV.argmax(-1).tolist() == ids,
                processor.tokenizer.decode(ids, skip_special_tokens=True),
            )
        )
    return found


def log_probabilities(actor: Any, processor: Any, row: Mapping[str, torch.Tensor], response: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of all V tokens at each of the T places of a response, as verl's actor computes them: fp32 [T, V]."""
    tokens = torch.tensor([list(response)])
    whole = dict(row)
    whole["input_ids"] = torch.cat([row["input_ids"], tokens], dim=1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with torch.no_grad():
        logits = actor(**whole, position_ids=positions(processor, whole), use_cache=False).logits
    return logits[0, -len(response) - 1 : -1].float().log_softmax(-1)


def load_actor(model: str) -> tuple[Any, Any]:
    """The actor and the processor of a model folder in full layout, as verl loads them."""
    from transformers import AutoConfig, Qwen2_5OmniConfig, Qwen2_5OmniProcessor

    from hba_ray.rl.omni import OmniActor, prepare_processor, register_actor

    register_actor()
    config = cast(Qwen2_5OmniConfig, AutoConfig.from_pretrained(model))
    actor = OmniActor.from_pretrained(model, config=config, attn_implementation="eager").eval()
    return actor, prepare_processor(Qwen2_5OmniProcessor.from_pretrained(model), config)


def model_inputs(processor: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
    """The thinker's inputs for one prompt, made by the call that verl makes: input_ids and attention_mask [1, S], and clips."""
    text = processor.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
    call: dict[str, Any] = {"text": [text], "return_tensors": "pt", "images": prompt.media.get("images")}
    if "videos" in prompt.media:
        frames, metadata = zip(*prompt.media["videos"], strict=True)
        call |= {"videos": list(frames), "video_metadata": list(metadata)}
    if "audios" in prompt.media:
        call |= {"audio": prompt.media["audios"], "sampling_rate": SAMPLE_RATE}
    return dict(processor(**call))


def positions(processor: Any, row: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Positions of one prompt as verl makes them: [4, 1, S], plain ones first, then time, height and width."""
    made, _ = processor.get_rope_index(
        input_ids=row["input_ids"],
        attention_mask=row["attention_mask"],
        image_grid_thw=row.get("image_grid_thw"),
        video_grid_thw=row.get("video_grid_thw"),
        **processor.get_rope_index_kwargs(row),
    )
    return torch.cat([torch.arange(row["input_ids"].shape[1]).view(1, 1, -1), made])


@contextmanager
def _engine(model: str, length: int) -> Iterator[Any]:
    """vLLM in this process, set up as verl sets it up.

    Args:
        length: tokens of prompt and response together at most.
    """
    gpu = torch.cuda.is_available()
    with variables({**vllm_environ(gpu=gpu), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}):
        try:
            from vllm import LLM
        except ImportError as cause:
            way_out = "install the extra rl-cpu, or rl-gpu on a machine with GPUs"
            raise EnvironmentMissing("vllm", f"cannot be imported: {cause}", way_out) from cause
        engine = LLM(
            model,
            dtype="bfloat16" if gpu else "float32",
            max_model_len=length + 8,
            max_num_seqs=4,
            enforce_eager=True,
            gpu_memory_utilization=0.3,
            skip_mm_profiling=True,
            limit_mm_per_prompt={"image": 8, "video": 8, "audio": 8},
            logprobs_mode="processed_logprobs",
        )
        try:
            yield engine
        finally:
            engine.llm_engine.engine_core.shutdown()


def _generate(engine: Any, processor: Any, row: dict[str, Any], prompt: Any, new_tokens: int) -> Any:
    from vllm import SamplingParams

    from hba_ray.rl.omni import drop_repeats, unsampled_ids

    ids = drop_repeats(row["input_ids"][0].tolist(), (processor.image_token_id, processor.video_token_id, processor.audio_token_id))
    names = {"images": "image", "videos": "video", "audios": "audio"}
    request = {
        "prompt_token_ids": ids,
        "multi_modal_data": {names[name]: clips for name, clips in prompt.media.items()},
        "mm_processor_kwargs": prompt.settings,
    }
    never = dict.fromkeys(unsampled_ids(processor.tokenizer), -100.0)
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, logprobs=0, logit_bias=never)
    return engine.generate([request], sampling, use_tqdm=False)[0]

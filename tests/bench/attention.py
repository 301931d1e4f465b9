"""Towers of the released depth at width 32, attending by batches of windows, against a call for each window.

One row: four frames of 280 x 504 pixels and ten seconds of sound. Times are CPU seconds of this process on one thread. What a
GPU waits for is the time that this process takes to ask it for work, for which the number of operations stands here: on a CPU
their time is mostly what they compute.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from hba_ray.models.attention import join_windows
from hba_ray.models.tiny import build_tiny
from hba_ray.specs import TinySpec
from tests.helpers.attention import Calls

GRID = torch.tensor([[2, 20, 36]])
MEL_FRAMES = torch.tensor([1000])
ROUNDS, LAYERS = 5, 20


def thinkers() -> tuple[Any, Any]:
    """The same thinker with joined windows and as transformers runs it."""
    with tempfile.TemporaryDirectory() as folder:
        build_tiny(TinySpec(), Path(folder) / "model", ["how does the person sound"])
        config: Any = Qwen2_5OmniThinkerConfig.from_pretrained(Path(folder) / "model")
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 32, [7, 15, 23, 31]
    config.audio_config.encoder_layers = config.audio_config.num_hidden_layers = 32
    plain = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    joined = Qwen2_5OmniThinkerForConditionalGeneration(copy.deepcopy(config)).eval()
    joined.load_state_dict(plain.state_dict())
    join_windows(joined)
    return joined, plain


@torch.no_grad()
def measure() -> Iterator[dict[str, float | str]]:
    torch.set_num_threads(1)
    joined, plain = thinkers()
    alone = [_attention_alone(model) for model in (joined, plain)]
    asked = [_operations(run) / LAYERS for run in alone]
    yield {"attention of a layer: times fewer ATen operations (goal >= 5)": asked[1] / asked[0]}
    yield {"attention of a layer: times as fast": _ratio(*alone)}
    frames, sound = torch.randn(int(GRID.prod()), 1176), torch.randn(128, int(MEL_FRAMES.sum()))
    passes: dict[str, Callable[[Any], Any]] = {
        "four frames": lambda model: model.visual(frames, grid_thw=GRID),
        "ten seconds of sound": lambda model: model.audio_tower(sound, feature_lens=MEL_FRAMES),
    }
    for name, run in passes.items():
        counts = []
        for model in (joined, plain):
            with Calls() as calls:
                run(model)
            counts.append(calls.count)
        yield {f"{name}: calls of attention, a window each and joined (goal <= 64)": f"{counts[1]} -> {counts[0]}"}
        asked = [_operations(partial(run, model)) for model in (joined, plain)]
        yield {f"{name}: ATen operations of the whole pass, a window each and joined": f"{asked[1]} -> {asked[0]}"}
        yield {f"{name}: times as fast, the whole pass": _ratio(partial(run, joined), partial(run, plain))}


def _attention_alone(model: Any) -> Callable[[], Any]:
    """What a layer does for the windows of the four frames besides its linear layers, with so few patches in each (a quarter)
    that hardly anything is computed."""
    layer = copy.deepcopy(model.audio_tower.layers[0].self_attn)
    layer.q_proj = layer.k_proj = layer.v_proj = layer.out_proj = nn.Identity()
    grid = GRID // torch.tensor([1, 2, 2])
    _, bounds = get_vision_window_index(grid, spatial_merge_size=2, window_size=56, patch_size=14)
    states = torch.randn(int(bounds[-1]), layer.embed_dim)
    return lambda: [layer(states, cu_seqlens=bounds) for _ in range(LAYERS)]


def _operations(run: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))


def _ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """Median over A/B pairs; both are warmed up once."""
    ours(), theirs()
    return median(_seconds(theirs) / _seconds(ours) for _ in range(ROUNDS))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started

"""Both towers with windows joined into batches, side by side with a call of attention for each window.

The Python and dispatcher's side of attention is what counts: on a GPU it is what towers wait for. It is told in ATen operations as they
are asked for, which no load of the machine changes, and in CPU time where hardly anything is computed: of the four frames every window
is kept, with a quarter of its patches. Times of whole passes at this width hold the arithmetic of a CPU too.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from hba_ray.models.attention import join_windows
from hba_ray.models.tiny import build_tiny
from hba_ray.specs import TinySpec
from tests.helpers.attention import Calls

GRID, WINDOW = torch.tensor([[2, 20, 36]]), 112
SMALL_GRID, SMALL_WINDOW = GRID // torch.tensor([1, 2, 2]), WINDOW // 2
MEL_FRAMES = torch.tensor([1000])
ROUNDS, LAYERS = 15, 20


def thinkers(window: int = WINDOW) -> tuple[Any, Any]:
    """The same thinker with joined windows and as transformers runs it.

    Args:
        window: pixels of a side of the vision tower's windows.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_tiny(TinySpec(), Path(folder) / "model", ["how does the person sound"])
        config: Any = Qwen2_5OmniThinkerConfig.from_pretrained(Path(folder) / "model")
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 32, [7, 15, 23, 31]
    config.vision_config.window_size = window
    config.audio_config.encoder_layers = config.audio_config.num_hidden_layers = 32
    plain = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    joined = Qwen2_5OmniThinkerForConditionalGeneration(copy.deepcopy(config)).eval()
    joined.load_state_dict(plain.state_dict())
    join_windows(joined)
    return joined, plain


@torch.no_grad()
def measure() -> Iterator[dict[str, float | str]]:
    torch.set_num_threads(1)
    small = thinkers(SMALL_WINDOW)
    alone = [_attention_alone(model) for model in small]
    asked = [_operations(run) for run in alone]
    yield {"attention of a layer, its linear layers aside: times fewer operations (goal >= 5)": asked[1] / asked[0]}
    yield {"attention of a layer, its linear layers aside: times less host time (goal >= 5)": _ratio(*alone)}
    few, frames, sound = (torch.randn(int(rows), size) for rows, size in ((SMALL_GRID.prod(), 1176), (GRID.prod(), 1176), (128, 1000)))
    pair = thinkers()
    passes: dict[str, tuple[Sequence[Any], Callable[[Any], Any]]] = {
        "four frames, a quarter of the patches": (small, lambda model: model.visual(few, grid_thw=SMALL_GRID)),
        "four frames": (pair, lambda model: model.visual(frames, grid_thw=GRID)),
        "ten seconds of sound": (pair, lambda model: model.audio_tower(sound, feature_lens=MEL_FRAMES)),
    }
    for name, (models, run) in passes.items():
        runs = [partial(run, model) for model in models]
        ours, theirs = map(_calls, runs)
        yield {f"{name}: calls of attention, a window each and joined (goal <= 64)": f"{theirs} -> {ours}"}
        ours, theirs = map(_operations, runs)
        yield {f"{name}: ATen operations of the whole pass, a window each and joined": f"{theirs} -> {ours}"}
        yield {f"{name}: times less CPU time, the whole pass": _ratio(*runs)}


def _attention_alone(model: Any) -> Callable[[], Any]:
    """What layers of the vision tower do for the windows of the four frames besides their linear layers."""
    layer, tower = copy.deepcopy(model.visual.blocks[0].attn), model.visual
    layer.q = layer.k = layer.v = layer.proj = nn.Identity()
    _, bounds = get_vision_window_index(SMALL_GRID, spatial_merge_size=2, window_size=SMALL_WINDOW, patch_size=14)
    states = torch.randn(int(bounds[-1]), tower.config.hidden_size)
    angles = torch.randn(len(states), tower.config.hidden_size // tower.config.num_heads // 2)

    def run() -> None:
        shared: tuple[Tensor, Tensor] = bounds.clone(), angles.clone()  # new ones in each pass
        for _ in range(LAYERS):
            layer(states, cu_seqlens=shared[0], rotary_pos_emb=shared[1])

    return run


class _Asked(TorchDispatchMode):
    """Counts the ATen operations that are asked for inside the block."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        self.count += 1
        return function(*arguments, **(named or {}))


def _operations(run: Callable[[], Any]) -> int:
    with _Asked() as asked:
        run()
    return asked.count


def _calls(run: Callable[[], Any]) -> int:
    with Calls() as calls:
        run()
    return calls.count


def _ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """Median over A/B pairs; both are warmed up once."""
    ours(), theirs()
    return median(_seconds(theirs) / _seconds(ours) for _ in range(ROUNDS))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started

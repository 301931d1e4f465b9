"""Attention of the thinker: which implementation runs it, and how its two towers attend in windows without a call for each window.

A tower reads all clips of a micro-batch as one sequence and attends only inside windows of it: 8 x 8 patches or a whole frame
in the vision tower, chunks of two seconds in the audio tower. transformers calls scaled dot-product attention (SDPA) once for
each window, 848 times for four frames of 280 x 504 pixels. Here windows of like length are padded to a batch of their own, so
that a layer makes one masked call, or few. FlashAttention needs none of this: its kernel takes windows of any lengths.

Letters: S positions of the sequence, N windows of a batch, W positions of its longest window, A heads, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.utils.import_utils import is_flash_attn_2_available

from hba_ray.specs.sections.model import Attention

BY_WINDOWS = "sdpa_by_windows"
"""Name under which transformers knows `attend`; one with `sdpa` in it is checked as SDPA is."""
_LONGEST_OVER_SHORTEST = 4
"""Largest ratio of two lengths in one batch of windows: more calls cost time, and so does more padding."""


def implementation(attention: Attention, dtype: torch.dtype) -> str:
    """What a setting comes to on this machine, by its name in transformers.

    `auto` is FlashAttention 2 where its package and a GPU are there and the weights are bf16, which it needs; else SDPA.
    """
    if attention != "auto":
        return attention
    return "flash_attention_2" if dtype == torch.bfloat16 and is_flash_attn_2_available() else "sdpa"


@dataclass(frozen=True)
class WindowBatch:
    """Windows that attend in one call.

    Attributes:
        shape: (N, W).
        places_NW: position in the sequence of each place of the batch, flattened; padding repeats the window's first position.
            None where the windows lie one behind the other without padding and are the whole sequence.
        mask_N11W: true at positions of the window, false at padding; None where there is no padding.
    """

    shape: tuple[int, int]
    places_NW: Tensor | None
    mask_N11W: Tensor | None


@dataclass(frozen=True)
class Windows:
    """How a sequence attends in windows.

    Attributes:
        batches: together they hold each position once, besides padding.
        origin_S: place of each position among the places of all batches, one batch behind the other; None where those are
            the sequence itself.
    """

    batches: tuple[WindowBatch, ...]
    origin_S: Tensor | None


def plan_windows(bounds: list[int], device: torch.device) -> Windows:
    """Puts windows of like length into batches.

    Args:
        bounds: where windows start, ascending, and the end of the last one; windows may be empty.
    """
    windows = sorted(((end - start, start) for start, end in pairwise(bounds) if end > start), reverse=True)
    if windows and windows[0][0] == windows[-1][0]:
        return Windows((WindowBatch((len(windows), windows[0][0]), None, None),), None)
    batches: list[WindowBatch] = []
    origin_S, used = torch.empty(bounds[-1], dtype=torch.long), 0
    while windows:
        longest = windows[0][0]
        lengths_N, starts_N = torch.tensor([one for one in windows if one[0] * _LONGEST_OVER_SHORTEST >= longest]).unbind(1)
        windows = windows[len(lengths_N) :]
        steps_W = torch.arange(longest)
        inside_NW = steps_W < lengths_N[:, None]
        places_NW = starts_N[:, None] + steps_W * inside_NW
        origin_S[places_NW[inside_NW]] = used + inside_NW.flatten().nonzero().squeeze(1)
        used += places_NW.numel()
        mask = None if bool(inside_NW.all()) else inside_NW[:, None, None].to(device)
        batches.append(WindowBatch((len(lengths_N), longest), places_NW.flatten().to(device), mask))
    return Windows(tuple(batches), origin_S.to(device))


def attend(
    module: nn.Module,
    query_1ASD: Tensor,
    key_1ASD: Tensor,
    value_1ASD: Tensor,
    attention_mask: Tensor | None,
    *,
    windows: Windows,
    scaling: float,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """SDPA inside windows of a sequence, under the arguments by which transformers calls attention functions.

    Returns:
        [1, S, A, D], and no attention weights.
    """
    parts = []
    for batch in windows.batches:
        q, k, v = (_in_batch(tensor[0], batch) for tensor in (query_1ASD, key_1ASD, value_1ASD))
        seen_NAWD = F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask_N11W, dropout_p=dropout, scale=scaling)
        parts.append(seen_NAWD.transpose(1, 2).flatten(0, 1))
    places = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (places if windows.origin_S is None else places.index_select(0, windows.origin_S))[None], None


def join_windows(thinker: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
    """Makes both towers of a thinker, which runs SDPA, attend by batches of windows. Values stay equal up to rounding."""
    AttentionInterface.register(BY_WINDOWS, attend)
    towers = cast(Any, thinker)
    for tower, layers in (
        (towers.audio_tower, [layer.self_attn for layer in towers.audio_tower.layers]),
        (towers.visual, [block.attn for block in towers.visual.blocks]),
    ):
        tower.set_attn_implementation(BY_WINDOWS)
        for layer in layers:
            layer.register_forward_pre_hook(_give_windows, with_kwargs=True)


_PLANS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Windows by the tensor of their bounds, which all layers of a pass share: the GPU is waited for once, not in each layer."""


def _give_windows(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tells a layer that its sequence is one window, so that it calls attention once, and tells `attend` which windows it has."""
    bounds: Tensor = named["cu_seqlens"]
    windows = _PLANS.get(bounds)
    if windows is None:
        windows = _PLANS[bounds] = plan_windows(bounds.tolist(), bounds.device)
    length = (arguments[0] if arguments else named["hidden_states"]).shape[0]
    return arguments, named | {"cu_seqlens": torch.tensor([0, length]), "windows": windows}


def _in_batch(tensor_ASD: Tensor, batch: WindowBatch) -> Tensor:
    """[N, A, W, D]."""
    if batch.places_NW is not None:
        tensor_ASD = tensor_ASD.index_select(1, batch.places_NW)
    return tensor_ASD.unflatten(1, batch.shape).transpose(0, 1)

"""Attention of the thinker: which implementation runs it, and how its two towers attend in windows without a call for each window.

A tower reads all clips of a micro-batch as one sequence and attends only inside windows of it: 8 x 8 patches or a whole frame
in the vision tower, chunks of two seconds in the audio tower. transformers calls scaled dot-product attention (SDPA) once for
each window, 848 times for four frames of 280 x 504 pixels. Here windows of like length are padded to a batch of their own, so
that a layer makes one masked call, or few. FlashAttention needs none of this: its kernel takes windows of any lengths.

Letters: S positions of the sequence, N windows of a batch, W positions of its longest window, A heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from transformers.utils.import_utils import is_flash_attn_2_available

from hba_ray.specs.sections.model import Attention

T = TypeVar("T")
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
        mask_N11W: what is added to scores, 0 at positions of the window and minus infinity at padding; None where there is no padding.
            One of booleans would be turned into this in each layer.
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


def plan_windows(bounds: list[int], states: Tensor) -> Windows:
    """Puts windows of like length into batches.

    Args:
        bounds: where windows start, ascending, and the end of the last one; windows may be empty.
        states: of the sequence; the plan is for their device and type.
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
        mask = None if bool(inside_NW.all()) else torch.where(inside_NW, 0.0, -torch.inf)[:, None, None].to(states)
        batches.append(WindowBatch((len(lengths_N), longest), places_NW.flatten().to(states.device), mask))
    return Windows(tuple(batches), origin_S.to(states.device))


class WindowAttention(nn.Module):
    """Attention of a tower's layer, by batches of windows. It takes the place of the layer's own, and has its weights and their names."""

    def __init__(self, attention: nn.Module, projections: tuple[str, str, str, str]):
        """
        Args:
            attention: of transformers, of either tower.
            projections: names of its linear layers, of queries, keys, values and of what comes out.
        """
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.projections = projections
        self.heads, self.scaling = cast(int, attention.num_heads), cast(float, attention.scaling)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, rotary_pos_emb: Tensor | None = None, **unused: Any) -> Tensor:
        """Under the arguments by which a layer of transformers calls its attention.

        Args:
            hidden_states: [S, A D].
            cu_seqlens: where windows start, and the end of the last one.
            rotary_pos_emb: [S, D / 2] angles; None in the audio tower.

        Returns:
            [S, A D].
        """
        windows = _per_pass(_WINDOWS, cu_seqlens, lambda bounds: plan_windows(bounds.tolist(), hidden_states))
        *inputs, output = (self.get_submodule(name) for name in self.projections)
        qkv_3SAD = torch.stack([project(hidden_states) for project in inputs]).unflatten(2, (self.heads, -1))
        if rotary_pos_emb is not None:
            qkv_3SAD = _rotated(qkv_3SAD, rotary_pos_emb)
        parts = []
        for batch in windows.batches:
            places_3PAD = qkv_3SAD if batch.places_NW is None else qkv_3SAD.index_select(1, batch.places_NW)
            q, k, v = places_3PAD.unflatten(1, batch.shape).transpose(2, 3).unbind()
            seen_NAWD = F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask_N11W, scale=self.scaling)
            parts.append(seen_NAWD.transpose(1, 2).flatten(2).flatten(0, 1))
        places = parts[0] if len(parts) == 1 else torch.cat(parts)
        return output(places if windows.origin_S is None else places.index_select(0, windows.origin_S))


def join_windows(thinker: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
    """Makes the towers of a thinker attend by batches of windows where they run SDPA. Values stay equal up to rounding."""
    towers = cast(Any, thinker)
    if towers.audio_tower.config._attn_implementation == "sdpa":
        for layer in towers.audio_tower.layers:
            layer.self_attn = WindowAttention(layer.self_attn, ("q_proj", "k_proj", "v_proj", "out_proj"))
    if towers.visual.config._attn_implementation == "sdpa":
        for block in towers.visual.blocks:
            block.attn = WindowAttention(block.attn, ("q", "k", "v", "proj"))


_WINDOWS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Windows by the tensor of their bounds, which all layers of a pass share: the GPU is waited for once, not in each layer."""
_TURNS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""(cosines, sines) of queries, keys and values, [3, S, 1, D] each, by the tensor of the angles, which all layers of a pass share."""


def _per_pass(known: WeakTensorKeyDictionary, key: Tensor, make: Callable[[Tensor], T]) -> T:
    """What is made of a tensor, once for as long as the tensor lives."""
    found = known.get(key)
    if found is None:
        found = known[key] = make(key)
    return found


def _turns(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Values are turned by no angle. The two halves of a head turn towards each other, so the sine of one of them is negative."""
    cosines, sines = angles.cos().float(), angles.sin().float()
    ones, zeros = torch.ones_like(cosines), torch.zeros_like(sines)
    of_cosines = torch.stack([cosines, cosines, ones]).repeat(1, 1, 2)
    of_sines = torch.cat([torch.stack([half, half, zeros]) for half in (-sines, sines)], dim=2)
    return of_cosines[:, :, None], of_sines[:, :, None]


def _rotated(qkv_3SAD: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding of queries and keys, in fp32."""
    cosines, sines = _per_pass(_TURNS, angles, _turns)
    exact = qkv_3SAD.float()
    return (exact * cosines + exact.roll(exact.shape[-1] // 2, -1) * sines).to(qkv_3SAD.dtype)

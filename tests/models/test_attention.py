"""Towers attend by batches of windows as they do window by window, in few calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.utils import is_flash_attn_2_available

from hba_ray.errors import EnvironmentMissing
from hba_ray.models.attention import implementation, join_windows, plan_windows
from hba_ray.models.backbone import allow_tf32, load_backbone
from hba_ray.specs import ExperimentSpec
from tests.helpers.attention import Calls

RELEASED_BLOCKS = {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
"""The vision tower of the released model has so many blocks, of which these attend to whole frames."""


def both_ways(thinker: Qwen2_5OmniThinkerForConditionalGeneration) -> tuple[Any, Any]:
    """A thinker with joined windows, and a copy as transformers runs it; larger random weights tell values apart."""
    torch.manual_seed(0)
    config: Any = copy.deepcopy(thinker.config)
    plain = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    for weight in plain.parameters():
        torch.nn.init.normal_(weight, std=0.3 / weight[0].numel() ** 0.25 if weight.dim() > 1 else 0.5)
    joined = Qwen2_5OmniThinkerForConditionalGeneration(copy.deepcopy(config)).eval()
    joined.load_state_dict(plain.state_dict())
    join_windows(joined)
    return joined, plain


def patches(grid_thw: Tensor, *, seed: int = 0) -> Tensor:
    return torch.randn(int(grid_thw.prod(dim=1).sum()), 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models(tiny) -> tuple[Any, Any]:
    return both_ways(load_backbone(str(tiny.folder), dtype=torch.float32, attention="eager"))


@pytest.mark.parametrize(
    "grids",
    [[(1, 8, 8)], [(2, 20, 36)], [(1, 18, 26), (1, 2, 2), (3, 8, 16)], [(4, 10, 6), (1, 30, 12)]],
    ids=["one window", "uneven windows", "three clips", "two clips"],
)
def test_the_vision_tower_gives_the_same_states(models, grids):
    grid_thw = torch.tensor(grids)
    with torch.no_grad():
        joined, plain = (model.visual(patches(grid_thw), grid_thw=grid_thw, return_dict=True) for model in models)
    assert plain.last_hidden_state.std() > 0.1
    torch.testing.assert_close(joined.last_hidden_state, plain.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(joined.pooler_output, plain.pooler_output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames", [[200], [1000, 37], [90, 410, 200, 6], [4, 800]], ids=str)
def test_the_audio_tower_gives_the_same_states(models, frames: list[int]):
    lengths = torch.tensor(frames)
    sound = torch.randn(128, int(lengths.sum()), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        joined, plain = (
            model.audio_tower(sound, feature_lens=lengths, aftercnn_lens=(lengths - 1) // 2 + 1, return_dict=True) for model in models
        )
    assert plain.last_hidden_state.std() > 0.01
    torch.testing.assert_close(joined.last_hidden_state, plain.last_hidden_state, atol=1e-4, rtol=1e-4)


def test_rows_of_all_modalities_give_the_same_logits_hidden_states_and_gradients(models, tiny):
    inputs = tiny.inputs(tiny.mixed)
    found = []
    for model in models:
        model.zero_grad()
        outputs = model(**inputs, output_hidden_states=True, use_cache=False)
        outputs.logits.float().square().mean().backward()
        towers = [*model.audio_tower.layers.parameters(), *model.visual.blocks.parameters()]
        found.append((outputs.logits, outputs.hidden_states, [weight.grad for weight in towers]))
    (logits, states, gradients), (plain_logits, plain_states, plain_gradients) = found
    torch.testing.assert_close(logits, plain_logits, atol=1e-4, rtol=1e-4)
    for state, plain in zip(states, plain_states, strict=True):
        torch.testing.assert_close(state, plain, atol=1e-4, rtol=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in plain_gradients)
    assert scale > 0
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, atol=1e-4 * scale, rtol=1e-3)


def test_recomputed_activations_are_those_of_the_first_pass(models, tiny):
    inputs = tiny.inputs(tiny.mixed)
    joined = copy.deepcopy(models[0]).train()
    gradients = []
    for recompute in (False, True):
        if recompute:
            joined.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        joined.zero_grad()
        joined(**inputs, use_cache=False).logits.square().mean().backward()
        gradients.append(joined.visual.blocks[0].attn.q.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_row_of_four_frames_makes_a_call_a_layer_in_place_of_848(tiny):
    config = Qwen2_5OmniThinkerConfig.from_pretrained(tiny.folder)
    config.vision_config.update(RELEASED_BLOCKS)  # pyright: ignore[reportAttributeAccessIssue]
    grid_thw = torch.tensor([[2, 20, 36]])  # 280 x 504 pixels
    counts = []
    for model in both_ways(Qwen2_5OmniThinkerForConditionalGeneration(config)):
        with Calls() as calls, torch.no_grad():
            model.visual(patches(grid_thw), grid_thw=grid_thw)
        counts.append(calls.count)
    assert counts == [32, 848]


def test_the_loaded_backbone_joins_windows_unless_attention_is_eager(tiny):
    grid_thw = torch.tensor([[2, 20, 36]])
    with torch.no_grad():
        for attention, expected in (("auto", 2), ("sdpa", 2), ("eager", 0)):
            with Calls() as calls:
                load_backbone(str(tiny.folder), dtype=torch.float32, attention=attention).visual(patches(grid_thw), grid_thw=grid_thw)
            assert calls.count == expected


def test_each_position_is_in_one_batch_once_and_lengths_of_a_batch_are_alike():
    bounds = [0, 64, 128, 160, 160, 176, 179, 180, 244]
    windows = plan_windows(bounds, torch.zeros(244, 2))
    assert [batch.shape for batch in windows.batches] == [(5, 64), (2, 3)]
    places = []
    for batch in windows.batches:
        assert batch.places_NW is not None and batch.mask_N11W is not None
        places.append(batch.places_NW)
        seen = batch.mask_N11W == 0
        assert bool((batch.mask_N11W[~seen] == -torch.inf).all())
        inside = batch.places_NW[seen.flatten()]
        assert len(set(inside.tolist())) == len(inside) and seen.sum(dim=-1).min() * 4 >= batch.shape[1]
    assert windows.origin_S is not None
    assert torch.cat(places)[windows.origin_S].tolist() == list(range(244))


@pytest.mark.skipif(is_flash_attn_2_available(), reason="it is there")
def test_flash_attention_where_it_is_not_is_refused_with_a_way_out(tiny):
    assert implementation("auto", torch.bfloat16) == "sdpa" and implementation("flash_attention_2", torch.bfloat16) == "flash_attention_2"
    with pytest.raises(EnvironmentMissing) as caught:
        load_backbone(str(tiny.folder), dtype=torch.bfloat16, attention="flash_attention_2")
    assert caught.value.where == "model.attention" and "model.attention=auto" in caught.value.way_out


def test_fp32_products_are_rounded_only_where_that_is_asked_for():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        allow_tf32(True)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        allow_tf32(False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_a_spec_refuses_flash_attention_without_bf16_on_a_gpu_and_knows_tf32_only_there():
    def spec(gpus: float, **model: str) -> ExperimentSpec:
        facts = {"name": "a", "atlas": {"source": "toy"}, "stages": ["sft"], "compute": {"gpus_per_worker": gpus}, "model": model}
        return ExperimentSpec.model_validate(facts)

    assert spec(1, attention="flash_attention_2").uses_bf16
    for gpus, precision in ((0, "auto"), (0, "bf16"), (1, "fp32"), (1, "tf32")):
        with pytest.raises(ValueError, match=r"model\.attention is 'flash_attention_2', which computes in bf16 on GPUs only"):
            spec(gpus, attention="flash_attention_2", precision=precision)
    assert [spec(gpus, precision=name).precision for gpus, name in ((1, "tf32"), (0, "tf32"), (1, "auto"), (0, "auto"))] == [
        "tf32", "fp32", "bf16", "fp32",
    ]  # fmt: skip

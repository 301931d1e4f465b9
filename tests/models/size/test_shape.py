"""Weights are counted without torch, and are those that transformers makes on the meta device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.errors import CheckpointError
from hba_ray.models.size.published import MODELS, OMNI_3B, OMNI_7B
from hba_ray.models.size.shape import Shape, shape_in, shape_of_folder
from tests.helpers.sizes import config_of


def on_meta(config: Qwen2_5OmniThinkerConfig) -> Any:
    with torch.device("meta"):
        return Qwen2_5OmniThinkerForConditionalGeneration(config)


def counted(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("shape", "billions"), [(OMNI_7B, 8.93), (OMNI_3B, 4.70)])
def test_a_released_size_has_the_weights_that_transformers_makes(shape: Shape, billions: float):
    config = config_of(shape)
    model = on_meta(config)
    assert shape.weights == counted(model) == pytest.approx(billions * 1e9, rel=0.003)
    assert shape.text.in_linears == sum(
        weight.numel() for name, weight in model.model.layers.named_parameters() if name.endswith("proj.weight")
    )
    assert (shape.audio.weights, shape.vision.weights) == (counted(model.audio_tower), counted(model.visual))
    assert shape_in(config.to_dict(), "here") == shape == shape_in({"thinker_config": config.to_dict()}, "here")


def test_the_shape_of_a_folder_is_that_of_its_config(tiny_backbone: Path):
    shape = shape_of_folder(tiny_backbone)
    assert shape.weights == counted(on_meta(Qwen2_5OmniThinkerConfig.from_pretrained(tiny_backbone)))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model_type": "llama"}', json.dumps({"text_config": {}, "audio_config": 1, "vision_config": 2})]
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        shape_of_folder(tmp_path)


def test_the_files_of_a_model_hold_its_thinker():
    """In bf16, two bytes a weight; the whole models have a talker besides."""
    for name in ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B", "PhilipC/HumanOmniV2"):
        assert (shape := MODELS[name].shape) and MODELS[name].gigabytes * 1e9 >= 2 * shape.weights * 0.99

"""An exported model is the model that was trained, under the names that transformers and vLLM look for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen2_5OmniForConditionalGeneration

from hba_ray.data.tasks import CLASSES
from hba_ray.errors import CheckpointError
from hba_ray.models.backbone import load_backbone
from hba_ray.models.export import HEADS, export_model, export_thinker, load_heads


def test_transformers_loads_the_export_and_it_answers_as_the_trained_model(tiny, make_model, tmp_path: Path):
    model = make_model("lora")
    inputs = tiny.inputs(tiny.mixed, side="left", answers=False)
    with torch.no_grad():
        trained = model.thinker(**inputs).logits
    export_model(model, tiny.processor, tmp_path / "model")

    full = Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert not full.has_talker and full.config.model_type == "qwen2_5_omni"
    with torch.no_grad():
        torch.testing.assert_close(full.thinker(**inputs).logits, trained, atol=1e-4, rtol=1e-4)
    thinker = load_backbone(str(tmp_path / "model"), dtype=torch.float32)
    with torch.no_grad():  # equal up to rounding: ours attends by batches of windows in both towers
        torch.testing.assert_close(thinker(**inputs).logits, full.thinker(**inputs).logits, atol=1e-4, rtol=1e-4)
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Who speaks?"}]}]
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.apply_chat_template(messages, tokenize=False) == tiny.processor.apply_chat_template(messages, tokenize=False)


def test_the_heads_lie_beside_it(tiny, make_model, tmp_path: Path):
    model = make_model("all")
    export_model(model, tiny.processor, tmp_path / "model")
    tensors, classes = load_heads(tmp_path / "model")
    assert classes == CLASSES
    assert all(torch.equal(tensors[f"heads.{name}"], weight) for name, weight in model.heads.state_dict().items())
    (tmp_path / "model" / HEADS).unlink()
    with pytest.raises(CheckpointError, match=r"heads\.safetensors: is missing"):
        load_heads(tmp_path / "model")


def test_what_cannot_be_exported_leaves_nothing_behind(tiny, make_model, tmp_path: Path):
    with pytest.raises(CheckpointError, match="merge LoRA"):
        export_thinker(make_model("lora").thinker, tiny.processor, tmp_path / "model")
    broken = make_model("lora")
    with torch.no_grad():
        next(weight for name, weight in broken.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="cannot be merged"):
        export_model(broken, tiny.processor, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []

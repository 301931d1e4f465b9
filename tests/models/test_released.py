"""Checkpoints in the layout of the released code, which we derive from that code: read whole, or refused and nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hba_ray.errors import CheckpointError
from hba_ray.models.bam import Bam, DescriptorBatch, task_head
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.released import load_released, load_released_adapters, load_released_head, read_released
from hba_ray.specs.sections.bam import BamSpec
from tests.helpers.looks import MakeModel, logits, unchanged, weights

WIDTHS = {"pose": 10, "acoustic": 14}


def make_bam(seed: int = 0, **fields: object) -> Bam:
    torch.manual_seed(seed)
    return Bam(BamSpec.model_validate({"hidden": 8} | fields), WIDTHS, 64, None).eval()


def descriptors(rows: int) -> dict[str, DescriptorBatch]:
    generator, present = torch.Generator().manual_seed(0), torch.ones(rows, dtype=torch.bool)
    return {stream: DescriptorBatch(torch.randn(rows, width, generator=generator), present) for stream, width in WIDTHS.items()}


def released(model: OmniSapiens, prefix: str = "") -> dict[str, torch.Tensor]:
    """The model's state as the released training code writes it: wrapped, with an adapter beside it."""
    state = {prefix + name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."): tensor for name, tensor in weights(model).items()}
    return {**state, "video_adapter.alpha": torch.ones(1)}


@pytest.mark.parametrize("prefix", ["", "module.", "_fsdp_wrapped_module."])
def test_the_released_layout_is_read(make_model: MakeModel, tiny, prefix: str):
    model, other = make_model(scope="all", seed=1), make_model(scope="all", seed=2)
    assert "backbone.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in model.state_dict()
    report = load_released(other, released(model, prefix))
    assert torch.equal(logits(model, tiny), logits(other, tiny))
    assert report.unused == ("video_adapter.alpha",) and report.kept == ()
    assert report.loaded == len(model.state_dict())


def test_a_released_state_without_base_weights_keeps_the_models_own(make_model: MakeModel, tiny):
    model, other = make_model(scope="all", seed=1), make_model(scope="all", seed=2)
    trained = {name: tensor for name, tensor in weights(model).items() if ".lora_" in name or name.startswith("heads.")}
    report = load_released(other, trained)
    assert torch.equal(logits(model, tiny), logits(other, tiny))
    assert report.loaded == len(trained) and len(report.kept) == len(model.state_dict()) - len(trained)


def test_a_released_state_that_does_not_fit_is_refused_and_nothing_is_copied(make_model: MakeModel):
    state = released(make_model(scope="all", seed=1))
    narrow, full = make_model(scope="llm", seed=2), make_model(scope="all", seed=2)
    before = weights(full)
    with pytest.raises(CheckpointError, match=r"no place for backbone\.base_model\.model\.audio_tower"):
        load_released(narrow, state)
    with pytest.raises(CheckpointError, match=r"heads\.0\.bias is missing"):
        load_released(full, {name: tensor for name, tensor in state.items() if name != "heads.0.bias"})
    with pytest.raises(CheckpointError, match=r"heads\.1\.bias is \(9,\)"):
        load_released(full, {**state, "heads.1.bias": torch.zeros(9)})
    with pytest.raises(CheckpointError, match="no place for"):
        load_released(make_model("all"), state)
    assert unchanged(full, before)


RELEASED = {"video": "pose", "audio": "acoustic"}


def released_tensors(bam: Bam, stream: str) -> dict[str, torch.Tensor]:
    return {f"module._fsdp_wrapped_module.{name}": tensor.clone() for name, tensor in bam.adapters[stream].state_dict().items()}


@pytest.mark.parametrize("layout", ["fsdp", "safetensors", "inside"])
def test_released_adapters_load_from_each_of_their_layouts(tmp_path: Path, layout: str):
    released, bam = make_bam(seed=1, outer_activation=False), make_bam(seed=2, outer_activation=False)
    if layout == "inside":
        tensors = {
            f"backbone.{kind}_adapter.{name}": t for kind, s in RELEASED.items() for name, t in released.adapters[s].state_dict().items()
        }
        torch.save(tensors | {"backbone.lm_head.weight": torch.zeros(2)}, tmp_path / "pytorch_model_fsdp.bin")
    for number, stream in enumerate(RELEASED.values(), start=1):
        if layout == "fsdp":
            torch.save(released_tensors(released, stream), tmp_path / f"pytorch_model_fsdp_{number}.bin")
        elif layout == "safetensors":
            save_file(released_tensors(released, stream), tmp_path / f"model_{number}.safetensors")
    order = ["base"] if layout == "inside" else ["base", *RELEASED]
    (tmp_path / "meta.json").write_text(json.dumps({"model_order": order}))
    given = descriptors(3)
    assert not torch.equal(bam(given), released(given))
    load_released_adapters(bam, tmp_path)
    assert torch.equal(bam(given), released(given))


def test_a_released_adapter_that_does_not_fit_changes_nothing(tmp_path: Path):
    (tmp_path / "meta.json").write_text(json.dumps({"model_order": ["base", "video"]}))
    bam = make_bam()
    before = {name: tensor.clone() for name, tensor in bam.state_dict().items()}
    with pytest.raises(CheckpointError, match="holds neither model_1"):
        load_released_adapters(bam, tmp_path)
    torch.save(released_tensors(bam, "pose"), tmp_path / "pytorch_model_fsdp_1.bin")
    with pytest.raises(CheckpointError, match="tensors are missing"):
        load_released_adapters(bam, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bam.state_dict().items())


def test_a_merged_model_is_read_by_one_without_lora(make_model: MakeModel, tiny):
    model, other = make_model("all", seed=1), make_model("all", seed=2)
    with torch.no_grad():
        model.thinker.lm_head.weight.mul_(1.5)
    assert "backbone.model.layers.0.self_attn.q_proj.weight" in model.state_dict()
    report = load_released(other, released(model))
    assert torch.equal(logits(model, tiny), logits(other, tiny)) and report.changed == ()
    with pytest.raises(CheckpointError, match=r"lora_A\.default\.weight is missing"):
        load_released(make_model(scope="all"), released(model))


def test_what_the_model_s_own_checkpoint_would_lose_is_named(make_model: MakeModel):
    model, other = make_model(scope="all", seed=1), make_model(scope="all", seed=2)
    with torch.no_grad():
        model.thinker.lm_head.weight.mul_(1.5)
    assert load_released(other, released(model)).changed == ("backbone.base_model.model.lm_head.weight",)
    staged = make_model(scope="all", seed=2)
    staged.thinker.lm_head.weight.requires_grad_(True)
    assert load_released(staged, released(model)).changed == ()


def test_a_file_that_is_not_there_or_damaged_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor pytorch_model_fsdp\.bin"):
        read_released(tmp_path)
    (tmp_path / "pytorch_model_fsdp.bin").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"pytorch_model_fsdp\.bin: is no zip file"):
        read_released(tmp_path)


def test_the_head_that_adapters_were_trained_with_comes_along_and_another_model_is_refused(make_model: MakeModel, tmp_path: Path):
    model = make_model(scope="all", seed=1)
    torch.save(released(model, "module."), tmp_path / "pytorch_model_fsdp.bin")
    bam = make_bam()
    bam.head = task_head(torch.zeros(25, 64), torch.zeros(25), [7, 8, 9, 10, 11, 12, 13, 14])
    base = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    load_released_head(bam, tmp_path, "meld_emotion", base)
    assert torch.equal(bam.head.weight, model.heads[1].weight) and torch.equal(bam.head.bias, model.heads[1].bias)
    with pytest.raises(CheckpointError, match=r"trained on another model than the SFT model: backbone\..*lora_"):
        load_released_head(bam, tmp_path, "meld_emotion", {name: 2 * weight for name, weight in base.items()})
    load_released_head(bam, tmp_path, "meld_emotion", {"heads.0.bias": torch.ones(7)})  # heads are trained on

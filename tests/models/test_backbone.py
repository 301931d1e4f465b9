from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from hba_ray.errors import CheckpointError
from hba_ray.models.backbone import apply_training, load_backbone, load_processor
from hba_ray.specs.sections.model import ModelSpec


def full_layout(thinker_folder: Path, folder: Path) -> Path:
    """The tiny model as Qwen/Qwen2.5-Omni-7B is laid out: a config of parts, `thinker.*` in shards, a talker."""
    shutil.copytree(thinker_folder, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    thinker_config = json.loads((thinker_folder / "config.json").read_text())
    for key in ("architectures", "vision_start_token_id", "vision_end_token_id"):
        del thinker_config[key]
    config = {
        "model_type": "qwen2_5_omni",
        "architectures": ["Qwen2_5OmniModel"],
        "thinker_config": thinker_config,
        "talker_config": {"model_type": "qwen2_5_omni_talker"},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"thinker.{name}": tensor for name, tensor in load_file(thinker_folder / "model.safetensors").items()}
    tensors["talker.codec_head.weight"] = torch.zeros(3, 3)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard, metadata={"format": "pt"})
    places = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_a_full_omni_folder_gives_the_same_thinker(tiny, tmp_path: Path, thinker):
    folder = full_layout(tiny.folder, tmp_path / "full")
    other = load_backbone(str(folder), dtype=torch.float32)
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in thinker.state_dict().items())
    assert other.config.vision_start_token_id == thinker.config.vision_start_token_id
    assert other.config.vision_end_token_id == thinker.config.vision_end_token_id
    inputs = tiny.inputs(tiny.mixed)
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, thinker(**inputs).logits)


def test_the_dtype_is_the_asked_one_and_decoding_settings_are_not_inherited(tiny, tmp_path: Path):
    folder = copied(tiny.folder, tmp_path / "tiny")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "repetition_penalty": 1.5}))
    thinker = load_backbone(str(folder), dtype=torch.bfloat16)
    assert {weight.dtype for weight in thinker.parameters()} == {torch.bfloat16}
    assert not thinker.generation_config.do_sample
    assert thinker.generation_config.repetition_penalty in (None, 1.0)


def test_a_folder_in_ones_home_is_found(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copied(tiny.folder, tmp_path / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_backbone("~/tiny", dtype=torch.float32) is not None and load_processor("~/tiny") is not None
    with pytest.raises(CheckpointError, match="no such folder: ~/nowhere"):
        load_processor("~/nowhere")


@pytest.mark.parametrize("load", [load_processor, lambda place: load_backbone(place, dtype=torch.float32)], ids=["processor", "backbone"])
def test_a_missing_folder_and_an_unreachable_hub_id_are_told_apart(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no such folder"):
        load("./nowhere")
    with pytest.raises(CheckpointError, match="cannot be fetched from the hub") as caught:
        load("nobody/no-such-model")
    assert "local folder" in caught.value.way_out
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load(str(tmp_path / "empty"))


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1000])
def test_a_truncated_weight_file_is_refused(tiny, tmp_path: Path, keep: int):
    folder = copied(tiny.folder, tmp_path / "tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(str(folder), dtype=torch.float32)


def test_missing_and_misshapen_weights_are_refused_by_name(tiny, tmp_path: Path):
    folder = copied(tiny.folder, tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_backbone(str(folder), dtype=torch.float32)
    save_file({**tensors, "model.norm.weight": norm[:-1].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError):
        load_backbone(str(folder), dtype=torch.float32)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json"])
def test_a_damaged_json_file_is_named(tiny, tmp_path: Path, name: str):
    folder = copied(tiny.folder, tmp_path / "tiny")
    (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        load_processor(str(folder))
    assert name in caught.value.where


def test_another_models_config_is_refused(tiny, tmp_path: Path):
    folder = copied(tiny.folder, tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    with pytest.raises(CheckpointError, match="a model of type 'qwen2'"):
        load_backbone(str(folder), dtype=torch.float32)


def test_lora_on_the_language_model_adapts_seven_layers_per_decoder_layer_and_nothing_else(thinker, tiny):
    before = {name: weight.clone() for name, weight in thinker.named_parameters()}
    backbone = apply_training(thinker, ModelSpec.model_validate({"lora": {"rank": 4}}), gradient_checkpointing=False)
    trained = [name for name, weight in backbone.named_parameters() if weight.requires_grad]
    adapted = {name.split(".lora_A")[0] for name in trained if ".lora_A" in name}
    assert len(adapted) == 7 * tiny.spec.layers and len(trained) == 2 * len(adapted)
    assert all(name.startswith("base_model.model.model.layers.") for name in trained)
    after = {name.replace("base_model.model.", "", 1).replace(".base_layer", ""): weight for name, weight in backbone.named_parameters()}
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_lora_with_scope_all_also_hits_the_towers_as_the_released_checkpoints_do(thinker, tiny):
    backbone = apply_training(thinker, ModelSpec.model_validate({"lora": {"rank": 4, "scope": "all"}}), gradient_checkpointing=False)
    adapted = [name for name, _ in backbone.named_modules() if name.endswith("lora_A")]
    counts = {part: sum(f".{part}." in name for name in adapted) for part in ("audio_tower", "visual")}
    assert counts == {"audio_tower": 2 * 3, "visual": 2 * 3}
    assert len(adapted) == 7 * tiny.spec.layers + 12


def test_train_heads_freezes_the_backbone_and_train_all_leaves_only_the_talkers_vectors_out(thinker):
    assert not any(
        weight.requires_grad for weight in apply_training(thinker, ModelSpec(train="heads"), gradient_checkpointing=False).parameters()
    )
    everything = apply_training(thinker, ModelSpec(train="all"), gradient_checkpointing=False)
    frozen = [name for name, weight in everything.named_parameters() if not weight.requires_grad]
    assert frozen == ["audio_tower.audio_bos_eos_token.weight"]

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hba_ray.errors import CheckpointError
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.rl.checkpoints import check_workers, largest_weight, latest_step, write_start, write_trained
from hba_ray.rl.settings import bucket_megabytes
from hba_ray.rl.shards import pieces
from hba_ray.specs import ExperimentSpec
from tests.helpers.sharded import write_sharded
from tests.rl.conftest import SPEC, Toy


@pytest.fixture
def checkpoint(toy: Toy, tmp_path: Path) -> Path:
    """One of verl's on one worker, with weights that differ from the start."""
    actor = tmp_path / "checkpoints" / "global_step_7" / "actor"
    actor.mkdir(parents=True)
    thinker = load_backbone(str(toy.start), dtype=torch.float32)
    weights = {f"thinker.{name}": tensor + 0.5 for name, tensor in thinker.state_dict().items()}
    torch.save(weights, actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    (actor.parents[1] / "latest_checkpointed_iteration.txt").write_text("7")
    return actor.parent


def test_the_start_of_a_run_is_the_backbone_in_full_layout(toy: Toy):
    config = json.loads((toy.start / "config.json").read_text())
    assert (config["model_type"], config["enable_audio_output"]) == ("qwen2_5_omni", False)
    assert load_processor(str(toy.start)).chat_template == load_processor(str(toy.tiny)).chat_template
    started, backbone = (load_backbone(str(folder), dtype=torch.float32).state_dict() for folder in (toy.start, toy.tiny))
    assert all(torch.equal(started[name], backbone[name]) for name in backbone)


def test_an_sft_checkpoint_starts_a_run_with_lora_merged(toy: Toy, tmp_path: Path):
    from hba_ray.models.checkpoints import save_model
    from hba_ray.training.sft import build_model

    spec = ExperimentSpec.model_validate(SPEC | {"model": {"backbone": "tiny", "train": "lora"}})
    torch.manual_seed(0)
    model = build_model(spec, str(toy.tiny), bf16=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    save_model(model, tmp_path / "sft", {})
    write_start(spec, str(toy.tiny), tmp_path / "sft", tmp_path / "start", dtype=torch.float32)
    merged = load_backbone(str(tmp_path / "start"), dtype=torch.float32).state_dict()
    backbone = load_backbone(str(toy.tiny), dtype=torch.float32).state_dict()
    differing = {name for name in backbone if not torch.equal(merged[name], backbone[name])}
    assert differing and all(".layers." in name for name in differing)


def test_a_checkpoint_becomes_a_folder_that_loads(toy: Toy, checkpoint: Path, tmp_path: Path):
    write_trained(checkpoint, toy.start, tmp_path / "model")
    trained = load_backbone(str(tmp_path / "model"), dtype=torch.float32).state_dict()
    before = load_backbone(str(toy.start), dtype=torch.float32).state_dict()
    assert all(torch.equal(trained[name], before[name] + 0.5) for name in before)
    assert load_processor(str(tmp_path / "model")).tokenizer.get_vocab() == load_processor(str(toy.tiny)).tokenizer.get_vocab()


def test_a_model_by_several_workers_is_what_one_makes_of_the_same_weights(toy: Toy, checkpoint: Path, tmp_path: Path):
    """Also in its files beside the weights, which vLLM and transformers read."""
    thinker = load_backbone(str(toy.start), dtype=torch.float32)
    weights = {f"thinker.{name}": (tensor + 0.5, 0 if tensor.dim() else None) for name, tensor in thinker.state_dict().items()}
    write_sharded(tmp_path / "global_step_3" / "actor", weights, world=3)
    write_trained(tmp_path / "global_step_3", toy.start, tmp_path / "by three")
    write_trained(checkpoint, toy.start, tmp_path / "by one")
    one, three = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("by one", "by three"))
    assert one == three and one.keys() == {file.name for file in toy.start.iterdir()}
    assert json.loads(one["config.json"]) == json.loads((toy.start / "config.json").read_text())


def test_low_rank_updates_are_merged_into_the_start(toy: Toy, tmp_path: Path):
    before = load_backbone(str(toy.start), dtype=torch.float32).state_dict()
    generator, layer = torch.Generator().manual_seed(0), "model.layers.1.mlp.down_proj"
    out, width = before[f"{layer}.weight"].shape
    a, b = torch.randn(4, width, generator=generator), torch.randn(out, 4, generator=generator)
    name = f"base_model.model.thinker.{layer}"
    actor = tmp_path / "global_step_2" / "actor"
    write_sharded(actor, {f"{name}.lora_A.default.weight": (a, 0), f"{name}.lora_B.default.weight": (b, 0)}, world=2)
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}))
    write_trained(actor.parent, toy.start, tmp_path / "model")
    trained = load_backbone(str(tmp_path / "model"), dtype=torch.float32).state_dict()
    assert {other for other in before if not torch.equal(trained[other], before[other])} == {f"{layer}.weight"}
    assert torch.allclose(trained[f"{layer}.weight"], before[f"{layer}.weight"] + 1.5 * b @ a, atol=1e-5)


def test_updates_of_a_layer_that_is_not_there_are_refused(toy: Toy, tmp_path: Path):
    actor, name = tmp_path / "global_step_2" / "actor", "base_model.model.thinker.model.layers.99.mlp.down_proj"
    a, b = torch.zeros(4, 8), torch.zeros(8, 4)
    write_sharded(actor, {f"{name}.lora_A.default.weight": (a, 0), f"{name}.lora_B.default.weight": (b, 0)}, world=2)
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}))
    with pytest.raises(CheckpointError, match=r"updates thinker\.model\.layers\.99\.mlp\.down_proj, which"):
        write_trained(actor.parent, toy.start, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_buffer_of_weights_holds_the_largest(toy: Toy):
    sizes = {name: weight.numel() * 4 for name, weight in load_backbone(str(toy.start), dtype=torch.bfloat16).state_dict().items()}
    assert largest_weight(toy.start) == max(sizes.values())
    assert bucket_megabytes(2048 << 20) == 2048 and bucket_megabytes((2048 << 20) + 1) == 4096


def test_the_last_whole_checkpoint_is_the_one_that_verl_names(checkpoint: Path, tmp_path: Path):
    assert latest_step(checkpoint.parent) == 7
    assert latest_step(tmp_path / "nothing") == 0
    (checkpoint.parent / "latest_checkpointed_iteration.txt").write_text("9")
    with pytest.raises(CheckpointError, match="step '9'"):
        latest_step(checkpoint.parent)


def test_shards_of_another_number_of_workers_are_refused_with_both_numbers(checkpoint: Path):
    check_workers(checkpoint, 1)
    with pytest.raises(CheckpointError, match=r"was written with compute\.workers=1, and is now 2\n  run with that again"):
        check_workers(checkpoint, 2)
    (checkpoint / "actor" / "fsdp_config.json").write_text('{"world_si')
    with pytest.raises(CheckpointError, match=r"fsdp_config\.json: is missing or damaged"):
        check_workers(checkpoint, 1)


def test_a_missing_shard_is_named(checkpoint: Path):
    actor = checkpoint / "actor"
    (actor / "fsdp_config.json").write_text(json.dumps({"world_size": 2}))
    (actor / "model_world_size_1_rank_0.pt").rename(actor / "model_world_size_2_rank_0.pt")
    with pytest.raises(CheckpointError, match="rank_1"):
        list(pieces(checkpoint / "actor"))


def test_a_checkpoint_of_another_model_is_refused(toy: Toy, checkpoint: Path, tmp_path: Path):
    torch.save({"thinker.other": torch.zeros(1)}, checkpoint / "actor" / "model_world_size_1_rank_0.pt")
    with pytest.raises(CheckpointError, match="other weights"):
        write_trained(checkpoint, toy.start, tmp_path / "model")

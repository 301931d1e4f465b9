from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hba_ray.errors import CheckpointError
from hba_ray.models.checkpoints import load_model, save_model
from tests.helpers.looks import MakeModel, logits, unchanged, weights


@pytest.mark.parametrize("train", ["lora", "all", "heads"])
def test_a_saved_model_comes_back_and_only_what_was_trained_is_stored(make_model: MakeModel, tiny, tmp_path: Path, train: str):
    model, other = make_model(train, seed=1), make_model(train, seed=2)
    if train == "all":
        with torch.no_grad():
            model.thinker.lm_head.weight.mul_(1.5)
    assert not torch.equal(logits(model, tiny), logits(other, tiny))
    save_model(model, tmp_path / "step", {"step": 7})
    manifest = load_model(other, tmp_path / "step")
    assert torch.equal(logits(model, tiny), logits(other, tiny))
    stored = load_file(tmp_path / "step" / "model.safetensors")
    assert set(stored) == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert manifest["train"] == train and manifest["meta"] == {"step": 7} and manifest["hidden"] == tiny.spec.hidden
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_saving_again_replaces_and_a_failed_save_leaves_the_former(make_model: MakeModel, tmp_path: Path):
    model = make_model("heads")
    save_model(model, tmp_path / "last", {"step": 1})
    save_model(model, tmp_path / "last", {"step": 2})
    with pytest.raises(TypeError):
        save_model(model, tmp_path / "last", {"step": object()})
    assert load_model(model, tmp_path / "last")["meta"] == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_gathered_tensors_are_stored_and_sharded_ones_refused(make_model: MakeModel, tmp_path: Path):
    model = make_model("heads")
    gathered = {name: torch.full_like(weight, 0.5) for name, weight in model.heads.named_parameters(prefix="heads")}
    save_model(model, tmp_path / "gathered", {}, tensors=gathered)
    load_model(model, tmp_path / "gathered")
    assert all(bool((weight == 0.5).all()) for weight in model.heads.parameters())
    with pytest.raises(CheckpointError, match="sharded"):
        save_model(model, tmp_path / "sharded", {}, tensors={**gathered, "heads.0.bias": torch.empty(0)})
    with pytest.raises(CheckpointError, match=r"missing heads\.0\.bias"):
        save_model(model, tmp_path / "sharded", {}, tensors={name: tensor for name, tensor in gathered.items() if name != "heads.0.bias"})
    assert not (tmp_path / "sharded").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rank": 8}, "'rank': 4"),
        ({"scope": "all"}, "lora is"),
        ({"train": "heads"}, "train is 'lora'"),
        ({"train": "all"}, "train is 'lora'"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(make_model: MakeModel, tmp_path: Path, options: dict, named: str):
    save_model(make_model(), tmp_path / "lora", {})
    other = make_model(**options)
    before = weights(other)
    with pytest.raises(CheckpointError, match=named):
        load_model(other, tmp_path / "lora")
    assert unchanged(other, before)


@pytest.mark.parametrize(("key", "value"), [("hidden", 3584), ("classes", "0" * 12), ("layers", 28), ("format", 2)])
def test_a_manifest_that_differs_is_refused_by_key(make_model: MakeModel, tmp_path: Path, key: str, value: object):
    model = make_model("heads")
    save_model(model, tmp_path / "heads", {})
    path = tmp_path / "heads" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}"):
        load_model(model, tmp_path / "heads")


def test_missing_unexpected_and_misshapen_tensors_are_named_and_nothing_is_copied(make_model: MakeModel, tmp_path: Path, tiny):
    model, other = make_model("heads", seed=1), make_model("heads", seed=2)
    before = weights(other)
    save_model(model, tmp_path / "heads", {})
    path = tmp_path / "heads" / "model.safetensors"
    whole = load_file(path)
    cases = {
        r"missing heads\.3\.bias": {name: tensor for name, tensor in whole.items() if name != "heads.3.bias"},
        r"unexpected heads\.7\.bias": {**whole, "heads.7.bias": torch.zeros(2)},
        r"heads\.6\.weight is \(3, 64\)": {**whole, "heads.6.weight": torch.zeros(3, tiny.spec.hidden)},
    }
    for named, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=named):
            load_model(other, tmp_path / "heads")
    assert unchanged(other, before)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_or_missing_file_is_refused(make_model: MakeModel, tmp_path: Path, name: str, share: float):
    model = make_model("heads")
    save_model(model, tmp_path / "heads", {})
    path = tmp_path / "heads" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(model, tmp_path / "heads")
    path.unlink()
    with pytest.raises(CheckpointError):
        load_model(model, tmp_path / "heads")

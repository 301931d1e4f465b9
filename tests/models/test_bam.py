"""The equations against a numpy transcription, the place where delta joins, and adapters on their own on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hba_ray.errors import CheckpointError, DataError
from hba_ray.models.bam import Adapter, Bam, DecoderTail, DescriptorBatch, Head, RowDropout, attached, lm_head_copy, task_head
from hba_ray.models.checkpoints import load_adapters, load_class_heads, model_identity, save_adapters, save_model
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs.sections.bam import AUTHORS_BAM, BamSpec
from tests.helpers.looks import MakeModel

WIDTHS = {"pose": 10, "acoustic": 14}
EOS, PAD = 3, 0


def spec(**fields: object) -> BamSpec:
    return BamSpec.model_validate({"hidden": 8} | fields)


def make_bam(hidden_size: int = 64, head: Head | None = None, seed: int = 0, **fields: object) -> Bam:
    torch.manual_seed(seed)
    return Bam(spec(**fields), WIDTHS, hidden_size, head).eval()


def descriptors(rows: int, seed: int = 0) -> dict[str, DescriptorBatch]:
    generator = torch.Generator().manual_seed(seed)
    present = torch.ones(rows, dtype=torch.bool)
    return {stream: DescriptorBatch(torch.randn(rows, width, generator=generator), present) for stream, width in WIDTHS.items()}


def transcribed(adapter: Adapter, f: np.ndarray) -> np.ndarray:
    """Section 3.6 in float64: x_f, z_f, delta."""
    p = {name: tensor.detach().double().numpy() for name, tensor in adapter.named_parameters()}
    norm = (f - f.mean(1, keepdims=True)) / np.sqrt(f.var(1, keepdims=True) + 1e-5)
    x_f = norm * p["ln_feats.weight"] + p["ln_feats.bias"]
    first = np.maximum(x_f @ p["mlp.0.weight"].T + p["mlp.0.bias"], 0)
    z_f = first @ p["mlp.2.weight"].T + p["mlp.2.bias"]
    if len(adapter.mlp) == 4:
        z_f = np.maximum(z_f, 0)
    return p["alpha"] * z_f


@pytest.mark.parametrize("outer", [True, False])
def test_the_module_is_the_paper_s_equations(outer: bool):
    bam, given = make_bam(outer_activation=outer, alpha=1.7), descriptors(5)
    with torch.no_grad():
        for adapter in bam.adapters.values():
            for weight in adapter.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    expected = sum(transcribed(bam.adapters[stream], one.vectors_BD.double().numpy()) for stream, one in given.items())
    assert np.abs(bam(given).detach().numpy() - expected).max() < 1e-6
    h_BH = torch.randn(5, 64)
    bam.head = Head(64, 3)
    logits = (h_BH.double().numpy() + expected) @ bam.head.weight.detach().double().numpy().T + bam.head.bias.detach().double().numpy()
    assert np.abs(bam.class_logits(h_BH, bam(given)).detach().numpy() - logits).max() < 1e-5


def test_the_parameters_are_as_many_as_the_paper_s_sizes_say():
    count = {
        stream: sum(weight.numel() for weight in Adapter(stream, width, 3584, BamSpec()).parameters())
        for stream, width in {"pose": 3318, "acoustic": 6373}.items()
    }
    assert count["pose"] == 1_770_752 + 2 * 3318 + 1
    assert count["acoustic"] == 2_552_832 + 2 * 6373 + 1


def test_a_missing_stream_adds_exactly_nothing_whatever_stands_in_its_row():
    bam, given = make_bam(), descriptors(4)
    pose = given["pose"].vectors_BD.clone()
    pose[1] = torch.nan
    given["pose"] = DescriptorBatch(pose, torch.tensor([True, False, True, False]))
    alone = bam.adapters["acoustic"](*given["acoustic"])
    delta_BH = bam(given)
    assert torch.equal(delta_BH[[1, 3]], alone[[1, 3]])
    assert not torch.equal(delta_BH[[0, 2]], alone[[0, 2]])
    nothing = {stream: DescriptorBatch(one.vectors_BD, torch.zeros(4, dtype=torch.bool)) for stream, one in given.items()}
    assert torch.count_nonzero(bam(nothing)) == 0
    delta_BH.sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in bam.adapters.parameters())


def test_a_wrong_width_and_a_missing_stream_are_refused_by_name():
    bam, given = make_bam(), descriptors(2)
    short = given | {"pose": DescriptorBatch(given["pose"].vectors_BD[:, :9], given["pose"].present_B)}
    with pytest.raises(DataError, match="'pose': has 9 features, the adapter takes 10"):
        bam(short)
    with pytest.raises(DataError, match="need 'acoustic', and the descriptors hold pose"):
        bam({"pose": given["pose"]})


def test_dropout_takes_features_after_the_norm_or_whole_rows_before_it():
    given = descriptors(400)["pose"]
    seen: list[torch.Tensor] = []
    for kind, rate in (("element", 0.1), ("stream", 0.25)):
        adapter = Adapter("pose", 10, 64, spec(dropout=rate, dropout_of=kind)).train()
        adapter.mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        delta = adapter(*given)
        assert torch.equal(adapter.eval()(*given), adapter.eval()(*given))
        zeros = seen[0] == 0
        normed = adapter.ln_feats(given.vectors_BD)
        if kind == "element":
            assert 0.07 < zeros.float().mean() < 0.13
            assert torch.allclose(seen[0][~zeros], normed[~zeros] / 0.9)
        else:
            gone = zeros.all(dim=1)
            assert 0.15 < gone.float().mean() < 0.35 and torch.equal(gone, zeros.any(dim=1))
            assert torch.equal(seen[0][~gone], normed[~gone])
            assert torch.count_nonzero(delta[gone]) > 0, "a dropped row still goes through the network"
        seen.clear()


@pytest.mark.parametrize("kind", ["element", "stream"])
def test_dropout_of_a_row_depends_on_its_seed_and_not_on_the_rows_beside_it(kind):
    bam, given, seeds = make_bam(dropout=0.3, dropout_of=kind).train(), descriptors(40), torch.arange(40)
    whole = bam(given, seeds)
    for rows in torch.randperm(40).split(7):
        torch.testing.assert_close(bam({stream: one.take(rows) for stream, one in given.items()}, seeds[rows]), whole[rows])
    assert not torch.allclose(bam(given, seeds + 40), whole)
    dropped = RowDropout(0.3, salt=kind)(torch.ones(400, 10), torch.arange(400)) == 0
    assert 0.25 < dropped.float().mean() < 0.35


def test_the_z_score_is_that_of_the_rows_which_have_the_stream():
    bam = make_bam(norm="zscore")
    vectors = torch.randn(50, 10, dtype=torch.float64).float() * 1e6 + 1e8
    vectors[:, 4] = 7.0
    vectors[40:] = torch.nan
    present = torch.arange(50) < 40
    bam.fit_norms(descriptors(50) | {"pose": DescriptorBatch(vectors, present)})
    scored = bam.adapters["pose"].ln_feats(vectors[:40])
    expected = (vectors[:40].double().numpy() - vectors[:40].double().numpy().mean(0)) / np.maximum(vectors[:40].double().numpy().std(0), 1)
    assert np.abs(scored.numpy() - expected).max() < 1e-4 and torch.count_nonzero(scored[:, 4]) == 0


def test_the_acoustic_vector_alone_is_brought_to_unit_length():
    bam, given = make_bam(acoustic_scale="l2", norm="none"), descriptors(3)
    longer = {stream: DescriptorBatch(5 * one.vectors_BD, one.present_B) for stream, one in given.items()}
    acoustic, pose = bam.adapters["acoustic"], bam.adapters["pose"]
    assert torch.allclose(acoustic(*given["acoustic"]), acoustic(*longer["acoustic"]), atol=1e-6)
    assert not torch.allclose(pose(*given["pose"]), pose(*longer["pose"]), atol=1e-3)


def outputs(model: OmniSapiens, tiny) -> torch.Tensor:
    with torch.no_grad():
        made = model(**tiny.batch(tiny.mixed))
    return torch.cat([made.class_logits_B25.flatten(), made.class_loss_sum[None], made.answer_loss_sum[None]])


@pytest.mark.parametrize("at", ["penultimate", "post_norm"])
def test_taking_bam_away_gives_the_sft_model_back_bit_for_bit(make_model: MakeModel, tiny, at):
    model = make_model()
    before, lm_head = outputs(model, tiny), model.thinker.lm_head
    other = lm_head_copy(lm_head)
    with torch.no_grad():
        other.weight.mul_(1.1)
    delta = torch.randn(len(tiny.mixed), 64)
    with attached(model, delta, other, at=at):
        changed = outputs(model, tiny)
    assert changed[-1] != before[-1]
    with pytest.raises(KeyError), attached(model, delta, other, at=at):
        raise KeyError
    assert model.thinker.lm_head is lm_head
    assert torch.equal(outputs(model, tiny), before)
    with attached(model, torch.zeros_like(delta), at=at):
        assert torch.equal(outputs(model, tiny), before)


def test_delta_joins_before_the_last_layer_or_behind_the_final_norm(make_model: MakeModel, tiny):
    model = make_model()
    inputs = tiny.inputs([tiny.mixed[1]])
    text = model.thinker.model
    seen: dict[str, torch.Tensor] = {}
    text.layers[-1].register_forward_pre_hook(lambda _, arguments: seen.update(h=arguments[0]), prepend=True)
    text.rotary_emb.register_forward_pre_hook(lambda _, arguments: seen.update(positions=arguments[1]))
    text.norm.register_forward_hook(lambda _, arguments, output: seen.update(normed=output), prepend=True)
    delta = torch.randn(1, 64)
    with torch.no_grad():
        for at in ("penultimate", "post_norm"):
            with attached(model, delta, at=at):
                logits = model.thinker(**inputs, use_cache=False).logits
            if at == "penultimate":
                normed = DecoderTail(model).normed(seen["h"] + delta, inputs["attention_mask"], seen["positions"])
            else:
                normed = seen["normed"] + delta
            assert torch.allclose(logits, model.thinker.lm_head(normed), atol=1e-5)


@pytest.mark.parametrize("at", ["penultimate", "post_norm"])
def test_generation_with_the_cache_is_the_full_forward_step_by_step(make_model: MakeModel, tiny, at):
    model, steps = make_model(), 6
    samples = [tiny.mixed[1], tiny.mixed[4]]
    delta = 2 * torch.randn(2, 64, generator=torch.Generator().manual_seed(4))
    inputs = tiny.inputs(samples, side="left", answers=False)
    plain = model.generate(inputs, max_new_tokens=steps, eos_token_id=EOS, pad_token_id=PAD)
    with attached(model, delta, at=at):
        made = model.generate(inputs, max_new_tokens=steps, eos_token_id=EOS, pad_token_id=PAD)
    assert any(not torch.equal(a, b) for a, b in zip(plain, made, strict=True))
    for row, answer in enumerate(made):
        one = tiny.inputs([samples[row]], answers=False)
        for token in answer.tolist():
            with torch.no_grad(), attached(model, delta[row : row + 1], at=at):
                logits = model.thinker(**one, use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            one["input_ids"] = torch.cat([one["input_ids"], torch.tensor([[token]])], dim=1)
            one["attention_mask"] = torch.ones_like(one["input_ids"])


def test_adapters_are_saved_alone_and_come_back(tmp_path: Path):
    head = task_head(torch.randn(25, 64), torch.randn(25), [7, 8, 9])
    bam = make_bam(head=head, norm="zscore", acoustic_hidden=12)
    bam.fit_norms(descriptors(9, seed=1))
    save_adapters(bam, tmp_path / "bam", base="abc", dataset="toy_tone", meta={"epoch": 2})
    back, manifest = load_adapters(tmp_path / "bam", base="abc", hidden=64)
    given = descriptors(3)
    assert torch.equal(back(given), bam(given)) and torch.equal(back.head.weight, head.weight)
    assert (manifest["dataset"], manifest["meta"], back.spec) == ("toy_tone", {"epoch": 2}, bam.spec)
    assert sorted(path.name for path in (tmp_path / "bam").iterdir()) == ["adapters.json", "adapters.safetensors", "head.safetensors"]


def test_adapters_of_another_model_and_damaged_ones_are_refused(tmp_path: Path):
    save_adapters(make_bam(), tmp_path / "bam", base="abc", dataset="toy_tone", meta={})
    with pytest.raises(CheckpointError, match="of another SFT model: base is 'abc', the model's 'def'"):
        load_adapters(tmp_path / "bam", base="def", hidden=64)
    with pytest.raises(CheckpointError, match="hidden is 64, the model's 32"):
        load_adapters(tmp_path / "bam", base="abc", hidden=32)
    with pytest.raises(CheckpointError, match=r"holds no adapters\.json"):
        load_adapters(tmp_path, base="abc", hidden=64)
    manifest = json.loads((tmp_path / "bam" / "adapters.json").read_text())
    (tmp_path / "bam" / "adapters.json").write_text(json.dumps(manifest | {"widths": {"pose": 10}}))
    with pytest.raises(CheckpointError, match="unexpected"):
        load_adapters(tmp_path / "bam", base="abc", hidden=64)
    (tmp_path / "bam" / "adapters.json").write_text(json.dumps(manifest))
    (tmp_path / "bam" / "adapters.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_adapters(tmp_path / "bam", base="abc", hidden=64)


def test_a_model_is_known_by_its_weights_not_by_its_place_or_notes(make_model: MakeModel, tiny, tmp_path: Path):
    model = make_model()
    save_model(model, tmp_path / "one", {"step": 1})
    save_model(model, tmp_path / "same", {"step": 2})
    with torch.no_grad():
        next(weight for name, weight in model.named_parameters() if "lora_B" in name)[0, 0] += 1e-6
    save_model(model, tmp_path / "other", {"step": 1})
    one, same, other = (model_identity(str(tiny.folder), tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    assert model_identity("owner/name", tmp_path / "one") != one
    with pytest.raises(CheckpointError):
        model_identity(str(tiny.folder), tmp_path)


def test_class_heads_are_read_without_the_model(make_model: MakeModel, tmp_path: Path):
    model = make_model()
    save_model(model, tmp_path / "one", {})
    weight, bias, classes = load_class_heads(tmp_path / "one")
    assert torch.equal(weight, torch.cat([head.weight for head in model.heads]))
    assert torch.equal(bias, torch.cat([head.bias for head in model.heads])) and classes == model.classes


def test_the_released_settings_are_valid_and_differ_from_the_paper_s():
    authors, paper = BamSpec.model_validate(AUTHORS_BAM), BamSpec()
    assert all(getattr(authors, field) != getattr(paper, field) for field in AUTHORS_BAM)
    assert [paper.batch_of(name) for name in ("daicwoz", "mmsd", "mimeqa", "meld_senti")] == [4, 16, 16, 32]
    assert authors.batch_of("daicwoz") == 16
    with pytest.raises(ValueError, match="set states: live"):
        BamSpec.model_validate({"backbone_mode": "train"})
    with pytest.raises(ValueError, match="named twice"):
        BamSpec.model_validate({"streams": ["pose", "pose"]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_give_nearly_the_same_delta_in_fp32(dtype):
    torch.manual_seed(0)
    bam = Bam(BamSpec(), {"pose": 300, "acoustic": 500}, 64, None).eval()
    given = {
        stream: DescriptorBatch(torch.randn(4, width), torch.tensor([True, True, True, False])) for stream, width in bam.widths.items()
    }
    with torch.no_grad():
        exact, near = bam(given), bam.with_weights_in(dtype)(given)
    assert near.dtype == torch.float32 and torch.equal(near[3], torch.zeros(64))
    assert float((near - exact).norm() / exact.norm()) < 1e-2

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from hba_ray.data.tasks import BENCHMARK_HEADS, CLASS_TASKS, CLASSES
from hba_ray.errors import DataError, TrainingError
from hba_ray.models.checkpoints import load_model, save_model
from hba_ray.models.omni import OmniSapiens
from tests.helpers.looks import MakeModel, logits


def gradients(model: OmniSapiens, batch: dict) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    outputs = model(**batch)
    (outputs.class_loss_sum + outputs.answer_loss_sum).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def decode_settings(tiny) -> dict[str, int]:
    return {"eos_token_id": tiny.processor.tokenizer.eos_token_id, "pad_token_id": tiny.processor.tokenizer.pad_token_id}


def test_heads_have_the_released_names_and_shapes(make_model: MakeModel, tiny):
    shapes = {name: tuple(weight.shape) for name, weight in make_model("heads").state_dict().items() if name.startswith("heads.")}
    assert [shapes[f"heads.{slot}.weight"] for slot in range(7)] == [(width, tiny.spec.hidden) for width in (7, 8, 2, 2, 2, 2, 2)]
    assert len(shapes) == 14 and sum(shape[0] for name, shape in shapes.items() if name.endswith("bias")) == len(CLASSES)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_changing_only_one_clip_changes_the_logits(make_model: MakeModel, tiny, modality: str):
    model = make_model()
    clip = tiny.mixed[0]
    same_length = {"audio": tiny.mixed[1].audio[: len(clip.audio)], "video": tiny.mixed[4].video}
    other = replace(clip, **{modality: same_length[modality]})
    with torch.no_grad():
        before, after = (model(**tiny.batch([sample])).class_logits_B25 for sample in (clip, other))
    assert (before - after).abs().max() > 1e-4


def test_media_that_are_withheld_change_nothing_but_their_placeholders_stay(make_model: MakeModel, tiny):
    model = make_model(media=False)
    clip = tiny.mixed[0]
    other = replace(clip, audio=tiny.mixed[1].audio[: len(clip.audio)], video=tiny.mixed[4].video)
    with torch.no_grad():
        before, after = (model.pooled(tiny.batch([sample])["inputs"]) for sample in (clip, other))
        seen = make_model().pooled(tiny.batch([clip])["inputs"])
        text_only = model.pooled(tiny.batch([replace(clip, audio=None, video=None)])["inputs"])
    assert torch.equal(before, after)
    assert (before - seen).abs().max() > 1e-4 and (before - text_only).abs().max() > 1e-4


@pytest.mark.parametrize("scope", ["llm", "all"])
def test_each_row_of_a_mixed_batch_has_the_logits_and_losses_it_has_alone(make_model: MakeModel, tiny, scope: str):
    model = make_model(scope=scope)
    with torch.no_grad():
        together = model(**tiny.batch(tiny.mixed))
        alone = [model(**tiny.batch([sample])) for sample in tiny.mixed]
    torch.testing.assert_close(together.class_logits_B25, torch.cat([row.class_logits_B25 for row in alone]), atol=1e-5, rtol=0)
    for name in ("class_loss_sum", "answer_loss_sum", "class_rows", "answer_rows", "answer_tokens", "class_correct"):
        torch.testing.assert_close(getattr(together, name), sum(getattr(row, name) for row in alone), atol=1e-3, rtol=0, msg=name)


def test_padding_on_the_left_gives_the_same_pooled_state(make_model: MakeModel, tiny):
    model = make_model()
    with torch.no_grad():
        right, left = (model.pooled(tiny.inputs(tiny.mixed, side=side, answers=False)) for side in ("right", "left"))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_both_losses_follow_the_equations_of_appendix_b1(make_model: MakeModel, tiny):
    model = make_model()
    batch = tiny.batch(tiny.mixed)
    with torch.no_grad():
        outputs = model(**batch)
        plain = model.thinker(**batch["inputs"], output_hidden_states=True, use_cache=False)
    class_loss, answer_loss, correct = 0.0, 0.0, 0
    for row, sample in enumerate(tiny.mixed):
        length = int(batch["inputs"]["attention_mask"][row].sum())
        if sample.label:
            h_H = plain.hidden_states[-2][row, :length].double().mean(dim=0)
            slot = [task.id for task in CLASS_TASKS].index(sample.label[0])
            logits_K = torch.nn.functional.linear(h_H, *(weight.detach().double() for weight in model.heads[slot].parameters()))
            wanted = CLASS_TASKS[slot].labels.index(sample.label[1])
            probability_K = logits_K.exp() / logits_K.exp().sum()
            class_loss -= float(probability_K[wanted].log())
            correct += int(logits_K.argmax()) == wanted
            start = BENCHMARK_HEADS.index(sample.label[0], CLASS_TASKS[slot].labels[0])
            torch.testing.assert_close(outputs.class_logits_B25[row, start : start + len(logits_K)].double(), logits_K, atol=1e-5, rtol=0)
            assert int((outputs.class_logits_B25[row] > -1e30).sum()) == len(logits_K)
        else:
            answer = tiny.tokens(sample.answer)
            for step, token in enumerate(answer):
                logits_V = plain.logits[row, length - len(answer) + step - 1].double()
                answer_loss -= float(torch.log_softmax(logits_V, dim=0)[token])
    assert float(outputs.class_loss_sum) == pytest.approx(class_loss, rel=1e-5)
    assert float(outputs.answer_loss_sum) == pytest.approx(answer_loss, rel=1e-5)
    assert (int(outputs.class_rows), int(outputs.answer_rows), int(outputs.class_correct)) == (3, 2, correct)
    tokens = sum(len(tiny.tokens(sample.answer)) for sample in tiny.mixed if sample.answer)
    assert int(outputs.answer_tokens) == tokens


def test_the_answer_loss_is_the_full_cross_entropy_but_lm_head_sees_the_answers_only(make_model: MakeModel, tiny):
    model = make_model()
    batch = tiny.batch(tiny.mixed)
    seen: list[tuple[int, ...]] = []
    handle = model.thinker.lm_head.register_forward_hook(lambda _, arguments, __: seen.append(tuple(arguments[0].shape)))
    with torch.no_grad():
        outputs = model(**batch)
        handle.remove()
        mean = model.thinker(**batch["inputs"], labels=batch["answer_labels_BS"]).loss
    assert float(outputs.answer_loss_sum) == pytest.approx(float(mean * outputs.answer_tokens), rel=1e-5)
    assert seen == [(int(outputs.answer_tokens), tiny.spec.hidden)]


def test_filler_rows_contribute_nothing_to_losses_counts_and_gradients(make_model: MakeModel, tiny):
    model = make_model("all")
    with_fillers = tiny.batch([*tiny.mixed, tiny.mixed[0], tiny.mixed[1]], weight=[1.0] * len(tiny.mixed) + [0.0, 0.0])
    without = tiny.batch(tiny.mixed)
    with torch.no_grad():
        for name, value in model(**with_fillers)._asdict().items():
            if name != "class_logits_B25":
                torch.testing.assert_close(value, getattr(model(**without), name), atol=1e-3, rtol=0, msg=name)
    expected = gradients(model, without)
    for name, gradient in gradients(model, with_fillers).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("train", ["lora", "all"])
def test_every_trained_weight_has_a_gradient_whatever_the_batch_holds(make_model: MakeModel, tiny, train: str):
    model = make_model(train, scope="all")
    only_text = [sample for sample in tiny.mixed if sample.audio is None and sample.video is None]
    for batch in (tiny.batch(only_text), tiny.batch(tiny.mixed, weight=[0.0] * len(tiny.mixed))):
        found = gradients(model, batch)
        assert [name for name, gradient in found.items() if gradient is None] == []
    assert all(not gradient.any() for gradient in found.values() if gradient is not None), "fillers alone have zero gradients"
    with torch.no_grad():
        outputs = model(**batch)
    assert float(outputs.class_loss_sum) == float(outputs.answer_loss_sum) == 0.0
    assert int(outputs.class_rows + outputs.answer_rows + outputs.answer_tokens + outputs.class_correct) == 0


def test_gradient_checkpointing_changes_no_gradient(make_model: MakeModel, tiny):
    batch = tiny.batch(tiny.mixed)
    for train in ("lora", "all"):
        plain = gradients(make_model(train).train(), batch)
        for name, gradient in gradients(make_model(train, gradient_checkpointing=True).train(), batch).items():
            torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_step_moves_lora_and_heads_and_nothing_else(make_model: MakeModel, tiny):
    model = make_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    gradients(model, tiny.batch(tiny.mixed))
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1).step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    used_heads = {f"heads.{[task.id for task in CLASS_TASKS].index(sample.label[0])}" for sample in tiny.mixed if sample.label}
    assert {name.rsplit(".", 1)[0] for name in moved if name.startswith("heads.")} == used_heads
    assert all(name.startswith("heads.") or (".model.layers." in name and ".lora_" in name) for name in moved)
    assert any(".lora_A" in name for name in moved) and any(".lora_B" in name for name in moved)


def test_merging_lora_leaves_the_outputs_as_they_are(make_model: MakeModel, tiny):
    model = make_model()
    batch = tiny.batch(tiny.mixed)
    copied: Any = copy.deepcopy(model.backbone)
    merged = OmniSapiens(copied.merge_and_unload(), tiny.spec.hidden).eval()
    merged.heads.load_state_dict(model.heads.state_dict())
    with torch.no_grad():
        expected, found = model(**batch), merged(**batch)
    torch.testing.assert_close(found.class_logits_B25, expected.class_logits_B25, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.answer_loss_sum, expected.answer_loss_sum, atol=1e-3, rtol=0)


def test_a_bf16_model_takes_fp32_media(make_model: MakeModel, tiny):
    model = make_model().bfloat16()
    outputs = model(**tiny.batch(tiny.mixed))
    assert outputs.answer_loss_sum.dtype == outputs.class_logits_B25.dtype == torch.float32
    assert torch.isfinite(outputs.answer_loss_sum + outputs.class_loss_sum)


def test_generation_in_a_batch_is_generation_one_by_one_and_step_by_step(make_model: MakeModel, tiny):
    model = make_model()
    settings = {"max_new_tokens": 5, **decode_settings(tiny)}
    together = model.generate(tiny.inputs(tiny.mixed, side="left", answers=False), **settings)
    for sample, answer in zip(tiny.mixed, together, strict=True):
        inputs = tiny.inputs([sample], side="left", answers=False)
        assert model.generate(inputs, **settings)[0].tolist() == answer.tolist()
        for step in range(len(answer)):
            with torch.no_grad():
                assert model.thinker(**inputs).logits[0, -1].argmax() == answer[step]
            inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None, step : step + 1]], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])


def test_an_answer_ends_before_the_end_of_turn(make_model: MakeModel, tiny):
    model = make_model()
    inputs = tiny.inputs(tiny.mixed, side="left", answers=False)
    settings = decode_settings(tiny)
    whole = [answer.tolist() for answer in model.generate(inputs, max_new_tokens=6, **settings)]
    stop = whole[0][2]
    cut = [answer.tolist() for answer in model.generate(inputs, max_new_tokens=6, **{**settings, "eos_token_id": stop})]
    assert cut == [answer[: answer.index(stop)] if stop in answer else answer for answer in whole]


def test_generation_refuses_right_padding_and_training_mode(make_model: MakeModel, tiny):
    model = make_model()
    with pytest.raises(DataError, match="padded on the right"):
        model.generate(tiny.inputs(tiny.mixed, answers=False), max_new_tokens=2, **decode_settings(tiny))
    with pytest.raises(TrainingError, match="training mode"):
        model.train().generate(tiny.inputs(tiny.mixed, side="left", answers=False), max_new_tokens=2, **decode_settings(tiny))


@pytest.mark.parametrize("keep", [False, True])
def test_heads_on_standardised_states_are_those_that_a_checkpoint_holds(make_model: MakeModel, tiny, tmp_path, keep: bool):
    torch.manual_seed(0)
    mean_H, deviation_H = 500 * torch.randn(tiny.spec.hidden), 0.1 + torch.rand(tiny.spec.hidden)
    model, plain = make_model("heads", seed=1), make_model("heads", seed=2)
    before = logits(model, tiny)
    model.standardise(mean_H, deviation_H, keep=keep)
    after = logits(model, tiny)
    save_model(model, tmp_path / "model", {})
    load_model(plain, tmp_path / "model")
    torch.testing.assert_close(logits(plain, tiny), after, rtol=1e-3, atol=1e-2)
    assert keep == torch.allclose(before, after, rtol=1e-3, atol=1e-2)

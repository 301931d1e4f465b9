from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from hba_ray.data.clips import Clips, process
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.rl.dataset import Prompt, make_prompt
from hba_ray.rl.omni import OmniActor, drop_repeats, register_actor, unsampled_ids, verl_media
from hba_ray.rl.parity import model_inputs, positions
from tests.helpers.attention import Calls
from tests.rl.conftest import Toy

SIGNATURES = ("text", "text_audio", "text_video", "text_video_audio")


def inputs_of(toy: Toy, omni: Any, signature: str) -> dict[str, torch.Tensor]:
    _, processor = omni
    prompt = make_prompt(str(toy.atlas / "train"), toy.line(signature), toy.settings)
    return model_inputs(processor, prompt)


def scores(actor: OmniActor, row: dict[str, torch.Tensor], **given: Any) -> torch.Tensor:
    with torch.no_grad():
        return actor(**{**row, "use_cache": False, **given}).logits.log_softmax(-1)


def test_weights_have_vllms_names_and_the_backbones_values(toy: Toy, omni: Any):
    actor, _ = omni
    backbone = load_backbone(str(toy.tiny), dtype=torch.float32)
    own = dict(actor.named_parameters())
    assert own.keys() == {f"thinker.{name}" for name, _ in backbone.named_parameters()}
    assert all(torch.equal(own[f"thinker.{name}"], weight) for name, weight in backbone.named_parameters())


def test_transformers_factory_makes_the_actor(toy: Toy):
    register_actor()
    assert isinstance(AutoModelForImageTextToText.from_pretrained(toy.start), OmniActor)


@pytest.mark.parametrize(("attention", "calls"), [("sdpa", 2), ("eager", 0)])
def test_towers_of_the_actor_attend_to_all_windows_at_once_as_those_of_the_backbone_do(toy: Toy, attention: str, calls: int):
    config = AutoConfig.from_pretrained(toy.start, attn_implementation=attention)  # as verl gives it
    actor, grid_thw = OmniActor.from_pretrained(toy.start, config=config), torch.tensor([[2, 20, 36]])
    assert len(actor.thinker.visual.blocks) == 2
    with torch.no_grad(), Calls() as seen:
        actor.thinker.visual(torch.zeros(int(grid_thw.prod()), 3 * 2 * 14 * 14), grid_thw=grid_thw)
    assert seen.count == calls


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_prompt_is_what_training_makes_of_the_row(toy: Toy, omni: Any, signature: str):
    prompt = make_prompt(str(toy.atlas / "train"), toy.line(signature), toy.settings)
    processor = load_processor(str(toy.tiny))
    text = processor.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
    videos = [(frames.numpy(), facts["fps"]) for frames, facts in prompt.media.get("videos", [])]
    expected = process(processor, [text], {"audio": prompt.media.get("audios", []), "video": videos, "image": []})
    made = inputs_of(toy, omni, signature)
    assert made["input_ids"][0].tolist() == expected.pop("input_ids")[0]
    assert {name for name in made if name not in ("input_ids", "attention_mask")} == expected.keys()
    for name, value in expected.items():
        assert torch.equal(made[name], value), name


def test_images_and_several_videos_reach_the_processor_as_training_gives_them(toy: Toy, omni: Any):
    _, rollouts = omni
    noise = np.random.default_rng(0)
    videos = [(noise.integers(0, 256, (4, 3, 56, 84), dtype=np.uint8), 2.0) for _ in range(2)]
    clips: Clips = {"audio": [], "video": videos, "image": [noise.integers(0, 256, (3, 84, 56), dtype=np.uint8)]}
    message = [{"role": "user", "content": [{"type": name} for name in ("image", "video", "video")]}]
    made = model_inputs(rollouts, Prompt("a", message, verl_media(clips)))
    processor = load_processor(str(toy.tiny))
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    expected = process(processor, [text], clips)
    assert made["input_ids"].tolist() == expected.pop("input_ids")
    assert made.keys() == expected.keys() | {"input_ids", "attention_mask"}
    assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_videos_of_one_row_count_with_their_mean_rate_since_vllm_takes_only_one(omni: Any):
    _, rollouts = omni
    videos = [(np.zeros((4, 3, 56, 56), dtype=np.uint8), rate) for rate in (1.0, 3.0)]
    prompt = Prompt("a", [{"role": "user", "content": [{"type": "video"}] * 2}], verl_media({"audio": [], "video": videos, "image": []}))
    assert model_inputs(rollouts, prompt)["video_second_per_grid"].tolist() == [1.0, 1.0]
    assert prompt.settings["fps"] == 2.0


@pytest.mark.parametrize("signature", SIGNATURES)
def test_positions_are_those_of_the_thinker(toy: Toy, omni: Any, signature: str):
    actor, processor = omni
    row = inputs_of(toy, omni, signature)
    own = positions(processor, row)
    expected, _ = actor.thinker.get_rope_index(
        row["input_ids"],
        row.get("image_grid_thw"),
        row.get("video_grid_thw"),
        row["attention_mask"],
        False,
        None if "feature_attention_mask" not in row else row["feature_attention_mask"].sum(-1),
        row.get("video_second_per_grid"),
    )
    assert torch.equal(own[1:], expected)
    assert torch.equal(own[0, 0], torch.arange(row["input_ids"].shape[1]))


def test_rows_packed_behind_each_other_score_as_rows_alone(toy: Toy, omni: Any):
    actor, processor = omni
    rows = [inputs_of(toy, omni, signature) for signature in ("text_video_audio", "text", "text_audio")]
    alone = [scores(actor, row, position_ids=positions(processor, row))[0] for row in rows]
    packed = {
        "input_ids": torch.cat([row["input_ids"] for row in rows], dim=1),
        "attention_mask": None,
        "position_ids": torch.cat([positions(processor, row) for row in rows], dim=2),
    }
    for name in ("input_features", "feature_attention_mask", "pixel_values_videos", "video_grid_thw", "video_second_per_grid"):
        found = [row[name] for row in rows if name in row]
        longest = max(value.shape[-1] for value in found)
        pad = name in ("input_features", "feature_attention_mask")
        packed[name] = torch.cat([torch.nn.functional.pad(value, (0, longest - value.shape[-1])) if pad else value for value in found])
    together = scores(actor, {}, **packed)[0]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_tokens_that_stand_for_clips_have_no_probability(toy: Toy, omni: Any):
    actor, processor = omni
    row = inputs_of(toy, omni, "text_audio")
    never = scores(actor, row, position_ids=positions(processor, row))[..., unsampled_ids(processor.tokenizer)]
    assert never.max() < -1e3 and torch.isfinite(never).all()
    assert len(set(unsampled_ids(processor.tokenizer))) == 8


@pytest.mark.parametrize("signature", ("text", "text_audio", "text_video"))
def test_a_worker_without_clips_runs_the_idle_towers_and_changes_nothing(toy: Toy, omni: Any, signature: str):
    actor, processor = omni
    row = inputs_of(toy, omni, signature)
    logits = actor(**row, position_ids=positions(processor, row), use_cache=False).logits
    extra = actor._idle_towers(row, logits)
    extra.backward()
    assert extra == 0
    ran = {name.split(".")[1] for name, weight in actor.named_parameters() if weight.grad is not None}
    actor.zero_grad(set_to_none=True)
    assert ran == {"text": {"audio_tower", "visual"}, "text_audio": {"visual"}, "text_video": {"audio_tower"}}[signature]


def test_expanded_placeholders_shrink_to_one_for_each_clip(toy: Toy, omni: Any):
    _, processor = omni
    ids = inputs_of(toy, omni, "text_video_audio")["input_ids"][0].tolist()
    media = (processor.audio_token_id, processor.video_token_id)
    short = drop_repeats(ids, media)
    assert [short.count(token) for token in media] == [1, 1]
    assert [token for token in ids if token not in media] == [token for token in short if token not in media]

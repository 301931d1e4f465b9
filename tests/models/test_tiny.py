from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoConfig, AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.models.backbone import load_processor
from hba_ray.models.tiny import SPECIAL_TOKENS, build_tiny
from hba_ray.specs.sections.model import TinySpec


def test_the_same_seed_and_texts_give_the_same_bytes(tiny, tmp_path: Path):
    build_tiny(tiny.spec, tmp_path / "again", iter(tiny.texts), audio_seconds=1.5)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "processor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny.folder / name).read_bytes(), name


def test_another_seed_changes_the_weights_and_not_the_tokenizer(tiny, tmp_path: Path):
    build_tiny(tiny.spec.model_copy(update={"seed": 1}), tmp_path / "other", tiny.texts, audio_seconds=1.5)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (tiny.folder / "model.safetensors").read_bytes()
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (tiny.folder / "tokenizer.json").read_bytes()


def test_building_leaves_the_random_state_alone(tmp_path: Path, tiny):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build_tiny(tiny.spec, tmp_path / "tiny", tiny.texts)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_folder_loads_by_the_auto_classes_bit_for_bit(tiny, thinker):
    assert type(AutoProcessor.from_pretrained(tiny.folder)).__name__ == "Qwen2_5OmniProcessor"
    assert AutoConfig.from_pretrained(tiny.folder).model_type == "qwen2_5_omni_thinker"
    again = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tiny.folder).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in thinker.state_dict().items())


def test_lm_head_has_one_row_per_token_of_the_vocabulary_asked_for(tmp_path: Path):
    spec = TinySpec.model_validate({"hidden": 64, "layers": 2, "heads": 2, "vocabulary": 777})
    letters = np.random.default_rng(0).choice(list("aeioulmnrst"), (600, 7))
    build_tiny(spec, tmp_path / "tiny", ("".join(word) for word in letters))
    processor = load_processor(str(tmp_path / "tiny"))
    weights = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path / "tiny")
    assert len(processor.tokenizer) == weights.lm_head.weight.shape[0] == weights.config.get_text_config().vocab_size == 777


def test_special_tokens_end_the_vocabulary_in_the_released_order(tiny):
    tokenizer = tiny.processor.tokenizer
    first = len(tokenizer) - len(SPECIAL_TOKENS)
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(first, len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.decode(tokenizer("sad" + "".join(SPECIAL_TOKENS))["input_ids"], skip_special_tokens=True) == "sad"


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40).filter(lambda text: "<|" not in text))
def test_any_text_can_be_written(tiny, text: str):
    ids = tiny.processor.tokenizer(text)["input_ids"]
    assert tiny.processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_default_system_turn_and_the_words_of_the_frame_are_short(tiny):
    prompt = tiny.processor.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    assert len(tiny.processor.tokenizer(prompt)["input_ids"]) < 24


def test_the_chat_template_places_media_marks_and_keeps_a_given_system_turn(tiny):
    content = [{"type": "image"}, {"type": "video"}, {"type": "audio"}, {"type": "text", "text": "Well?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    image, video = (f"<|vision_bos|><|{kind}|><|vision_eos|>" for kind in ("IMAGE", "VIDEO"))
    assert tiny.processor.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{image}{video}<|audio_bos|><|AUDIO|><|audio_eos|>Well?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )


def test_the_chat_template_refuses_content_that_it_does_not_know(tiny):
    with pytest.raises(TemplateError, match="smell"):
        tiny.processor.apply_chat_template([{"role": "user", "content": [{"type": "smell"}]}], tokenize=False)


def test_the_audio_window_is_the_asked_one_in_whole_seconds(tiny):
    assert tiny.processor.feature_extractor.chunk_length == 2

"""With the released vocabulary of 151,665 tokens: prompts, labels, clips, chat turns, boxed answers and ends are what they should be."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2_5OmniThinkerConfig

from hba_ray.data.atlas import build_index
from hba_ray.data.feed.batches import IGNORED, BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.feed.order import Share, Window
from hba_ray.data.prompts import load_reasoning, read_class
from hba_ray.data.tasks import DATASETS
from hba_ray.data.text import clean
from hba_ray.models.backbone import load_processor
from hba_ray.models.layout import DEFAULT_SYSTEM, SPECIAL_TOKENS, omni_processor
from hba_ray.rl.omni import drop_repeats, unsampled_ids
from hba_ray.rl.rewards import Response, score_responses
from hba_ray.rl.rollouts import is_cut
from hba_ray.specs import AtlasSpec, MediaSpec
from hba_ray.specs.sections.grpo import RewardSpec
from hba_ray.specs.wording import Wording, load_system_prompt
from tests.helpers.qwen_tokenizer import LATER_TOKENS, qwen_encoding, qwen_tokenizer, ranks_file

pytestmark = pytest.mark.slow  # making it takes about ten seconds
FIRST_SPECIAL = 151_643
TEXTS = (
    "She said: 'I'm fine.'  Was she?\n\n",
    "情绪很好，不是吗？ 2024年12月",
    "e\u0301tait-ce vrai\u00a0? 🙂🙂",
    "<think>\nHe smiles, but 3 of 10 words are bitter.\n</think>\n\\boxed{sarcasm}",
    "\ttabs\r\nand ends \u0645\u0631\u062d\u0628\u0627 नमस्ते",
)
MEDIA = MediaSpec(audio_seconds=2, video_frames=4, video_pixels=56 * 56)
SETTINGS = BatchSettings(media=MEDIA, modalities=("text", "audio", "video", "image"), micro_batch=1, shuffle=False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return qwen_tokenizer(ranks_file())


@pytest.fixture(scope="module")
def processor(tokenizer, tmp_path_factory) -> Any:
    """As it is loaded from a folder of the released layout."""
    folder = tmp_path_factory.mktemp("qwen")
    omni_processor(tokenizer, seconds=10, mel_bins=128).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2_5_omni_thinker"}')
    return load_processor(str(folder))


@pytest.fixture(scope="module")
def index(toy):
    return build_index(AtlasSpec(root=str(toy.jsonl), limit=6), toy.jsonl)


def batches(index, processor, **settings: Any) -> list[MicroBatch]:
    """The training rows, a micro-batch each."""
    maker = BatchMaker(index, replace(SETTINGS, **settings), processor, "train")
    return [batch for line in index.rows_of("train").tolist() for batch in maker.window(Window((Share((line,), 1),)))]


def ids_of(batch: MicroBatch) -> list[int]:
    return batch.inputs["input_ids"][0][batch.inputs["attention_mask"][0].bool()].tolist()


def test_text_has_the_tokens_that_the_ranks_own_library_gives_it(tokenizer):
    encoding = qwen_encoding(ranks_file())
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == encoding.encode(unicodedata.normalize("NFC", text)) and max(ids) < FIRST_SPECIAL
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens_have_the_ids_that_the_released_configuration_names(tokenizer, processor):
    assert len(tokenizer) == 151_665
    for known in (tokenizer, processor.tokenizer):
        ids = known.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        assert ids == list(range(FIRST_SPECIAL, FIRST_SPECIAL + len(SPECIAL_TOKENS)))
        assert known.convert_tokens_to_ids(list(LATER_TOKENS)) == list(range(ids[-1] + 1, 151_665))
        assert known.eos_token_id == 151_645 and known.pad_token_id == 151_643
    config = Qwen2_5OmniThinkerConfig()
    named = {"audio_token_index": "<|AUDIO|>", "image_token_index": "<|IMAGE|>", "video_token_index": "<|VIDEO|>"}
    named |= {"audio_start_token_id": "<|audio_bos|>", "audio_end_token_id": "<|audio_eos|>", "user_token_id": "user"}
    assert {key: getattr(config, key) for key in named} == {key: tokenizer.convert_tokens_to_ids(token) for key, token in named.items()}


def test_people_s_text_cannot_hold_a_token_that_is_no_text(tokenizer):
    for token in (*SPECIAL_TOKENS, *LATER_TOKENS):
        text, _ = clean(f"She typed {token} and left")
        assert max(tokenizer(text)["input_ids"]) < FIRST_SPECIAL, token


def test_a_prompt_is_the_system_turn_the_user_s_and_the_begin_of_the_answer(index, processor):
    """The published system turn can be given by the variable HBA_SYSTEM_PROMPT, as `model.system_prompt` names it."""
    convert = processor.tokenizer.convert_tokens_to_ids
    start, end = convert("<|im_start|>"), convert("<|im_end|>")
    published = os.environ.get("HBA_SYSTEM_PROMPT")
    other = load_system_prompt(published) if published else "You watch people, listen to them, and say what they feel."
    for batch, own in zip(batches(index, processor), batches(index, processor, wording=Wording(system=other)), strict=True):
        for one, system in ((batch, DEFAULT_SYSTEM), (own, other)):
            ids = ids_of(one)
            prompt = ids[: int((one.answer_labels[0] == IGNORED).sum())]
            assert prompt[:2] == [start, convert("system")]
            assert prompt[-3:] == [start, convert("assistant"), *processor.tokenizer("\n")["input_ids"]]
            assert prompt.count(start) == 3 and prompt.count(end) == 2
            assert processor.tokenizer.decode(prompt).startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
        assert len(ids_of(own)) - len(ids_of(batch)) == len(processor.tokenizer(other)["input_ids"]) - len(
            processor.tokenizer(DEFAULT_SYSTEM)["input_ids"]
        )


def test_each_clip_has_the_placeholders_of_its_length_between_its_marks(index, processor):
    convert = processor.tokenizer.convert_tokens_to_ids
    seen = set()
    for batch in batches(index, processor):
        ids = np.array(ids_of(batch))
        for name, bos, eos in (("AUDIO", "audio_bos", "audio_eos"), ("VIDEO", "vision_bos", "vision_eos")):
            places = np.flatnonzero(ids == convert(f"<|{name}|>"))
            if not len(places):
                continue
            seen.add(name)
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
            assert (ids[places[0] - 1], ids[places[-1] + 1]) == (convert(f"<|{bos}|>"), convert(f"<|{eos}|>"))
            if name == "AUDIO":
                frames = int(batch.inputs["feature_attention_mask"].sum())
                assert len(places) == ((frames - 1) // 2 + 1 - 2) // 2 + 1
            else:
                assert len(places) == int(batch.inputs["video_grid_thw"].prod()) // 4
        shown = drop_repeats(ids.tolist(), [convert(f"<|{name}|>") for name in ("AUDIO", "VIDEO", "IMAGE")])
        clips = [int((ids == convert(f"<|{bos}|>")).sum()) for bos in ("audio_bos", "vision_bos")]
        assert [shown.count(convert(f"<|{name}|>")) for name in ("AUDIO", "VIDEO")] == clips
    assert seen == {"AUDIO", "VIDEO"}


def test_an_answer_of_one_token_or_many_is_learnt_as_it_would_be_written(index, processor):
    """Its tokens are those that it has behind the prompt, and the last one is the end of the turn."""
    tokenizer = processor.tokenizer
    lengths = set()
    for batch in batches(index, processor):
        if not bool((batch.answer_labels >= 0).any()):
            continue
        labels = batch.answer_labels[0][batch.answer_labels[0] >= 0].tolist()
        prompt = ids_of(batch)[: -len(labels)]
        assert labels[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") == ids_of(batch)[-1]
        answer = tokenizer.decode(labels[:-1])
        assert answer and tokenizer(tokenizer.decode(prompt) + answer)["input_ids"] == ids_of(batch)[:-1]
        lengths.add(len(labels))
    assert len(lengths) > 1
    for dataset in DATASETS.values():
        for label in dataset.labels:
            ids = tokenizer(label)["input_ids"]
            assert tokenizer.decode(ids) == label and tokenizer("assistant\n" + label)["input_ids"][2:] == ids
    sizes = {label: len(tokenizer(label)["input_ids"]) for dataset in DATASETS.values() for label in dataset.labels}
    assert min(sizes.values()) == 1 and max(sizes.values()) > 1


@pytest.mark.parametrize(
    ("said", "label", "accuracy"), [("Sad", "sad", 1), (r"\text{ sad }", "sad", 1), ("Joy.", "happy", 0), ("calm", None, 0)]
)
def test_a_boxed_answer_comes_through_the_tokens_into_the_reward(processor, said, label, accuracy):
    text = f"<think>\nShe smiles.\n</think>\n\\boxed{{{said}}}"
    tokenizer = processor.tokenizer
    ids = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    response = tokenizer.decode(ids, skip_special_tokens=True)
    assert response == text and read_class(response, DATASETS["meld_emotion"]) == label
    (parts,) = score_responses([Response("meld_emotion", response, "sad")], RewardSpec(similarity_weight=0))
    assert (parts["format"], parts["acc"]) == (1, accuracy)


def test_a_response_ends_with_the_turn_or_at_the_limit(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("well")["input_ids"] * 3
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert is_cut(ids, 3, tokenizer) and not is_cut(ids, 4, tokenizer)
    assert not is_cut([*ids[:2], ends[0]], 3, tokenizer)
    assert set(unsampled_ids(tokenizer)).isdisjoint(ends) and len(unsampled_ids(tokenizer)) == 8


def test_instructions_around_a_prompt_leave_its_clips_where_they_are(index, processor):
    reasoning = load_reasoning("standard")
    convert = processor.tokenizer.convert_tokens_to_ids
    for plain, asked in zip(batches(index, processor), batches(index, processor, reword=reasoning.ask), strict=True):
        counts = [[ids.count(convert(f"<|{name}|>")) for name in ("AUDIO", "VIDEO", "IMAGE")] for ids in (ids_of(plain), ids_of(asked))]
        assert counts[0] == counts[1] and len(ids_of(asked)) > len(ids_of(plain))

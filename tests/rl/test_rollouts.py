from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hba_ray.data.atlas import AtlasIndex, Drop, build_index
from hba_ray.errors import BadMedia, DataError, TrainingError
from hba_ray.models.backbone import load_processor
from hba_ray.rl.dataset import AtlasDataset, atlas_index, make_prompt
from hba_ray.rl.records import dropped_rows, equal_groups, note_failure, read_failures
from tests.rl.conftest import Toy


@pytest.fixture
def atlas(toy: Toy, tmp_path: Path) -> Path:
    """A copy of the toy atlas that can be damaged."""
    shutil.copytree(toy.atlas / "rows", tmp_path / "atlas" / "rows")
    build_index(toy.spec.atlas, tmp_path / "atlas" / "rows", "jsonl").save(tmp_path / "atlas")
    return tmp_path / "atlas"


def dataset(atlas: Path, toy: Toy) -> AtlasDataset:
    config = OmegaConf.create({"hba": vars(toy.settings) | {"modalities": list(toy.settings.modalities)}})
    return AtlasDataset([str(atlas / "train")], None, config)


def test_a_missing_audio_file_is_named_with_its_row(toy: Toy, atlas: Path):
    line = toy.line("text_audio")
    for clip in (atlas / "rows").rglob("*.wav"):
        clip.unlink()
    with pytest.raises(DataError, match=r"row \d+.*\.wav.*not there") as raised:
        make_prompt(str(atlas / "train"), line, toy.settings)
    assert raised.value.reason == "missing file"
    rows = dataset(atlas, toy)
    assert len([rows[item] for item in range(len(rows))]) == len(rows)  # the trainer asks for no clip


def test_a_damaged_clip_is_named_with_its_row(toy: Toy, atlas: Path):
    for clip in (atlas / "rows").rglob("*.wav"):
        clip.write_bytes(b"RIFF0000")
    with pytest.raises(BadMedia, match="train row toy_"):
        make_prompt(str(atlas / "train"), toy.line("text_audio"), toy.settings)


def test_clips_are_decoded_to_the_specs_budget_and_vllm_is_told_their_rate(toy: Toy):
    prompt = make_prompt(str(toy.atlas / "train"), toy.line("text_video_audio"), toy.settings)
    frames, facts = prompt.media["videos"][0]
    assert frames.shape == (4, 3, 56, 56)
    assert prompt.settings == {"do_resize": False, "do_sample_frames": False, "fps": facts["fps"]}
    assert len(prompt.media["audios"][0]) <= 2 * 16_000
    kinds = [part["type"] for part in prompt.messages[0]["content"]]
    assert kinds.count("video") == kinds.count("audio") == 1


def test_withheld_modalities_do_not_reach_the_prompt(toy: Toy):
    prompt = make_prompt(str(toy.atlas / "train"), toy.line("text_video_audio"), replace(toy.settings, modalities=("audio",)))
    assert prompt.media.keys() == {"audios"}


def test_a_row_of_the_dataset_is_small_and_knows_its_truth(toy: Toy):
    row = dataset(toy.atlas, toy)[0]
    assert len(json.dumps({name: value for name, value in row.items() if name != "dummy_tensor"})) < 4000
    assert row["data_source"].startswith("toy_") and row["reward_model"]["ground_truth"]
    assert "<think>" in row["raw_prompt"][0]["content"]
    assert isinstance(atlas_index(str(toy.atlas / "train")), AtlasIndex)


def test_failures_are_read_back_as_they_were_noted(tmp_path: Path):
    note_failure(tmp_path / "failures.jsonl", DataError("row a", "is bad", reason="prompt too long"))
    note_failure(tmp_path / "failures.jsonl", TrainingError("grpo", "ended"))
    rows = read_failures(tmp_path / "failures.jsonl")
    assert [(row["kind"], row.get("reason")) for row in rows] == [("DataError", "prompt too long"), ("TrainingError", None)]
    assert read_failures(tmp_path / "none.jsonl") == []


def test_a_row_is_dropped_once_however_many_of_its_rollouts_failed(tmp_path: Path):
    file = tmp_path / "failures.jsonl"
    for where in ("row b", "row a", "row b"):
        note_failure(file, DataError(where, "is bad", reason="prompt too long"), split="train", dataset="toy_nod")
    note_failure(file, TrainingError("grpo", "ended"))
    assert dropped_rows(file) == [Drop("train", "toy_nod", row, "prompt too long") for row in ("row a", "row b")]


def test_a_response_at_the_limit_is_cut_unless_it_ends_with_an_end_mark(toy: Toy):
    from hba_ray.rl.rollouts import is_cut

    tokenizer = load_processor(str(toy.start)).tokenizer
    (end,) = tokenizer("<|im_end|>")["input_ids"]
    words = tokenizer("The person nods.")["input_ids"]
    assert is_cut(words, len(words), tokenizer) and not is_cut(words, len(words) + 1, tokenizer)
    assert not is_cut([*words, end], len(words) + 1, tokenizer)
    assert not is_cut([], 4, tokenizer)


def test_every_response_has_a_seed_of_its_own_which_a_repeated_run_gives_it_again():
    from hba_ray.rl.rollouts import sampling_seed

    places = list(itertools.product((0, 1), (1, 2), (0, 7), range(4)))
    seeds = [sampling_seed(*place) for place in places]
    assert len(set(seeds)) == len(places) and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == [sampling_seed(*place) for place in places]


def test_prompts_whose_responses_all_earn_the_same_are_counted():
    def responses(uid: str, *scores: float) -> list[dict[str, object]]:
        return [{"uid": uid, "parts": {"score": score}} for score in scores]

    assert equal_groups([*responses("a", 0, 0), *responses("b", 0.2, 1), *responses("c", 1, 1), *responses("d", 0, 1)]) == 0.5
    assert equal_groups(responses("a", 0.2, 0.2)) == 1.0

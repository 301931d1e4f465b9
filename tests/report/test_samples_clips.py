"""Clips of an atlas in a page: within the budget, fairly shared, the same from both layouts."""

from pathlib import Path

import pytest

from hba_ray.data.atlas import build_index
from hba_ray.errors import DataError
from hba_ray.report import samples as module
from hba_ray.report.samples import clips_note, media_type, sampled_clips
from hba_ray.specs import AtlasSpec
from tests.helpers.corpora import put, put_lines, tiny_sound


def index(root: Path):
    return build_index(AtlasSpec(source="released", root=str(root)), root)


def held(found) -> int:
    return sum(len(clip.content) for several in found.values() for clip in several if clip.content)


def test_all_clips_of_a_small_atlas_are_inside_and_alike_in_both_layouts(toy):
    parquet, jsonl = (sampled_clips(index(root), "test") for root in (toy.parquet, toy.jsonl))
    assert parquet.keys() == jsonl.keys() and {dataset for dataset, _ in parquet} == {"toy_tone", "toy_nod", "toy_words", "toy_answers"}
    for key, several in parquet.items():
        assert [(clip.kind, clip.content) for clip in several] == [(clip.kind, clip.content) for clip in jsonl[key]]
    kinds = {clip.kind for several in jsonl.values() for clip in several}
    assert kinds == {"audio/wav", "video/mp4"}
    assert {clip.name.partition("/")[0] for several in jsonl.values() for clip in several} == {"media"}
    assert "are inside this file" in clips_note(jsonl) and "only named" not in clips_note(jsonl)


def test_the_budget_is_kept_and_what_does_not_fit_is_named(toy):
    budget = 100_000
    found = sampled_clips(index(toy.jsonl), "test", budget=budget)
    assert 0 < held(found) <= budget
    named = [clip for several in found.values() for clip in several if clip.content is None]
    assert named and all(clip.size for clip in named) and "only named" in clips_note(found)


def test_a_dataset_whose_clips_are_all_too_large_is_left_early(toy, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 10)
    monkeypatch.setattr(module, "MISSES", 2)
    found = sampled_clips(index(toy.jsonl), "test")
    assert not held(found) and all(sum(key[0] == name for key in found) <= 2 for name in ("toy_tone", "toy_nod"))


def test_an_atlas_that_is_gone_is_an_error_and_a_clip_that_is_gone_is_none_of_the_rows(toy, tmp_path):
    import shutil

    root = tmp_path / "moved"
    shutil.copytree(toy.parquet, root)
    known = index(root)
    shutil.rmtree(root)
    with pytest.raises(DataError):
        sampled_clips(known, "test")


def test_a_file_that_browsers_do_not_play_has_no_media_type():
    assert media_type(b"RIFF\x00\x00\x00\x00AVI LIST", "video") is None and media_type(b"ID3\x04", "audio") == "audio/mpeg"
    assert media_type(b"\x00\x00\x00 ftypisom", "audio") == "audio/mp4", "sound may lie in a film's container"


def test_clips_of_sensitive_datasets_are_looked_at_only_where_that_is_asked_for(tmp_path):
    put(tmp_path / "300.wav", tiny_sound())
    put_lines(tmp_path / "test.jsonl", [{"problem": "<audio>", "answer": "depression", "dataset": "daicwoz", "audios": ["300.wav"]}])
    assert sampled_clips(index(tmp_path), "test") == {}
    assert held(sampled_clips(index(tmp_path), "test", show_sensitive=True)) == len(tiny_sound())

"""A step's name changes with all that its result depends on, and with nothing else."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hba_ray.errors import CheckpointError, DataError
from hba_ray.runs.plan import plan, run_fingerprint
from hba_ray.store.folders import Storage, finish
from tests.helpers.experiments import small_experiment

ALL = {"atlas", "backbone", "sft", "evaluate"}


def names(tmp_path: Path, **changes: object) -> dict[str, str]:
    spec = small_experiment(tmp_path, **changes)
    return {step.kind.name: step.fingerprint for step in plan(spec, Storage(tmp_path)).steps}


@pytest.mark.parametrize(
    ("field", "value", "redone"),
    [
        ("atlas__toy", {"rows": 44}, ALL),
        ("atlas__limit", 3, ALL),
        ("atlas__datasets", ["toy_tone"], ALL),
        ("atlas__on_bad_row", "drop", ALL),
        ("model__tiny", {"hidden": 64, "vocabulary": 512, "seed": 1}, {"backbone", "sft", "evaluate"}),
        ("atlas__modalities", ["text"], {"sft", "evaluate"}),
        ("model__train", "heads", {"sft", "evaluate"}),
        ("sft__lr", 2e-3, {"sft", "evaluate"}),
        ("sft__batch", 8, {"sft", "evaluate"}),
        ("sft__shuffle_window", 12, {"sft", "evaluate"}),
        ("seed", 1, {"sft", "evaluate"}),
        ("evaluate__split", "validation", {"evaluate"}),
        ("evaluate__max_new_tokens", 5, {"evaluate"}),
        ("name", "other", set()),
        ("compute__workers", 1, set()),
        ("compute__zero", 3, set()),
        ("compute__micro_batch", 2, set()),
        ("compute__checkpoint_every", 5, set()),
        ("tracking__experiment", "other", set()),
    ],
)
def test_a_field_renames_exactly_the_steps_that_depend_on_it(tmp_path: Path, field: str, value: object, redone: set[str]):
    before, after = names(tmp_path), names(tmp_path, **{field: value})
    assert {kind for kind in before if before[kind] != after[kind]} == redone


def test_the_amount_of_media_that_the_model_sees_is_part_of_training(tmp_path: Path):
    media = {"audio_seconds": 1, "video_frames": 4, "video_pixels": 3136}
    before, after = names(tmp_path), names(tmp_path, atlas__media=media)
    assert {kind for kind in before if before[kind] != after[kind]} == {"sft", "evaluate"}


def test_files_are_named_by_their_content_wherever_they_lie(toy, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(toy.parquet, moved)
    here = names(tmp_path, atlas__source="released", atlas__root=str(toy.parquet))
    assert names(tmp_path, atlas__source="released", atlas__root=str(moved)) == here
    shard = next(moved.glob("train-*.parquet"))
    os.utime(shard, (0, 0))
    assert names(tmp_path, atlas__source="released", atlas__root=str(moved)) == here
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert names(tmp_path, atlas__source="released", atlas__root=str(moved))["atlas"] != here["atlas"]


def test_an_edited_row_and_a_mended_clip_are_another_atlas(toy, tmp_path: Path):
    root = tmp_path / "atlas"
    shutil.copytree(toy.jsonl, root)

    def name() -> str:
        return names(tmp_path / "runs", atlas__source="released", atlas__root=str(root))["atlas"]

    def edited(file: Path, content: bytes) -> str:
        file.write_bytes(content)
        os.utime(file, ns=(len(seen), len(seen)))
        return name()

    table, clip = root / "train.jsonl", next(root.rglob("*.wav"))
    rows = table.read_bytes()
    place = rows.index(b"answer", len(rows) // 2)
    seen = [name()]
    seen.append(edited(table, rows[:place] + b"A" + rows[place + 1 :]))
    seen.append(edited(clip, clip.read_bytes()))
    clip.unlink()
    seen.append(name())
    assert len(set(seen)) == 4


@pytest.mark.parametrize("named", ["../../outside.wav", "/etc/passwd", "a\0b.wav", "\ud800.wav", 7, None, ["x" * 5000]])
def test_a_plan_looks_at_no_file_outside_the_atlas_and_leaves_odd_names_to_the_step(toy, tmp_path: Path, named: object):
    root = tmp_path / "atlas"
    shutil.copytree(toy.jsonl, root)
    with (root / "train.jsonl").open("a") as lines:
        lines.write(json.dumps({"audios": named if isinstance(named, list) else [named]}) + "\nno row\n[1]\n")
    assert names(tmp_path / "runs", atlas__source="released", atlas__root=str(root))["atlas"]


def test_a_step_knows_whether_it_is_done(tmp_path: Path):
    spec, storage = small_experiment(tmp_path), Storage(tmp_path)
    atlas, *others = plan(spec, storage).steps
    assert not atlas.is_done
    atlas.folder.mkdir(parents=True)
    finish(atlas.folder, {})
    assert atlas.is_done and not any(step.is_done for step in others)
    assert plan(spec, storage).fingerprint == run_fingerprint(others)


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        names(tmp_path, atlas__source="released", atlas__root=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"model\.backbone"):
        names(tmp_path, model__backbone=str(tmp_path / "nowhere"))


CHECKPOINT = {"step": 40, "epoch": 1, "micro_batch": 8}
KEPT = {
    "sft": (["checkpoint/state.json"], json.dumps(CHECKPOINT), "step 40, 1 of 2 epochs done"),
    "sft on Ray": (["train/checkpoint_1/state.json"], json.dumps(CHECKPOINT), "step 40, 1 of 2 epochs done"),
    "sft cut off": (["checkpoint.draft/state.json"], '{"step": 4', ""),
    "grpo": (["checkpoints/latest_checkpointed_iteration.txt"], "6", "step 6 of 8 steps"),
    "states train": (["pooled/part-00000.parquet", "pooled/part-00001.parquet"], "", "2 parts of states"),
    "bam": (["adapters/toy_nod/adapters.json"], "{}", "1 dataset with adapters"),
}


@pytest.mark.parametrize(("what", "kept"), KEPT.items(), ids=KEPT)
def test_a_step_half_done_says_how_far_it_has_come(tmp_path: Path, what: str, kept: tuple[list[str], str, str]):
    spec = small_experiment(tmp_path, stages=["sft", "bam", "grpo"], grpo={"init": "sft", "steps": 8, "batch": 4, "mini_batch": 4})
    step = next(step for step in plan(spec).steps if what.startswith(step.name))
    assert step.progress == ""
    files, text, expected = kept
    for file in files:
        (step.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (step.folder / file).write_text(text)
    assert step.progress == expected
    finish(step.folder, step.to_json(step.kind.result_type()) if what.startswith("sft") else {"version": 1})
    assert step.progress == ""

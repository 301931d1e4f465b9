"""What an atlas holds: rows by split, label and modality, prompts without anybody's words, and the lengths of clips, each counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hba_ray.actions.survey import count_rows, lengths_of
from hba_ray.evaluation.survey import Lengths
from hba_ray.specs import ExperimentSpec
from tests.helpers.clips_of import sound, write_rows
from tests.helpers.indices import index_of


def spec_of(folder: Path, tmp_path: Path) -> ExperimentSpec:
    compute = {"storage": str(tmp_path / "runs"), "workers": 0}
    return ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "released", "root": str(folder)}, "compute": compute})


def row(dataset: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"dataset": dataset, "answer": answer, **more}


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """Two tasks of MELD on two clips, a short and a long one; CREMA-D with one sound that is broken; texts of patients."""
    folder = tmp_path / "atlas"
    for name, seconds in (("long", 21.0), ("short", 2.0), ("edge", 20.0)):
        sound(folder / f"{name}.wav", seconds)
    (folder / "broken.wav").write_bytes(b"RIFF")
    clips = [{"audios": ["long.wav"]}, {"audios": ["short.wav"]}]
    train = [
        *(row("meld_senti", "positive", **clip) for clip in clips),
        *(row("meld_emotion", "joy", **clip) for clip in clips),
        row("cremad", "sad", audios=["edge.wav"]),
        row("cremad", "anger", audios=["broken.wav"]),
        *(row("mmpsy_depression", "depression", sample_id=f"p{place}") for place in range(12)),
        *(row("mmsd", "sarcasm", sample_id=f"s{place}") for place in range(12)),
    ]
    return write_rows(folder, train=train, test=[row("mmsd", "not sarcasm", sample_id="t")])


def test_rows_are_counted_by_split_label_and_modality(atlas: Path):
    found = count_rows(index_of(atlas))
    assert list(found) == ["meld_senti", "meld_emotion", "cremad", "mmsd", "mmpsy_depression"]
    mmsd, cremad = found["mmsd"], found["cremad"]
    assert mmsd.rows == {"train": 12, "validation": 0, "test": 1} and mmsd.total == 13
    assert mmsd.labels == {"train": {"sarcasm": 12}, "test": {"not sarcasm": 1}} and not mmsd.prompt
    assert cremad.signatures == {"text_audio": 2} and (cremad.with_modality("audio"), cremad.with_modality("video")) == (2, 0)
    assert not cremad.has_descriptors


def test_prompts_show_what_many_rows_share_and_nothing_of_patients(atlas: Path):
    found = count_rows(index_of(atlas), prompts=True)
    assert found["mmsd"].prompt == ("…", "How is it?")
    assert found["mmpsy_depression"].prompt == () == found["cremad"].prompt  # of patients; two rows alone
    assert "Words" not in str(found)


def test_a_clip_is_counted_once_whichever_rows_share_it_and_a_broken_one_is_told(atlas: Path, tmp_path: Path):
    assert lengths_of(spec_of(atlas, tmp_path), index_of(atlas)) == {
        "meld": Lengths(0, 2, (21.0, 2.0)),
        "cremad": Lengths(0, 1, (20.0,), {"corrupt audio": 1}),
    }


def test_clips_of_one_scene_or_speaker_are_each_counted(tmp_path: Path):
    folder = tmp_path / "atlas"
    content = sound(folder / "one.wav", 2.0).read_bytes()
    (folder / "two.wav").write_bytes(content[:44] + content[44:][::-1])  # as long as the first
    shared = [
        row("mmsd", "sarcasm", clip_id="scene", audios=[f"{name}.wav"], problem=f"<audio>{name}{again}")
        for name in ("one", "two")
        for again in (1, 2)
    ]
    write_rows(folder, train=shared)
    assert lengths_of(spec_of(folder, tmp_path), index_of(folder)) == {"mustard": Lengths(0, 2, (2.0, 2.0))}


def test_lengths_are_kept_until_a_clip_changes(atlas: Path, tmp_path: Path):
    spec, told = spec_of(atlas, tmp_path), []
    first = lengths_of(spec, index_of(atlas))
    assert lengths_of(spec, index_of(atlas), told.append) == first and told == [len(index_of(atlas).table)]
    sound(atlas / "short.wav", 25.0)
    assert lengths_of(spec, index_of(atlas))["meld"].seconds == (21.0, 25.0)


def test_texts_alone_have_no_lengths_and_nothing_is_looked_at(tmp_path: Path):
    folder = write_rows(tmp_path / "atlas", train=[row("mmsd", "sarcasm")])
    assert lengths_of(spec_of(folder, tmp_path), index_of(folder)) == {} and not (tmp_path / "runs").exists()

"""A checkpoint is run as it was trained: its settings are taken over, and a spec that says otherwise is refused with both values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hba_ray.errors import CheckpointError, SpecError
from hba_ray.models.settings import SETTINGS, read_settings, settled, sources_of, write_settings
from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec
from tests.helpers.experiments import small_experiment


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Folders in the layout of the released code; what their files hold is not looked at."""
    for name in ("sft", "bam"):
        (tmp_path / name).mkdir()
        torch.save({}, tmp_path / name / "pytorch_model_fsdp.bin")
    (tmp_path / "bam" / "meta.json").write_text(json.dumps({"model_order": ["base", "video"]}))
    return tmp_path


def taking(folder: Path, **changes: object) -> ExperimentSpec:
    fields: dict[str, object] = {"stages": ["sft", "bam"], "sft__checkpoint": str(folder / "sft")}
    return small_experiment(folder / "runs", **fields | {"bam__checkpoints": {"toy_nod": str(folder / "bam")}} | changes)


def ours(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    write_settings(folder, small_experiment(folder, **changes))
    return folder


def test_the_released_layout_implies_the_released_forward_pass(released: Path):
    spec = settled(taking(released))
    assert spec.compat == "paper"
    assert (spec.bam.outer_activation, spec.bam.acoustic_scale, spec.bam.decoder_injection) == (False, "l2", "post_norm")
    assert (spec.model.media_to_backbone, spec.model.prompt_layout, spec.sft.mode) == (False, "released", "staged")
    assert spec.bam.epochs == 4, "how adapters are trained is the spec's"
    assert settled(spec) == spec
    authors = settled(taking(released, compat="authors"))
    assert {key: getattr(authors.bam, key) for key in ("outer_activation", "acoustic_scale", "norm", "decoder_injection")} == {
        key: getattr(spec.bam, key) for key in ("outer_activation", "acoustic_scale", "norm", "decoder_injection")
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bam__outer_activation": True}, r"bam\.outer_activation: is true, .*bam\.checkpoints\.toy_nod.* false"),
        ({"bam__decoder_injection": "penultimate"}, r"bam\.decoder_injection: is penultimate, .* post_norm"),
        ({"bam__acoustic_scale": "none"}, r"bam\.acoustic_scale: is none, .* l2"),
        ({"model__media_to_backbone": True}, r"model\.media_to_backbone: is true, .*sft\.checkpoint.* false"),
        ({"compat": "paper"}, r"compat: is paper, .* authors"),
    ],
)
def test_a_spec_that_says_otherwise_is_refused_with_both_values(released: Path, change: dict[str, object], said: str):
    with pytest.raises(SpecError, match=said):
        plan(taking(released, **change))


def test_the_plan_says_what_is_taken_and_trains_nothing_that_it_only_loads(released: Path):
    steps = {step.name: step.what for step in plan(taking(released, bam__datasets=["toy_nod"])).steps}
    assert "epochs" not in steps["bam"] and "take the adapters of toy_nod" in steps["bam"]
    assert "bam.outer_activation=false" in steps["bam"] and "bam.decoder_injection=post_norm" in steps["bam"]
    assert "model.media_to_backbone=false" in steps["sft"] and "atlas.media.audio_seconds is usually 10.0, here 1.0" in steps["sft"]
    both = {step.name: step.what for step in plan(taking(released)).steps}["bam"]
    assert "take the adapters of toy_nod" in both and "for all other datasets, 4 epochs" in both


def test_the_settings_are_part_of_the_steps_names(released: Path):
    def named(spec: ExperimentSpec) -> dict[str, str]:
        return {step.name: step.fingerprint for step in plan(spec).steps}

    stated = taking(released, bam__outer_activation=False, bam__acoustic_scale="l2", bam__decoder_injection="post_norm")
    assert named(taking(released)) == named(stated)


def test_a_folder_of_ours_holds_its_settings_and_a_sweep_s_trial_keeps_them(tmp_path: Path):
    folder = ours(tmp_path / "model", atlas__media={"video_frames": 6}, model__train="lora", model__lora={"rank": 4})
    free = ExperimentSpec.model_validate(
        {
            "name": "x", "stages": ["sft"], "atlas": {"source": "toy"},
            "model": {"backbone": "tiny"}, "sft": {"checkpoint": str(folder), "batch": 4}, "compute": {"workers": 0, "micro_batch": 4},
        }
    )  # fmt: skip
    spec = settled(free)
    assert (spec.atlas.media.video_frames, spec.model.lora.rank) == (6, 4)
    with pytest.raises(SpecError, match=r"atlas\.media\.video_frames: is 8, .*was trained with 6"):
        settled(
            free.model_copy(
                update={"atlas": free.atlas.model_copy(update={"media": free.atlas.media.model_copy(update={"video_frames": 8})})}
            )
        )
    (folder / SETTINGS).unlink()
    assert settled(free) is free, "a folder of a former version says nothing"


def test_the_system_turn_travels_with_the_checkpoint(tmp_path: Path):
    (tmp_path / "turn.txt").write_text("Be brief.\n")
    folder = ours(tmp_path / "model", model__system_prompt=str(tmp_path / "turn.txt"))
    (tmp_path / "turn.txt").write_text("Be long.")
    same = {"stages": ["sft"], "sft__checkpoint": str(folder)}
    spec = settled(small_experiment(tmp_path, **same))
    assert Path(str(spec.model.system_prompt)).read_text() == "Be brief."
    with pytest.raises(SpecError, match=r"model\.system_prompt: is .*turn\.txt"):
        settled(small_experiment(tmp_path, model__system_prompt=str(tmp_path / "turn.txt"), **same))
    Path(str(spec.model.system_prompt)).write_text("Changed.")
    with pytest.raises(CheckpointError, match="not the system turn"):
        settled(small_experiment(tmp_path, **same))


def test_released_adapters_on_a_model_of_ours_are_refused(released: Path, tmp_path: Path):
    folder = ours(tmp_path / "trained")
    with pytest.raises(SpecError, match=r"bam holds released adapters, and sft\.checkpoint=.*trained here"):
        plan(taking(released, sft__checkpoint=str(folder)))
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "model.json").write_text("{}")
    write_settings(copied, settled(taking(released)))
    found = read_settings(copied, "sft.checkpoint")
    assert found is not None and found.layout == "released"
    assert [source.layout for source in sources_of(taking(released, sft__checkpoint=str(copied)))] == ["released", "released"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 9}, "format is 9"),
        ({"settings": {"sft.colour": 1}}, "sft.colour"),
        ({"settings": []}, "damaged"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, change: dict[str, object], said: str):
    file = ours(tmp_path / "model") / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        settled(small_experiment(tmp_path, stages=["sft"], sft__checkpoint=str(file.parent)))

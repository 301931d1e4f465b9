"""Models and adapters that others trained, named in a spec: taken as they are, evaluated, and refused where they do not fit.

The released files were never seen: what is taken here was trained by us and written in their layout. Training in the
released code's order makes it, which is tested on the way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from hba_ray.errors import CheckpointError, SpecError
from hba_ray.models.checkpoints import load_adapters, load_model
from hba_ray.models.settings import read_settings
from hba_ray.runs.plan import plan
from hba_ray.runs.run import Finished, run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.store.folders import Storage
from hba_ray.training.sft import build_model
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal

pytestmark = pytest.mark.usefixtures("made_up")
FIELDS: dict[str, Any] = {
    "compat": "authors",
    "stages": ["sft", "bam"],
    "atlas": {"source": "toy", "toy": {"rows": 80}, "limit": 6, "media": {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}},
    "model": {"backbone": "tiny", "train": "lora", "tiny": {"hidden": 64, "vocabulary": 512}, "lora": {"rank": 4}},
    "sft__epochs": 1,
    "sft__answer_epochs": 2,
    "sft__answer_batch": 2,
    "bam": {"hidden": 8, "epochs": 1, "batch": 4, "lr": 1e-2},
}
LM_HEAD = "backbone.base_model.model.lm_head.weight"


def experiment(storage: Path, **changes: object) -> ExperimentSpec:
    return small_experiment(storage, **FIELDS | changes)


def run(spec: ExperimentSpec) -> Finished:
    return run_experiment(plan(spec), lambda line: None, ReadableJournal())


def folders(spec: ExperimentSpec) -> dict[str, Path]:
    return {step.name: step.folder for step in plan(spec, Storage(spec.compute.storage)).steps}


def predictions(spec: ExperimentSpec, arm: str) -> list[dict[str, Any]]:
    return pq.read_table(folders(spec)[f"evaluate {arm}"] / "predictions.parquet").to_pylist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[ExperimentSpec, Finished]:
    """Both stages with the released code's settings."""
    spec = experiment(tmp_path_factory.mktemp("runs"))
    return spec, run(spec)


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory) -> Path:
    """That model, and beside it the adapters of toy_nod with the model they were trained on, as the released code writes them."""
    spec, _ = trained
    where, root = folders(spec), tmp_path_factory.mktemp("released")
    model = build_model(spec, str(where["backbone"] / "model"), bf16=False)
    load_model(model, where["sft"] / "model")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    (root / "sft").mkdir()
    torch.save(state, root / "sft" / "pytorch_model_fsdp.bin")
    base = json.loads((where["bam"] / "adapters" / "toy_nod" / "adapters.json").read_text())["base"]
    bam, _ = load_adapters(where["bam"] / "adapters" / "toy_nod", base=base, hidden=64)
    (root / "bam").mkdir()
    head = {f"module.heads.0.{name}": tensor for name, tensor in bam.head.state_dict().items()}
    torch.save(state | head, root / "bam" / "pytorch_model_fsdp.bin")
    (root / "bam" / "meta.json").write_text(json.dumps({"model_order": ["base", "video"]}))
    torch.save(bam.adapters["pose"].state_dict(), root / "bam" / "pytorch_model_fsdp_1.bin")
    return root


def test_the_released_order_is_classes_first_then_lm_head_alone(trained):
    spec, made = trained
    where = folders(spec)
    assert list(where)[2:5] == ["backbone", "sft classes", "sft"]
    before, after = (load_file(where[name] / "model" / "model.safetensors") for name in ("sft classes", "sft"))
    assert before.keys() == after.keys() and LM_HEAD in after
    assert [name for name in after if not torch.equal(before[name], after[name])] == [LM_HEAD]
    untrained = load_file(where["backbone"] / "model" / "model.safetensors")
    assert torch.equal(before[LM_HEAD], untrained["lm_head.weight"]), "not trained on classes"
    assert any(bool(tensor.any()) for name, tensor in before.items() if "lora_B" in name)
    steps = [[json.loads(line) for line in (where[name] / "metrics.jsonl").read_text().splitlines()] for name in ("sft classes", "sft")]
    assert all(line.get("answer_loss_per_token") is None for line in steps[0]) and all("class_loss" not in line for line in steps[1])
    assert sum("epochs_done" in line for line in steps[1]) == 2
    notes = " ".join(made.report.notes)
    assert "optimiser steps on classes" in notes and "optimiser steps of lm_head on open answers" in notes


def test_without_open_answers_the_model_is_that_of_the_classes(trained):
    spec, _ = trained
    atlas = FIELDS["atlas"] | {"datasets": ["toy_words"]}
    other = experiment(Path(spec.compute.storage), atlas=atlas, stages=["sft"])
    made = run(other)
    where = folders(other)
    one, same = ((where[name] / "model" / "model.safetensors").read_bytes() for name in ("sft classes", "sft"))
    assert one == same and "SFT: no row has an open answer, so lm_head is the backbone's." in made.report.notes


def test_without_classes_the_released_order_cannot_begin(trained):
    spec, _ = trained
    atlas = FIELDS["atlas"] | {"datasets": ["toy_answers"]}
    with pytest.raises(SpecError, match="no training row of the atlas has a class"):
        run(experiment(Path(spec.compute.storage), atlas=atlas, stages=["sft"]))


def test_a_released_model_and_released_adapters_predict_as_they_did(trained, released):
    spec, _ = trained
    given = experiment(
        Path(spec.compute.storage),
        sft__checkpoint=str(released / "sft"),
        bam=FIELDS["bam"] | {"datasets": ["toy_nod"], "checkpoints": {"toy_nod": str(released / "bam")}},
    )
    taken = run(given)
    assert predictions(given, "sft") == predictions(spec, "sft")
    ours, theirs = ([row for row in predictions(one, "sft+bam") if row["dataset"] == "toy_nod"] for one in (spec, given))
    assert ours == theirs != [row for row in predictions(spec, "sft") if row["dataset"] == "toy_nod"]
    assert "SFT: nothing was trained; the model is that of sft." in taken.report.notes
    assert "BAM: adapters that were not trained here: toy_nod from bam." in taken.report.notes
    assert not (folders(given)["sft"] / "checkpoint").exists()


def test_released_checkpoints_are_run_as_released_though_the_spec_says_nothing_of_it(trained, released):
    spec, _ = trained
    silent = {name: value for name, value in FIELDS.items() if name != "compat"}
    adapters = {"hidden": 8, "cache": False, "datasets": ["toy_nod"], "checkpoints": {"toy_nod": str(released / "bam")}}
    given = small_experiment(Path(spec.compute.storage), **silent | {"sft__checkpoint": str(released / "sft"), "bam": adapters})
    notes = " ".join(run(given).report.notes)
    assert "sft.checkpoint is run as it was trained: model.media_to_backbone=false" in notes and "bam.decoder_injection=post_norm" in notes
    assert predictions(given, "sft") == predictions(spec, "sft")
    ours, theirs = ([row for row in predictions(one, "sft+bam") if row["dataset"] == "toy_nod"] for one in (spec, given))
    assert ours == theirs
    for folder in (folders(given)["sft"] / "model", folders(given)["bam"] / "adapters" / "toy_nod"):
        held = read_settings(folder, "sft.checkpoint")
        assert held is not None and (held.layout, held.values["model.media_to_backbone"]) == ("released", False)
    assert held.values["bam.decoder_injection"] == "post_norm"


def test_a_model_folder_of_a_run_is_taken_too_and_counts_by_its_content(trained, tmp_path: Path):
    spec, _ = trained
    ours = folders(spec)["sft"] / "model"
    given = experiment(Path(spec.compute.storage), stages=["sft"], sft__checkpoint=str(ours))
    run(given)
    assert predictions(given, "sft") == predictions(spec, "sft")
    (tmp_path / "moved").mkdir()
    for file in ours.iterdir():
        (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    moved = experiment(Path(spec.compute.storage), stages=["sft"], sft__checkpoint=str(tmp_path / "moved"))
    assert folders(moved)["sft"] == folders(given)["sft"] != folders(spec)["sft"]


def test_what_a_joint_spec_would_lose_of_a_released_model_is_refused(trained, released):
    spec, _ = trained
    with pytest.raises(
        CheckpointError, match=r"differ from the backbone's .*first: backbone\.base_model\.model\.lm_head\.weight"
    ) as refused:
        run(experiment(Path(spec.compute.storage), stages=["sft"], sft__mode="joint", sft__checkpoint=str(released / "sft")))
    assert "sft.mode=staged" in refused.value.way_out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sft__checkpoint": "nowhere"}, "sft.checkpoint: no such folder"),
        ({"model": FIELDS["model"] | {"lora": {"rank": 8}}}, "the model's"),
        ({"bam": FIELDS["bam"] | {"checkpoints": {"toy_nod": "nowhere"}}}, "bam.checkpoints.toy_nod: no such folder"),
        (
            {"bam": FIELDS["bam"] | {"checkpoints": {"toy_words": "FOLDER"}}},
            "bam.checkpoints.toy_words: names a dataset that has no adapters",
        ),
        ({"bam": FIELDS["bam"] | {"checkpoints": {"toy_tone": "FOLDER"}}}, "tensors are missing"),
        ({"bam": FIELDS["bam"] | {"hidden": 16, "checkpoints": {"toy_nod": "FOLDER"}}}, r"the model's \(16"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(trained, released, change, named):
    spec, _ = trained
    fields = {"sft__checkpoint": str(released / "sft")} | change
    for folder in fields.get("bam", {}).get("checkpoints", {}).copy():
        if fields["bam"]["checkpoints"][folder] == "FOLDER":
            fields["bam"] = fields["bam"] | {"checkpoints": {folder: str(released / "bam")}}
    with pytest.raises((CheckpointError, SpecError), match=named):
        run(experiment(Path(spec.compute.storage), **fields))


def test_released_adapters_without_their_model_are_refused():
    with pytest.raises(ValueError, match=r"give its folder as sft\.checkpoint"):
        small_experiment(Path("runs"), stages=["sft", "bam"], bam={"checkpoints": {"toy_nod": "anywhere"}})


def test_adapters_of_another_model_are_refused(trained, released, tmp_path: Path):
    spec, _ = trained
    state = torch.load(released / "sft" / "pytorch_model_fsdp.bin")
    name = next(name for name in state if "lora_B" in name)
    torch.save(state | {name: state[name] + 1}, tmp_path / "pytorch_model_fsdp.bin")
    bam = FIELDS["bam"] | {"datasets": ["toy_nod"], "checkpoints": {"toy_nod": str(released / "bam")}}
    with pytest.raises(CheckpointError, match="were trained on another model than the SFT model"):
        run(experiment(Path(spec.compute.storage), sft__checkpoint=str(tmp_path), bam=bam))

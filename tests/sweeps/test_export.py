"""`hba export` writes the model that a run trained, and says what it cannot write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hba_ray import cli
from hba_ray.errors import HbaError, SpecError
from hba_ray.models.backbone import load_backbone
from hba_ray.models.checkpoints import load_model
from hba_ray.models.export import load_heads
from hba_ray.runtime.storage import Storage
from hba_ray.runtime.tracking import MemoryTracker
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.export import export_run, exportable
from hba_ray.sweeps.plan import plan
from hba_ray.sweeps.runs import open_run
from hba_ray.sweeps.trial import run_experiment
from hba_ray.training.sft import build_model
from tests.sweeps.jobs import small_experiment


def small(storage: Path) -> ExperimentSpec:
    return small_experiment(storage, model__train="lora", sft__epochs=1, sft__lr=0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a finished run with LoRA."""
    return run_experiment(small(tmp_path_factory.mktemp("runs")), lambda line: None, MemoryTracker()).folder


def test_the_export_computes_what_the_trained_model_does(run: Path):
    opened = open_run(run)
    folders = opened.folders()
    to = export_run(opened)
    assert to == run / "model-sft" and list(exportable(opened)) == ["sft"]
    trained = build_model(opened.spec, str(folders["backbone"] / "model"), bf16=False).eval()
    load_model(trained, folders["sft"] / "model")
    exported = load_backbone(str(to), dtype=torch.float32)
    ids = torch.arange(5, 45).reshape(2, 20)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(exported(**inputs).logits, trained.thinker(**inputs).logits, atol=1e-4, rtol=1e-4)
        untrained = load_backbone(str(folders["backbone"] / "model"), dtype=torch.float32)(**inputs).logits
    assert not torch.allclose(exported(**inputs).logits, untrained, atol=1e-3)
    assert all(torch.equal(load_heads(to)[0][f"heads.{name}"], weight) for name, weight in trained.heads.state_dict().items())


def test_a_storage_that_was_moved_is_still_a_storage(run: Path, tmp_path: Path):
    moved = shutil.copytree(run.parent, tmp_path / "elsewhere")
    code = CliRunner().invoke(cli.app, ["export", str(moved / run.name), "--to", str(tmp_path / "model")])
    assert code.exit_code == 0, code.output
    assert f"model  {tmp_path / 'model'}" in code.output
    assert load_backbone(str(tmp_path / "model"), dtype=torch.float32) is not None


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path):
    with pytest.raises(SpecError, match=r"is no run: it holds no resolved\.yaml"):
        open_run(tmp_path)
    with pytest.raises(SpecError, match=r"arm grpo: the run has no model of this name\n.*sft"):
        export_run(open_run(run), "grpo")
    renamed = shutil.copytree(run, tmp_path / "small-000000000000")
    with pytest.raises(HbaError, match="comes to another result"):
        open_run(renamed)
    unfinished = shutil.copytree(run.parent, tmp_path / "runs")
    (sft,) = [step.folder for step in plan(small(unfinished), Storage(unfinished)) if step.kind == "sft"]
    (sft / "done.json").unlink()
    with pytest.raises(HbaError, match="its step 'sft' is not finished"):
        export_run(open_run(unfinished / run.name))

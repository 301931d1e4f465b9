"""`hba export` writes the model that a run trained, and says what it cannot write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from hba_ray.actions.export import export_run, exportable
from hba_ray.cli import main as cli
from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.feed.batches import BatchMaker, BatchSettings
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import CheckpointError, HbaError, SpecError
from hba_ray.models.backbone import load_backbone, load_processor
from hba_ray.models.bam import DescriptorBatch
from hba_ray.models.checkpoints import load_model
from hba_ray.models.export import HEADS_MANIFEST, load_exported_adapters, load_heads
from hba_ray.rl.checkpoints import write_start
from hba_ray.runs.opened import open_run
from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context
from hba_ray.steps.stages.grpo import GrpoResult
from hba_ray.store.folders import Storage
from hba_ray.training.sft import build_model
from tests.helpers.described import MadeUp, use_made_up
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.kinds import replace_make


def small(storage: Path) -> ExperimentSpec:
    return small_experiment(storage, model__train="lora", sft__epochs=1, sft__lr=0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a finished run with LoRA."""
    return run_experiment(plan(small(tmp_path_factory.mktemp("runs"))), lambda line: None, ReadableJournal()).folder


def test_the_export_computes_what_the_trained_model_does(run: Path):
    opened = open_run(run)
    folders = {name: step.folder for name, step in opened.finished_steps().items()}
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
    with pytest.raises(HbaError, match="would now give another result"):
        open_run(renamed)
    unfinished = shutil.copytree(run.parent, tmp_path / "runs")
    (sft,) = [step.folder for step in plan(small(unfinished), Storage(unfinished)).steps if step.kind.name == "sft"]
    (sft / "done.json").unlink()
    with pytest.raises(HbaError, match="its step 'sft' is not finished"):
        export_run(open_run(unfinished / run.name))


def test_adapters_are_exported_beside_their_model_and_say_how_they_are_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing but the exported folder is used to compute what the run predicted."""
    use_made_up(monkeypatch)
    bam = {"hidden": 16, "epochs": 1, "batch": 4, "lr": 0.01, "cache_precision": "fp32", "streams": ["acoustic"]}
    spec = small_experiment(tmp_path, stages=["sft", "bam"], model__train="lora", sft__epochs=1, sft__lr=0.05, bam=bam)
    run = run_experiment(plan(spec), lambda line: None, ReadableJournal()).folder
    result = CliRunner().invoke(cli.app, ["export", str(run)])
    assert result.exit_code == 0, result.output
    to = run / "model-sft+bam"
    assert f"adapters  {to / 'adapters'}" in result.output and "README.md" in result.output
    assert "load_exported_adapters" in (to / "adapters" / "README.md").read_text()

    opened = open_run(run)
    folders = {name: step.folder for name, step in opened.finished_steps().items()}
    index = AtlasIndex.load(folders["atlas"])
    rows = [row for row in read_rows(index, index.rows_of("test").tolist()) if isinstance(row, Row) and row.dataset.id == "toy_tone"]
    found = class_probabilities(to, index, rows)
    table = pq.read_table(folders["evaluate sft+bam"] / "predictions.parquet").to_pylist()
    said = {row["sample_id"]: row["probability"] for row in table if row["dataset"] == "toy_tone"}
    before = pq.read_table(folders["evaluate sft"] / "predictions.parquet").to_pylist()
    assert [said[row.sample_id] for row in rows] == pytest.approx(found, abs=1e-4)
    assert any(abs(said[row["sample_id"]] - row["probability"]) > 1e-3 for row in before if row["sample_id"] in said), "adapters do nothing"

    manifest = json.loads((to / HEADS_MANIFEST).read_text())
    (to / HEADS_MANIFEST).write_text(json.dumps(manifest | {"checkpoint": "another"}))
    with pytest.raises(CheckpointError, match="of another SFT model"):
        load_exported_adapters(to, "toy_tone")


def class_probabilities(folder: Path, index: AtlasIndex, rows: list[Row]) -> list[float]:
    """Of the class that adapters beside an exported model choose for each row of toy_tone, from what is in the folder alone."""
    settings = BatchSettings(small_experiment(folder).atlas.media, ("text", "audio", "video"), len(rows), purpose="predict", shuffle=False)
    batch = BatchMaker(index, settings, load_processor(str(folder)), "test").batch(rows, [])
    thinker: Any = load_backbone(str(folder), dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    thinker.model.layers[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    bam = load_exported_adapters(folder, "toy_tone")
    made_up = MadeUp.of(index)
    lines = made_up.lines_of("test", [str(row["sample_id"]) for row in batch.rows])
    vectors, present = (torch.from_numpy(array) for array in made_up.vectors("acoustic", lines))
    with torch.no_grad():
        thinker(**batch.inputs_on("cpu"), use_cache=False)
        mask_BS1 = batch.inputs["attention_mask"].unsqueeze(-1)
        h_BH = (seen[0] * mask_BS1).sum(1) / mask_BS1.sum(1)
        logits_BK = bam.class_logits(h_BH, bam({"acoustic": DescriptorBatch(vectors, present)}))
    assert logits_BK.shape == (len(rows), len(DATASETS["toy_tone"].task.labels))
    return logits_BK.softmax(-1).amax(-1).tolist()


@pytest.mark.slow
def test_the_model_of_grpo_is_exported_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """verl itself runs in tests/rl; here its step leaves the model that it would start from."""

    def untrained(context: Context) -> GrpoResult:
        write_start(context.spec, context.backbone, context.folder_of("sft") / "model", context.folder / "model", dtype=torch.float32)
        return GrpoResult(optimizer_steps=0, reward_first_quarter=0.0, reward_last_quarter=0.0)

    replace_make(monkeypatch, "grpo", untrained)
    grpo = {"batch": 4, "mini_batch": 4, "micro_batch": 1, "init": "sft"}
    generation = {"engine": "transformers", "max_new_tokens": 4}
    changes = {"stages": ["sft", "grpo"], "model__train": "lora", "sft__epochs": 1, "sft__lr": 0.05, "atlas__datasets": ["toy_words"]}
    spec = small_experiment(tmp_path, **changes, grpo=grpo, evaluate__generation=generation)
    run = run_experiment(plan(spec), lambda line: None, ReadableJournal()).folder
    result = CliRunner().invoke(cli.app, ["export", str(run)])
    assert result.exit_code == 0 and "adapters" not in result.output, result.output
    sft = export_run(open_run(run), "sft", tmp_path / "sft")
    ids = torch.arange(5, 45).reshape(2, 20)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = [load_backbone(str(folder), dtype=torch.float32)(**inputs).logits for folder in (run / "model-grpo", sft)]
    assert torch.equal(*logits)
    assert not (run / "model-grpo" / HEADS_MANIFEST).exists(), "GRPO trains no heads"

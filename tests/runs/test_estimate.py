"""What a plan says of costs: by operations where nothing was measured, by the same model's rate where it was, never by another's."""

import json
import re
from pathlib import Path

import pytest

from hba_ray.errors import DataError
from hba_ray.models.size.estimates import gpu_named
from hba_ray.runs.estimate import amount, cost, outlook
from hba_ray.runs.sweep_plan import planned_trials
from hba_ray.specs import load_spec
from hba_ray.specs.paper import experiments_folder
from hba_ray.steps.base import Step
from hba_ray.steps.needs.model import expected_rows
from hba_ray.steps.run import WORK, setting_of
from hba_ray.store.folders import finish
from tests.helpers.experiments import small_experiment
from tests.helpers.own_data import write_own

SHIPPED = sorted((experiments_folder(None) / "paper").glob("*.yaml"))
BASE = experiments_folder(None) / "base" / "omnisapiens_7b.yaml"


@pytest.mark.parametrize("file", [*SHIPPED, BASE], ids=lambda file: file.stem)
def test_the_head_of_a_shipped_spec_states_what_its_plan_costs(file: Path, tmp_path: Path):
    trials = planned_trials(load_spec(file, [f"compute.storage={tmp_path}", f"atlas.root={tmp_path}/none"]))
    stated = re.findall(r"~([\d ]*[\d.]+) H200-hours?", file.read_text(encoding="utf-8"))
    assert stated and stated[-1 if file == BASE else 0].replace(" ", "") == amount(cost(trials, "H200").gpu_hours)


def test_a_plan_before_the_data_says_so_and_counts_published_rows(tmp_path: Path):
    spec = load_spec(BASE, [f"compute.storage={tmp_path}", f"atlas.root={tmp_path}/none"])
    said = dict(outlook(planned_trials(spec)))
    assert said["not there"].startswith(f"{tmp_path}/none: no such folder") and "fingerprints change" in said["not there"]
    assert said["rows"] == "103 239 by the published counts (Table 7)"
    assert "H200 GPUs are assumed, as none is here" in said["cost"] and "estimated by operations: evaluate, sft" in said["cost"]
    assert said["doctor"].startswith("missing here for a run: data")


def test_rows_of_ones_own_are_counted_before_they_are_converted(tmp_path: Path):
    sources = [{"source": "own", "root": str(write_own(tmp_path / "own"))}, {"source": "tess", "root": str(tmp_path / "tess")}]
    spec = small_experiment(tmp_path, atlas={"sources": sources, "train_also": ["courtesy"]})
    rows = expected_rows(spec)
    assert rows.counts["courtesy"] == (16, 4, 4) and rows.source == "your own files and the published counts (Table 7)"
    assert expected_rows(spec, only=0).counts.keys() == {"courtesy"} and "courtesy" not in expected_rows(spec, only=1).counts
    (tmp_path / "own" / "rows.csv").unlink()
    assert "courtesy" not in expected_rows(spec).counts


def test_rows_of_a_built_atlas_are_counted_by_its_card_before_they_are_read(tmp_path: Path):
    built = small_experiment(tmp_path, atlas={"source": "released", "root": str(tmp_path)})
    counts = [{"dataset": "meld_senti", "split": split, "rows": rows, "published": 1} for split, rows in (("train", 70), ("test", 8))]
    (tmp_path / "card.json").write_text(json.dumps({"name": "mine", "counts": [*counts, {"dataset": "gone", "split": "test", "rows": 1}]}))
    rows = expected_rows(built)
    assert rows.counts == {"meld_senti": (70, 0, 8)} and rows.source == "its card.json"
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(DataError, match=r"card\.json: .*no card of an atlas"):
        expected_rows(built)


def finished(step: Step, seconds: float, setting: str) -> None:
    assert step.spec is not None
    work = step.kind.work(step, expected_rows(step.spec))
    assert work is not None
    step.folder.mkdir(parents=True)
    own = {"optimizer_steps": 1, "epochs": 1, "rows": 1}
    finish(step.folder, {**own, "seconds": seconds, WORK: {"setting": setting, "operations": work.operations}})


def test_runs_of_another_model_say_nothing_of_a_cost_and_those_of_the_same_all(tmp_path: Path):
    (toy,) = planned_trials(small_experiment(tmp_path))
    for name in ("sft", "evaluate sft"):
        finished(next(step for step in toy.steps if step.name == name), 3.0, setting_of(toy.spec))
    big = load_spec(BASE, [f"compute.storage={tmp_path}", f"atlas.root={tmp_path}/none"])
    assert cost(planned_trials(big)).measured == frozenset()
    twice = planned_trials(small_experiment(tmp_path, sft__epochs=4))
    found = cost(twice)
    assert found.measured == {"sft", "evaluate"} and not found.estimated and found.gpu is None
    assert found.hours * 3600 == pytest.approx(2 * 3.0 + 3.0, rel=0.01)
    assert found.in_words().endswith("one step after the other (as fast as this model was here: evaluate, sft)")


def test_of_a_model_whose_shape_is_not_known_no_cost_is_said(tmp_path: Path):
    unknown = small_experiment(tmp_path, model__backbone="small", model__small={"language": "owner/words", "speech": "owner/sounds"})
    assert cost(planned_trials(unknown)).in_words() == "not known: evaluate, sft, of which none is done here with this model"


def test_a_slower_gpu_and_more_rows_cost_more(tmp_path: Path):
    def hours(gpu: str, *words: str) -> float:
        spec = load_spec(BASE, [f"compute.storage={tmp_path}", f"atlas.root={tmp_path}/none", *words])
        return cost(planned_trials(spec), gpu).gpu_hours

    usual = hours("H200")
    assert hours("A100") == pytest.approx(usual * 989 / 312, rel=0.02)
    assert hours("H200", "sft.epochs=10") == pytest.approx(2 * usual, rel=0.1)
    assert hours("H200", "model.precision=fp32") > 10 * usual
    assert gpu_named("NVIDIA A100-SXM4-80GB") and gpu_named("Tesla K80") is None

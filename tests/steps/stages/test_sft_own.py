"""A fifteenth dataset by YAML alone: it is trained on beside others, has a head of its own, and is scored."""

import json
from pathlib import Path
from typing import Any

import pytest

from hba_ray.evaluation.scores import Scores
from hba_ray.models.checkpoints import load_class_heads
from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.steps.base import Step
from hba_ray.store.folders import Storage
from tests.helpers.experiments import SMALL
from tests.helpers.journals import ReadableJournal
from tests.helpers.own_data import write_own

OWN, TASK = "manners", "MANNERS"


def experiment(folder: Path, **atlas: Any) -> ExperimentSpec:
    sources = [{"source": "toy", "datasets": ["toy_tone", "toy_answers"]}, {"source": "own", "root": str(folder / "own")}]
    section = {"sources": sources, "train_also": [OWN], "toy": {"rows": 40}, "media": SMALL["atlas"]["media"], **atlas}
    compute = {**SMALL["compute"], "storage": str(folder / "runs")}
    (folder / "spec.yaml").write_text(json.dumps({**SMALL, "atlas": section, "compute": compute}))
    return load_spec(folder / "spec.yaml")


@pytest.mark.slow
def test_it_trains_beside_others_with_a_head_of_its_own_and_is_scored(tmp_path: Path):
    write_own(tmp_path / "own", dataset=OWN, task=TASK)
    spec = experiment(tmp_path)
    run_experiment(plan(spec), lambda line: None, ReadableJournal())
    steps: dict[str, Step] = {step.name: step for step in plan(spec, Storage(spec.compute.storage)).steps}
    weight_KH, _, classes = load_class_heads(steps["sft"].folder / "model")
    assert classes[25:] == ((TASK, "rude"), (TASK, "polite")) and len(weight_KH) == 27
    scores = Scores.from_json(steps["evaluate sft"].file("scores.json").read_bytes())
    (own,) = [score for score in scores.datasets if score.dataset == OWN]
    assert (own.task, own.metric, own.rows) == (TASK, "weighted_f1", 4) and own.value is not None
    assert {score.label for score in own.classes} == {"rude", "polite"}
    assert {score.task for score in scores.tasks} == {"EMO", "NVC", TASK}

"""A model is evaluated as it is beside the trained one: an arm of its own that changes nothing for the others."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hba_ray.errors import CheckpointError, SpecError
from hba_ray.evaluation.arms import Arm, arms_of, baselines
from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.model import MADE
from hba_ray.steps.base import Context
from hba_ray.steps.results.evaluate import EvaluateResult, EvaluateSteps, _generate_job, published_model
from hba_ray.steps.run import do_step
from hba_ray.store.finished import FILES
from hba_ray.store.folders import Storage, finish
from tests.helpers.experiments import small_experiment
from tests.helpers.journals import ReadableJournal
from tests.helpers.stub_judge import KEY, KEY_ENV, StubJudge

PLAIN = {"engine": "transformers", "max_new_tokens": 4}


def with_baselines(storage: Path, *names: str, **generation: object) -> ExperimentSpec:
    return small_experiment(storage, evaluate__baselines=names, evaluate__generation=PLAIN | generation)


def names(spec: ExperimentSpec, storage: Path) -> dict[str, str]:
    """Step -> fingerprint, but for the steps that hold arms against each other."""
    return {step.name: step.fingerprint for step in plan(spec, Storage(storage)).steps if step.kind.name != "compare"}


def test_arms_are_named_after_their_models(tmp_path: Path):
    spec = with_baselines(tmp_path, "google/gemma-3-4b-it", "Qwen/Qwen2.5-Omni-7B", "other/Qwen2.5-Omni-7B")
    assert list(map(str, baselines(spec))) == [
        "zero-shot gemma-3-4b-it",
        "zero-shot Qwen/Qwen2.5-Omni-7B",
        "zero-shot other/Qwen2.5-Omni-7B",
    ]
    assert arms_of(spec)[1:] == list(baselines(spec))
    published = [published_model(spec, arm) for arm in baselines(spec)]
    assert published == ["Gemma-3-4B", "Qwen2.5-Omni-7B", "Qwen2.5-Omni-7B"]


def test_a_baseline_changes_no_other_step_and_depends_on_its_decoding(tmp_path: Path):
    without = names(with_baselines(tmp_path), tmp_path)
    one = names(with_baselines(tmp_path, "tiny"), tmp_path)
    assert {name: one[name] for name in without} == without and len(one) == len(without) + 1
    arm = "evaluate zero-shot tiny"
    for changed in ({"temperature": 0.5}, {"max_new_tokens": 5}, {"seed": 1}, {"prompt": "reasoning"}, {"engine": "vllm"}):
        other = names(with_baselines(tmp_path, "tiny", **changed), tmp_path)
        assert other[arm] != one[arm] and {name: other[name] for name in without} == without
    trained = names(small_experiment(tmp_path, evaluate__baselines=["tiny"], evaluate__generation=PLAIN, sft__lr=0.1), tmp_path)
    assert trained[arm] == one[arm]


def test_a_baseline_that_cannot_be_there_is_refused_before_anything_runs(tmp_path: Path):
    for missing in (str(tmp_path / "nowhere"), "./nowhere", "nowhere"):
        with pytest.raises(CheckpointError, match=r"evaluate\.baselines: no such folder"):
            names(with_baselines(tmp_path, missing), tmp_path)
    with pytest.raises(SpecError, match="no such file"):
        spec = small_experiment(
            tmp_path, evaluate__baselines=["tiny"], evaluate__generation=PLAIN | {"prompt": "reasoning"}, grpo__prompts="nowhere.yaml"
        )
        names(spec, tmp_path)
    with pytest.raises(ValueError, match="named twice"):
        with_baselines(tmp_path, "tiny", "tiny")
    with pytest.raises(ValueError, match=r"model\.backbone is 'a/b'"):
        small_experiment(tmp_path, evaluate__baselines=["tiny"], model__backbone="a/b")


@pytest.mark.parametrize("name", MADE)
def test_a_baseline_that_a_step_of_the_plan_makes_is_taken_from_that_step(name: str, tmp_path: Path):
    steps = {step.name: step for step in plan(with_baselines(tmp_path, "tiny")).steps}
    spec, made, predicts = with_baselines(tmp_path, "tiny"), steps["backbone"], steps["evaluate zero-shot tiny"]
    made.folder.mkdir(parents=True)
    finish(made.folder, {FILES: {}, "version": made.kind.version})
    named = {"model": spec.model.model_copy(update={"backbone": name}), "evaluate": spec.evaluate.model_copy(update={"baselines": (name,)})}
    step = replace(predicts, arm=Arm(baseline=name))
    context = Context(spec.model_copy(update=named), step, {"backbone": made, "atlas": steps["atlas"]})
    do_step(replace(context, step=steps["atlas"], earlier={}), lambda line: None)
    assert _generate_job(context).model == str(made.folder / "model")


def test_the_tiny_model_is_predicted_with_before_training_and_reported_beside_the_trained_one(tmp_path: Path):
    tracker = ReadableJournal()
    finished = run_experiment(plan(with_baselines(tmp_path, "tiny")), lambda line: None, tracker)
    assert list(finished.report.scores) == ["sft", "zero-shot tiny"]
    steps = plan(with_baselines(tmp_path, "tiny"), Storage(tmp_path)).steps
    (step,) = [step for step in steps if step.name == "evaluate zero-shot tiny"]
    predictions = pq.read_table(step.folder / "predictions.parquet").to_pylist()
    trained = finished.report.scores["sft"].datasets
    assert len(predictions) == sum(score.rows for score in trained)
    assert all(record["response"] is not None and record["probability"] is None for record in predictions)
    facts = json.loads((step.folder / "done.json").read_text())
    unread = sum(facts["out_of_domain"].values())
    assert unread == sum(not (record["answer"] if record["dataset"] == "toy_answers" else record["predicted"]) for record in predictions)
    assert any("zero-shot tiny: responses in which no answer" in note and "; for example '" in note for note in finished.report.notes)
    cut = Counter(record["dataset"] for record in predictions if record["cut"])
    assert cut and facts["cut"] == cut and any("ended at the limit of tokens" in note for note in finished.report.notes)
    heads = pq.read_table(next(step for step in steps if step.name == "evaluate sft").folder / "predictions.parquet").to_pylist()
    assert all((record["cut"] is None) == (record["dataset"] != "toy_answers") for record in heads)
    assert any(name.startswith("score/zero-shot tiny/") for name in tracker.metrics)


def test_what_a_model_was_not_shown_is_said(tmp_path: Path):
    result = EvaluateResult(rows=12, arm="zero-shot x", withheld={"audio": 12}, as_images={"video": 3})
    assert EvaluateSteps().notes(with_baselines(tmp_path), result) == [
        "zero-shot x: the model takes no audio, which was withheld from 12 rows.",
        "zero-shot x: the model takes no video; in 3 rows it was given the frames of the video as images.",
    ]


def test_a_model_that_is_not_shown_what_it_was_trained_with_is_no_model_that_was_trained_without_it(tmp_path: Path):
    (said,) = EvaluateSteps().notes(with_baselines(tmp_path), EvaluateResult(rows=12, arm="sft without media"))
    assert said.startswith("'sft without media' was trained with audio and video and is then not shown them")
    assert "(atlas.modalities=[text, image])" in said or "(atlas.modalities=[text])" in said
    assert EvaluateSteps().notes(with_baselines(tmp_path), EvaluateResult(rows=12, arm="sft")) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vllm_serves_a_baseline_of_one_run_whose_open_answers_are_judged_and_reported_with_their_interval(tmp_path: Path, monkeypatch):
    """The trained model beside the same model untrained, served by vLLM on this CPU; a stub judges both over HTTP."""
    monkeypatch.setenv(KEY_ENV, KEY)
    served = {"engine": "vllm", "max_new_tokens": 8, "context": 600}
    shape = {"atlas__toy": {"rows": 350}, "atlas__limit": 6, "atlas__datasets": ["toy_tone", "toy_answers"], "sft__epochs": 1}
    with StubJudge(right="agreement") as stub:
        judge = stub.spec().model_dump(mode="json")
        spec = small_experiment(tmp_path, evaluate__baselines=["tiny"], evaluate__generation=served, evaluate__judge=judge, **shape)
        made = run_experiment(plan(spec), lambda line: None, ReadableJournal())
        asked = stub.graded()
    assert list(made.report.scores) == ["sft", "zero-shot tiny"]
    table = made.table.read_text()
    for arm, scores in made.report.scores.items():
        of = {score.dataset: score for score in scores.datasets}
        assert of["toy_tone"].metric == "mean_weighted_accuracy" and of["toy_tone"].value is not None
        judged = of["toy_answers"]
        assert (judged.metric, judged.rows, judged.unreadable) == ("judge_accuracy", 6, 0)
        assert judged.value is not None and 0 < judged.value < 1, "the stub finds its word in some of the reference answers"
        assert judged.interval is not None and judged.interval[0] < judged.value < judged.interval[1]
        low, high = judged.interval
        assert f"| toy_answers | {arm} | 6 | {judged.value:.3f} | {low:.3f} to {high:.3f} |" in table
        assert f"Open answers of {arm} were graded by {judge['model']}" in table
    step = next(step for step in plan(spec, Storage(tmp_path)).steps if step.name == "evaluate zero-shot tiny")
    answers = [row for row in pq.read_table(step.folder / "predictions.parquet").to_pylist() if row["dataset"] == "toy_answers"]
    assert len(answers) == 6 and all(row["response"] is not None for row in answers)
    assert all(any(row["question"] in turn and (row["answer"] or "") in turn for turn in asked) for row in answers)

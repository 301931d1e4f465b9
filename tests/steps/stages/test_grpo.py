"""The step `grpo` around verl: its name, its log and its record. verl itself runs in tests/rl/test_launch_grpo.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hba_ray.data.atlas import build_index
from hba_ray.errors import SpecError, TrainingError
from hba_ray.runs.plan import plan
from hba_ray.specs import AtlasSpec, ExperimentSpec
from hba_ray.steps.base import Context, Step
from hba_ray.steps.stages.grpo import GrpoResult, GrpoSteps, _join_rollouts, _Log, _series, asked_rows
from hba_ray.store.folders import Storage, read_lines
from tests.helpers.journals import ReadableJournal

ATLAS = AtlasSpec(source="toy")


def spec_of(**given: Any) -> ExperimentSpec:
    toy = given.pop("atlas", {"source": "toy", "toy": {"rows": 96}})
    grpo = {"batch": 8, "mini_batch": 8, **given.pop("grpo", {})}
    return ExperimentSpec.model_validate(
        {"name": "x", "stages": ["grpo"], "atlas": toy, "model": {"backbone": "tiny"}, "grpo": grpo, **given}
    )


def steps_of(folder: Path, **given: Any) -> dict[str, Step]:
    return {step.name: step for step in plan(spec_of(**given), Storage(folder)).steps}


def test_the_stage_adds_a_step_and_an_arm_of_its_own(tmp_path: Path):
    steps = steps_of(tmp_path)
    assert list(steps) == ["atlas", "backbone", "grpo", "evaluate grpo"]
    assert steps["grpo"].uses_ray and "vLLM" in steps["grpo"].resources


def test_what_only_says_how_the_machine_does_it_changes_no_fingerprint(tmp_path: Path):
    first = steps_of(tmp_path)["grpo"].fingerprint
    assert steps_of(tmp_path, grpo={"micro_batch": 1, "save_every": 3, "log_rollouts": 0})["grpo"].fingerprint == first
    assert steps_of(tmp_path, grpo={"rollouts": 4})["grpo"].fingerprint != first
    assert steps_of(tmp_path, seed=1)["grpo"].fingerprint != first


def test_prompts_count_by_what_they_say_and_not_by_their_files_name(tmp_path: Path):
    here, there = tmp_path / "here.yaml", tmp_path / "there.yaml"

    def fingerprint(file: Path, wording: str) -> str:
        file.write_text(f"template: '{{problem}} {wording} <think> </think> \\boxed{{}}'\n")
        return steps_of(tmp_path, grpo={"prompts": str(file)})["grpo"].fingerprint

    assert fingerprint(here, "Why?") == fingerprint(there, "Why?") != fingerprint(there, "How so?")


def test_a_run_from_the_sft_model_depends_on_it_and_one_from_the_backbone_does_not(tmp_path: Path):
    def fingerprint(init: str, lr: float) -> str:
        sft = {"batch": 8, "lr": lr}
        return steps_of(tmp_path, stages=["sft", "grpo"], grpo={"init": init}, sft=sft, compute={"micro_batch": 2})["grpo"].fingerprint

    assert fingerprint("sft", 1e-3) != fingerprint("sft", 1e-4)
    assert fingerprint("backbone", 1e-3) == fingerprint("backbone", 1e-4)


def test_transcripts_are_part_of_what_a_run_is(tmp_path: Path):
    def fingerprints(**descriptors: Any) -> list[str]:
        steps = steps_of(tmp_path, descriptors=descriptors, model={"backbone": str(backbone)})
        return [steps[name].fingerprint for name in ("grpo", "evaluate grpo")]

    backbone = tmp_path / "backbone"
    backbone.mkdir()
    (backbone / "config.json").write_text("{}")
    without, spoken = fingerprints(), fingerprints(streams=["transcripts"])
    assert without == fingerprints(streams=["acoustic"]) and not set(without) & set(spoken)


@pytest.fixture
def log(tmp_path: Path) -> tuple[_Log, ReadableJournal]:
    tracker = ReadableJournal()
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward/score": 0.1}\n{"step": 2, "reward/score": 0.2}\n{"step": 3, "reward/score": 9}\n'
    )
    step = Step(GrpoSteps(), "grpo", "0", tmp_path, "")
    context = Context(spec_of(), step, {}, tracker.log_metrics)
    return _Log(tmp_path / "metrics.jsonl", context, last=2), tracker


def line(step: int, **data: Any) -> Any:
    return {"step": step, "data": data}


def test_lines_behind_the_checkpoint_are_taken_back_and_written_anew(log: tuple[_Log, ReadableJournal], tmp_path: Path):
    own, _ = log
    own.take(line(2, **{"val-core/acc": 0.5}))  # verl's look at the validation split before it goes on
    own.take(line(3, **{"reward/score": 0.3, "timing_s/step": 2.0}))
    kept = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["reward/score"]) for row in kept] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert own.start_seconds < 1


def test_names_that_mlflow_refuses_and_values_that_are_no_numbers_do_not_reach_it(log: tuple[_Log, ReadableJournal]):
    own, tracker = log
    own.take(line(3, **{"val-core/toy/acc/mean@1": 0.5, "training/rollout_corr": None, "reward/score": 1, "global_seqlen/max": 7}))
    assert tracker.metrics == {"grpo/val-core/toy/acc/mean_at_1": {3: 0.5}, "grpo/reward/score": {3: 1.0}}


def test_a_loss_that_is_no_number_ends_the_run(log: tuple[_Log, ReadableJournal]):
    with pytest.raises(TrainingError, match=r"pg_loss.*\s*nan at step 3"):
        log[0].take(line(3, **{"actor/pg_loss": None}))


def test_the_record_compares_the_first_with_the_last_quarter(tmp_path: Path):
    rewards = [0.05, 0.15, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]
    lines = [json.dumps({"step": step, "reward/score": reward, "timing_s/step": 2.0}) for step, reward in enumerate(rewards, 1)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    facts = _series(tmp_path / "m.jsonl")
    assert facts == {
        **{"reward_first_quarter": 0.1, "reward_last_quarter": 0.4, "reward_rise": facts["reward_rise"], "step_seconds": 2.0},
        **{"cut": None, "equal_groups": None, "without_gradients": False},  # a log of a former version does not tell
    }
    (said,) = GrpoSteps().notes(spec_of(), GrpoResult(optimizer_steps=8, **facts))
    assert "0.100 in the first quarter" in said and "0.400 in the last; the difference is 0.300 (-0.335 to 0.935)" in said
    (said,) = GrpoSteps().notes(spec_of(), GrpoResult(optimizer_steps=8, **facts | {"reward_rise": None}))
    assert said.endswith("0.400 in the last.")


def test_a_log_whose_last_line_was_cut_off_is_gone_on_with(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/score": 0.5}\n{"step": 2, "reward/sc')
    step = Step(GrpoSteps(), "grpo", "0", tmp_path, "")
    own = _Log(tmp_path / "metrics.jsonl", Context(spec_of(), step, {}), last=1)
    own.take(line(2, **{"reward/score": 0.25}))
    assert [(row["step"], row["reward/score"]) for row in read_lines(tmp_path / "metrics.jsonl")] == [(1, 0.5), (2, 0.25)]
    assert _series(tmp_path / "metrics.jsonl")["reward_last_quarter"] == 0.25


def test_training_that_changed_nothing_says_so_with_the_reason(tmp_path: Path):
    def notes(**metrics: float) -> str:
        lines = [{"step": step, "reward/score": 0.0, "actor/grad_norm": 0.0, **metrics} for step in (1, 2)]
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = GrpoResult(optimizer_steps=2, **_series(tmp_path / "m.jsonl"))
        return " ".join(GrpoSteps().notes(spec_of(grpo={"response_tokens": 16}), result))

    every = notes(**{"reward/cut": 1.0, "reward/equal_groups": 1.0})
    assert "GRPO learnt nothing: the gradient of every step was 0" in every
    assert "the responses to each prompt all earned the same reward" in every
    assert "all of the sampled responses ended at grpo.response_tokens=16" in every
    usual = notes(**{"reward/cut": 0.25, "reward/equal_groups": 0.5, "actor/grad_norm": 0.1})
    assert (
        "learnt nothing" not in usual
        and "grpo.datasets" not in usual
        and "same reward" not in usual
        and "25.0% of the sampled responses" in usual
    )


def test_only_the_datasets_that_are_named_are_asked_about_and_those_held_out_to_be_scored(toy):
    index = build_index(ATLAS, toy.parquet)
    named = asked_rows(spec_of(grpo={"datasets": ["toy answers"]}), index)
    assert named.counts().keys() == {"toy_answers"} and named.counts()["toy_answers"] == index.counts()["toy_answers"]
    held = {"source": "toy", "held_out": ["toy_nod"]}
    assert asked_rows(spec_of(grpo={"datasets": ["toy_answers"]}, atlas=held), index).counts().keys() == {"toy_answers", "toy_nod"}
    assert asked_rows(spec_of(), index) is index
    with pytest.raises(SpecError, match=r"grpo\.datasets.*no row of 'meld_emotion'"):
        asked_rows(spec_of(grpo={"datasets": ["meld_emotion"]}), index)


def test_the_datasets_are_part_of_what_a_run_is_and_their_absence_is_not(tmp_path: Path):
    first = steps_of(tmp_path)["grpo"].fingerprint
    assert steps_of(tmp_path, grpo={"datasets": None})["grpo"].fingerprint == first
    assert steps_of(tmp_path, grpo={"datasets": ["toy_answers"]})["grpo"].fingerprint != first


def test_a_temperature_that_vllm_would_refuse_after_minutes_is_refused_in_the_spec():
    with pytest.raises(ValueError, match="less than or equal to 2"):
        spec_of(grpo={"temperature": 2.5})


def test_responses_of_all_steps_become_one_table(tmp_path: Path):
    parts = tmp_path / "rollouts"
    parts.mkdir()
    for step in (2, 1):
        pq.write_table(pa.table({"step": [step], "response": ["a"]}), parts / f"step-{step:06d}.parquet")
    _join_rollouts(parts, tmp_path / "rollouts.parquet")
    assert pq.read_table(tmp_path / "rollouts.parquet").column("step").to_pylist() == [1, 2]
    assert not parts.exists()

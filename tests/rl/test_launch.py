from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import RayError, RayTaskError

from hba_ray.errors import BadMedia, CheckpointError, DataError, TrainingError
from hba_ray.rl.dataset import AtlasDataset
from hba_ray.rl.launch import GrpoJob, _located, forget_failures
from hba_ray.rl.records import read_failures
from hba_ray.specs import ExperimentSpec
from tests.rl.conftest import SPEC, Toy


def job_of(toy: Toy, folder: Path, verl: dict[str, object] | None = None, **atlas: str) -> GrpoJob:
    grpo = {"batch": 4, "mini_batch": 4, "verl": verl or {}}
    spec = ExperimentSpec.model_validate(SPEC | {"atlas": {**SPEC["atlas"], **atlas}, "grpo": grpo})
    return GrpoJob(spec, toy.start, toy.index, folder)


def note(job: GrpoJob, **facts: str) -> None:
    with job.failures.open("a") as file:
        file.write(json.dumps({"where": "train row a", "what": "is bad", "way_out": "mend it", **facts}) + "\n")


def test_verl_is_told_where_our_rows_are_and_how_to_read_them(toy: Toy, tmp_path: Path):
    config = job_of(toy, tmp_path).config()
    assert config.data.custom_cls.name == "AtlasDataset"
    assert config.data.train_files == str(tmp_path / "rows" / "train")
    assert config.data.hba.media.video_frames == 4
    assert "{problem}" in config.data.hba.template
    assert config.reward.num_workers == 0
    assert config.trainer.rollout_data_dir == str(tmp_path / "rollouts")


def test_verl_reads_the_rows_of_the_step_and_no_others(toy: Toy, tmp_path: Path):
    """Held-out datasets are gone from its index, and transcripts are in its prompts."""
    held = toy.index.without(["toy_nod"], ["train", "validation"])
    line = int(held.rows_of("train")[0])
    job = replace(job_of(toy, tmp_path), index=replace(held, transcripts={line: "so they said"}))
    job.write_rows()
    config = job.config().data
    data = AtlasDataset(config.train_files, None, config)
    first, second, *_ = (data[item]["raw_prompt"][0]["content"] for item in range(len(data)))
    assert len(data) == len(held.rows_of("train")) < len(toy.index.rows_of("train"))
    sources = {data[item]["data_source"] for item in range(len(data))}
    assert "toy_nod" not in sources and len(sources) > 1
    assert "so they said" in first and "so they said" not in second


def test_what_the_spec_says_of_verl_wins(toy: Toy, tmp_path: Path):
    config = job_of(toy, tmp_path, {"data.dataloader_num_workers": 1, "reward": {"num_workers": 2}}).config()
    assert (config.data.dataloader_num_workers, config.reward.num_workers) == (1, 2)


def test_a_row_that_failed_is_the_error_that_people_see(toy: Toy, tmp_path: Path):
    job = job_of(toy, tmp_path)
    note(job, kind="BadMedia", reason="missing file")
    error = _located(job, RayError("whatever verl says"))
    assert isinstance(error, BadMedia) and error.reason == "missing file"
    assert str(error) == "train row a: is bad\n  mend it"


def test_an_error_of_the_trainer_itself_is_passed_on_as_it_is(toy: Toy, tmp_path: Path):
    own = CheckpointError("harpo.json", "is not in the checkpoint", "start anew")
    error = _located(job_of(toy, tmp_path), RayTaskError("run", "Traceback", own).as_instanceof_cause())
    assert error is own


def test_rows_that_may_be_dropped_are_not_the_reason_of_a_failure(toy: Toy, tmp_path: Path):
    job = job_of(toy, tmp_path, on_bad_row="drop")
    note(job, kind="DataError", reason="prompt too long")
    note(job, kind="TrainingError")
    error = _located(job, RayError("x"))
    assert isinstance(error, TrainingError) and not isinstance(error, DataError)


def test_an_error_without_a_note_says_what_ray_says_last(toy: Toy, tmp_path: Path):
    error = _located(job_of(toy, tmp_path), RayError("Traceback\n  line\nRuntimeError: no memory\n"))
    assert "RuntimeError: no memory" in str(error) and "last checkpoint" in str(error)


@pytest.mark.parametrize(("on_bad_row", "kept"), [("fail", 0), ("drop", 1)])
def test_a_new_attempt_keeps_notes_of_dropped_rows_only(toy: Toy, tmp_path: Path, on_bad_row: str, kept: int):
    job = job_of(toy, tmp_path, on_bad_row=on_bad_row)
    note(job, kind="DataError", reason="prompt too long")
    note(job, kind="TrainingError")
    forget_failures(job)
    assert len(read_failures(job.failures)) == kept

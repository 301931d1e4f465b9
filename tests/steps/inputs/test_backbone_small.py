"""The small model is a step that is named by its sources, and whose line in a plan says what will be fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.errors import CheckpointError, EnvironmentMissing
from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Step
from hba_ray.store.folders import Storage

HUB = {"language": "owner/words", "speech": "openai/whisper-tiny.en"}


def backbone(storage: Path, **small: object) -> Step:
    raw = {"name": "x", "stages": ["sft"], "atlas": {"source": "toy"}, "model": {"backbone": "small", "small": {**HUB, **small}}}
    spec = ExperimentSpec.model_validate({**raw, "compute": {"storage": str(storage), "micro_batch": 2}})
    return next(step for step in plan(spec, Storage(storage)).steps if step.name == "backbone")


def test_the_plan_says_what_is_fetched_and_how_large_it_is(tmp_path: Path):
    assert backbone(tmp_path).what == (
        "small Qwen2.5-Omni of owner/words (from the hub, of unknown size, unless it is in the cache)"
        " and openai/whisper-tiny.en (from the hub, 151 MB, unless it is in the cache)"
    )


def test_its_name_is_that_of_the_weights_wherever_they_lie(tmp_path: Path):
    for place, content in (("one", b"words"), ("moved", b"words"), ("other", b"other words")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.gguf").write_bytes(content)
    one, moved, other = (backbone(tmp_path / "runs", language=str(tmp_path / place)) for place in ("one", "moved", "other"))
    assert one.fingerprint == moved.fingerprint != other.fingerprint
    assert len({backbone(tmp_path).fingerprint, backbone(tmp_path, seed=1).fingerprint, one.fingerprint}) == 3


def test_a_source_that_is_not_there_is_refused_when_planning(tmp_path: Path):
    with pytest.raises(EnvironmentMissing, match=r"model\.small\.language: the package 'nowhere' is not installed"):
        backbone(tmp_path, language="package:nowhere")
    with pytest.raises(CheckpointError, match=r"model\.small\.speech: no such folder: /nowhere"):
        backbone(tmp_path, speech="/nowhere")

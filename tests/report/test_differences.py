"""One place knows in what a spec differs from the paper and from the released code."""

from __future__ import annotations

from typing import Any

import pytest

from hba_ray.report.differences import VALUES, differences, sentences, value_table
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import flat
from hba_ray.specs.experiment import AUTHORS
from hba_ray.specs.sections.grpo import NOT_OF_RESULTS


def spec(**fields: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "released", "root": "a"}} | fields)


def keys(other: str, **fields: Any) -> set[str]:
    return {one.key for one in differences(spec(**fields)) if one.differs_from == other and one.is_value}


def test_a_default_spec_is_the_paper_s_but_for_what_is_named():
    stages = ["sft", "bam", "grpo"]
    assert keys("the paper", stages=stages) == set()
    assert keys("the paper", stages=stages, sft={"epochs": 2}, grpo={"lr": 1e-6}) == {"sft.epochs", "grpo.lr"}
    assert keys("the paper", stages=["sft"], bam={"epochs": 9}) == set(), "a stage that is not run makes no difference"


def test_the_sizes_and_sources_of_a_model_that_is_built_here_are_no_difference():
    tiny = {"backbone": "tiny", "tiny": {"hidden": 64}}
    small = {"backbone": "small", "small": {"language": "owner/words", "seed": 3}}
    assert keys("the paper", stages=["sft"], model=tiny) == keys("the paper", stages=["sft"], model=small) == {"model.backbone"}


def test_every_setting_of_the_released_code_is_named_and_none_under_compat_authors():
    stages, harpo = ["sft", "bam", "grpo"], {"algorithm": "harpo"}
    found = {one.key for one in differences(spec(stages=stages, grpo=harpo)) if one.differs_from == "the released code"}
    left_out = {f"grpo.{name}" for name in NOT_OF_RESULTS}
    assert {key for key in flat(AUTHORS) if key not in left_out} <= found
    assert keys("the released code", stages=stages, compat="authors", grpo=harpo) == set()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stages": ["sft"], "compute": {"gpus_per_worker": 1}}, "bf16"),
        ({"stages": ["sft"], "compute": {"gpus_per_worker": 1}, "model": {"precision": "tf32"}}, "TF32"),
        ({"stages": ["sft", "bam"]}, "learning rates are constant"),
        ({"stages": ["transfer"], "atlas": {"source": "released", "root": "a", "held_out": ["mmsd"]}}, "cosine without warm-up"),
        ({"stages": ["grpo"]}, "read leniently"),
        ({"stages": [], "evaluate": {"baselines": ["a/b"]}}, "read leniently"),
        ({"stages": ["sft"]}, "passes no audio or video"),
    ],
)
def test_what_the_paper_leaves_out_is_said(fields: dict[str, Any], said: str):
    assert any(said in line for line in sentences(differences(spec(**fields))))
    if said == "bf16":
        exact = {**fields, "model": {"precision": "fp32"}}
        assert not any(said in line for line in sentences(differences(spec(**exact))))


def test_responses_of_another_length_than_in_training_are_told():
    def told(trained: int, scored: int) -> bool:
        lengths = spec(stages=["grpo"], grpo={"response_tokens": trained}, evaluate={"generation": {"max_new_tokens": scored}})
        return any("another length where the model is scored" in line for line in sentences(differences(lengths)))

    assert told(4096, 512) and not told(512, 512)


def test_values_that_differ_stand_in_a_table_of_keys():
    found = differences(spec(stages=["sft"], sft={"epochs": 2}))
    rows = {row[0]: row[1:] for row in value_table(found, missing="–")}
    assert VALUES == ("key", "ours", "the paper", "the released code")
    assert rows["sft.epochs"] == ("2", "5", "10")
    assert rows["model.lora.scope"][1] == "–", "the paper says nothing of it"
    assert "model.prompt_layout" not in rows, "what is said in words needs no values"

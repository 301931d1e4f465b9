"""Arms are printed and parsed in one place; which arms a spec has, and what each is held against."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.evaluation.arms import ADAPTED, SFT, Arm, arms_of, held_against
from hba_ray.specs import ExperimentSpec

STAGES = st.lists(st.sampled_from(["sft", "bam", "transfer", "grpo"]), min_size=1, max_size=3, unique=True).map(tuple)
WITHHELD = st.lists(st.sampled_from(["audio", "video", "image"]), max_size=3, unique=True).map(tuple)
TRAINED = st.builds(Arm, stages=STAGES, withheld=WITHHELD)
BASELINE = st.builds(Arm, baseline=st.sampled_from(["tiny", "Qwen2.5-Omni-7B", "owner/a model without audio", "a+b"]))
PROBE = st.builds(Arm, probe=st.sampled_from(["pose", "acoustic"]))


def spec(**sections: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "model": {"backbone": "tiny"}, **sections})


@given(st.one_of(TRAINED, BASELINE, PROBE))
def test_an_arm_is_what_its_name_says(arm: Arm):
    assert Arm.parse(str(arm)) == arm


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"stages": ["sft", "bam"]}, ["sft", "sft+bam"]),
        ({"stages": ["sft", "bam"], "bam": {"raw_media": False}}, ["sft", "sft without media", "sft+bam"]),
        (
            {"stages": ["sft", "bam"], "evaluate": {"robustness": ["audio"], "baselines": ["tiny"]}},
            ["sft", "sft+bam", "sft without audio", "sft+bam without audio", "zero-shot tiny"],
        ),
        ({"stages": ["sft", "bam"], "bam": {"raw_media": False}, "evaluate": {"robustness": ["audio"]}},
         ["sft", "sft without media", "sft+bam", "sft without audio"]),
        ({"stages": ["sft", "grpo"], "grpo": {"batch": 4, "mini_batch": 4}}, ["sft", "grpo"]),
    ],
)  # fmt: skip
def test_a_spec_comes_to_these_arms(sections: dict, names: list[str]):
    assert [str(arm) for arm in arms_of(spec(**sections))] == names


def test_an_arm_is_held_against_what_it_adds_to_or_is_less_than():
    of = spec(stages=["sft", "bam"], bam={"raw_media": False}, evaluate={"robustness": ["audio"], "baselines": ["tiny"]})
    arms = arms_of(of)
    against = {str(arm): str(held_against(of, arm, arms)) for arm in arms}
    assert against == {
        "sft": "None",
        "sft without media": "sft",
        "sft+bam": "sft without media",
        "sft without audio": "sft",
        "zero-shot tiny": "sft",
    }


def test_what_an_arm_answers_by():
    assert Arm.parse("grpo").is_generative and Arm.parse("zero-shot tiny").is_generative
    assert not SFT.is_generative and not ADAPTED.is_generative and ADAPTED.has_adapters
    assert Arm.parse("sft+transfer").is_transferred and Arm.parse("sft+bam without video").whole == ADAPTED

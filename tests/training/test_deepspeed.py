"""The DeepSpeed settings are a pure function of the spec."""

import pytest

from hba_ray.training.deepspeed import deepspeed_settings
from tests.helpers.sft_jobs import small_spec


def test_the_papers_batch_comes_out_of_micro_batch_accumulation_and_workers():
    spec = small_spec(sft={"batch": 512}, compute={"workers": 2, "micro_batch": 2})
    assert deepspeed_settings(spec, bf16=True) == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 128,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_stage_is_the_specs(stage):
    settings = deepspeed_settings(small_spec(compute={"zero": stage}), bf16=False)
    assert settings["zero_optimization"]["stage"] == stage
    assert ("stage3_prefetch_bucket_size" in settings["zero_optimization"]) == (stage == 3)


def test_no_norm_means_no_clipping():
    assert deepspeed_settings(small_spec(sft={"max_gradient_norm": None}), bf16=False)["gradient_clipping"] == 0.0

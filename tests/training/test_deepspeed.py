"""The DeepSpeed settings are a pure function of the spec."""

import pytest
import torch
from deepspeed.utils import safe_get_full_grad

from hba_ray.training.deepspeed import deepspeed_settings, join_process_group, start_engine
from tests.helpers.sft_jobs import small_spec


def test_the_papers_batch_comes_out_of_micro_batch_accumulation_and_workers():
    spec = small_spec(sft={"batch": 512}, compute={"workers": 2, "micro_batch": 2})
    assert deepspeed_settings(spec, bf16=True) == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 128,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_of_many_micro_batches_add_up_in_fp32(stage):
    micro_batches = 128
    spec = small_spec(sft={"batch": micro_batches}, compute={"workers": 1, "micro_batch": 1, "zero": stage})
    join_process_group(gpu=False)
    model = torch.nn.Linear(8, 4, bias=False, dtype=torch.bfloat16)
    engine = start_engine(model, spec, steps=2, bf16=True)
    inputs = torch.rand(micro_batches, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for number, row in enumerate(inputs):
        engine.set_gradient_accumulation_boundary(number + 1 == micro_batches)
        engine.backward(engine(row[None]).sum())
        if number + 1 < micro_batches:
            engine.step()
    gradient = safe_get_full_grad(model.weight)
    engine.destroy()
    expected = inputs.double().mean(dim=0).expand(4, 8)  # DeepSpeed divides by the number of micro-batches
    torch.testing.assert_close(gradient.double(), expected, rtol=4e-3, atol=0)  # half a step of bf16, and not their sum's

"""Models of the released sizes go through the code of the toy: shapes and dtypes without memory, and one real row at 3B."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from hba_ray.models.backbone import apply_training
from hba_ray.models.omni import OmniSapiens
from hba_ray.models.size.estimates import GIB, Processes, trainable, training_memory
from hba_ray.models.size.published import OMNI_7B
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.model import ModelSpec
from tests.helpers.sizes import config_of, row_of

NEEDED_GIB = 14
CEILING_GIB = 13
"""What the measuring process may hold; beyond it, it ends with an error and the machine is left alone."""


@pytest.mark.parametrize("train", ["lora", "all"])
def test_a_7b_model_has_the_toys_parts_and_the_estimated_bytes(train: str):
    spec = ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "model": {"train": train}, "sft": {"batch": 2}})
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            thinker = Qwen2_5OmniThinkerForConditionalGeneration(config_of(OMNI_7B))
            trained = apply_training(thinker, spec.model, gradient_checkpointing=True)
            model = OmniSapiens(trained, OMNI_7B.text.hidden)
    finally:
        torch.set_default_dtype(torch.float32)
    weights = dict(model.backbone.named_parameters())
    assert {weight.dtype for name, weight in weights.items() if "lora_" not in name} == {torch.bfloat16}
    assert {weight.device.type for weight in weights.values()} == {"meta"}
    changed = sum(weight.numel() for weight in weights.values() if weight.requires_grad)
    assert changed == pytest.approx(trainable(OMNI_7B, spec.model), rel=1e-4)
    if train == "lora":
        assert changed == 80_740_352  # paper appendix C.2's rank, on the language model alone
    held = training_memory(OMNI_7B, spec.model, row_of(100), Processes())
    assert held.weights == 2 * sum(weight.numel() for name, weight in weights.items() if "lora_" not in name)
    assert [head.weight.shape[1] for head in model.heads] == [3584] * 7  # type: ignore[union-attr]


def available_gib() -> float:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) / 2**20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(available_gib() < NEEDED_GIB, reason=f"needs {NEEDED_GIB} GiB of free memory")
def test_the_memory_of_a_row_at_3b_is_the_estimated_one():
    """In a process of its own: a LoRA forward pass in bf16 of a row with sound and video, its activations kept."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.helpers.one_row_at_3b", str(CEILING_GIB)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["finite"] and found["dtype"] == "torch.bfloat16" and found["classes"] == 25
    for part in ("weights", "kept", "held"):
        assert found[part]["measured"] == pytest.approx(found[part]["estimated"], rel=0.2), found
    assert found["peak"]["measured"] / GIB < CEILING_GIB


def test_what_layers_keep_is_the_estimated_memory():
    """Counted on the meta of autograd: every tensor that the backward pass of a small model would read."""
    from tests.helpers.one_row_at_3b import kept_by

    for train in ("lora", "all"):
        measured, estimated = kept_by(ModelSpec.model_validate({"train": train}))
        assert measured == pytest.approx(estimated, rel=0.2), train

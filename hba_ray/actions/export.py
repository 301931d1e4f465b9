"""The trained model of a run, as a folder that transformers and vLLM load by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

from hba_ray.errors import SpecError
from hba_ray.evaluation.arms import ADAPTED, SFT, Arm
from hba_ray.models.checkpoints import load_model, model_identity
from hba_ray.models.export import ADAPTERS
from hba_ray.models.settings import SETTINGS, SYSTEM_PROMPT
from hba_ray.models.tensors import new_folder
from hba_ray.runs.plan import Experiment
from hba_ray.steps.stages.bam import ADAPTERS as TRAINED_ADAPTERS
from hba_ray.store.folders import copy_folder, write_text
from hba_ray.store.scratch import folder_here

ABOUT_ADAPTERS = """# Adapters of this model

The folder above is the SFT model: transformers and vLLM load it, and leave these adapters alone. What they
add to the hidden state before the last decoder layer, h^(L-1) + delta(descriptors), is part of no layout
that those libraries read. In Python:

    from hba_ray.models.export import load_exported_adapters
    bam = load_exported_adapters(Path(EXPORT), DATASET)

`bam(descriptors)` is delta, `bam.class_logits(h, delta)` the classes from the pooled h^(L-1), and
`hba_ray.models.bam.attached` lets delta join generation.
"""


def exportable(run: Experiment) -> dict[str, str]:
    """Arm -> kind of the step that made its model; BAM's arm is the SFT model with adapters beside it."""
    kinds = {step.kind.name for step in run.steps}
    return {str(arm): str(arm.last_stage) for arm in (SFT, ADAPTED, Arm(("grpo",))) if arm.last_stage in kinds}


def export_run(run: Experiment, arm: str | None = None, to: Path | None = None) -> Path:
    """Writes a run's model in the full Qwen2.5-Omni layout, LoRA merged, with its heads and adapters beside it.

    Args:
        arm: the last stage's by default.
        to: folder to write, replaced where it exists; `model-<arm>` in the run's folder by default.

    Returns:
        The folder. Adapters in it are for our own code; `ABOUT_ADAPTERS`, written beside them, says why and how.

    Raises:
        SpecError: the run has no such arm.
        HbaError: a step of the run is not finished.
        CheckpointError: the backbone or the checkpoint cannot be used.
    """
    arms = exportable(run)
    arm = arm or next(reversed(arms), "of the last stage")
    if arm not in arms:
        raise SpecError(f"arm {arm}", "the run has no model of this name", f"it has: {', '.join(arms) or 'none that can be exported'}")
    steps = run.finished_steps()
    to = to or run.folder / f"model-{arm}"
    if arms[arm] == "grpo":
        with new_folder(to) as draft:
            copy_folder(steps["grpo"].whole() / "model", draft)
        return to
    with new_folder(to) as draft:
        _export_sft(run, draft)
        if arms[arm] == "bam":
            copy_folder(steps["bam"].whole() / TRAINED_ADAPTERS, draft / ADAPTERS)
            write_text(draft / ADAPTERS / "README.md", ABOUT_ADAPTERS)
    return to


def _export_sft(run: Experiment, to: Path) -> None:
    import torch

    from hba_ray.models.backbone import load_processor
    from hba_ray.models.export import export_model
    from hba_ray.training.sft import build_model

    context = run.context("sft")
    backbone = context.backbone
    model = build_model(run.spec, backbone, bf16=False)  # LoRA is merged in fp32
    trained = context.step.whole() / "model"
    load_model(model, trained)
    dtype = torch.bfloat16 if run.spec.uses_bf16 else torch.float32
    identity = model_identity(backbone, trained, memory=folder_here(run.spec.compute.storage))
    export_model(model, load_processor(backbone), to, dtype=dtype, identity=identity)
    for name in (SETTINGS, SYSTEM_PROMPT):
        if (trained / name).is_file():
            shutil.copyfile(trained / name, to / name)

"""The rows of a spec through transformers and vLLM, on the model that its GRPO would start from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import MAKERS
from hba_ray.steps.base import Context
from hba_ray.store.folders import Storage, claimed, finish
from hba_ray.store.follow import Metrics

if TYPE_CHECKING:
    from hba_ray.rl.parity import RowParity


def check_rollout(spec: ExperimentSpec, rows: int, say: Callable[[str], None]) -> list[RowParity]:
    """
    Args:
        rows: of each set of modalities in the training split, the first ones.

    Raises:
        HbaError: the atlas or the backbone cannot be used, or vLLM is not installed.
    """
    import torch

    from hba_ray.rl.checkpoints import write_start
    from hba_ray.rl.parity import compare

    folders: dict[str, Path] = {}
    context = Context(spec, folders, Path(), _not_logged)
    for step in plan(spec.model_copy(update={"stages": ("sft",)}), Storage(spec.compute.storage)):
        if step.kind not in ("atlas", "backbone"):
            continue
        with claimed(step.folder, wait_seconds=3600):
            if not step.is_done:
                say(f"{step.name} {step.fingerprint}: {step.what}")
                finish(step.folder, MAKERS[step.kind](Context(spec, folders, step.folder, _not_logged)))
        folders[step.name] = step.folder
    index = context.index
    signatures = index.table.column("modality_signature").to_pylist()
    lines: dict[str, list[int]] = {}
    for line in index.rows_of("train"):
        lines.setdefault(signatures[line], []).append(int(line))
    chosen = [line for found in lines.values() for line in found[:rows]]
    with tempfile.TemporaryDirectory(prefix="hba-rollout-") as folder:
        start = Path(folder) / "start"
        write_start(spec, context.backbone, None, start, dtype=torch.bfloat16 if spec.uses_bf16 else torch.float32)
        say(f"vLLM answers {len(chosen)} rows")
        return compare(str(start), str(folders["atlas"] / "train"), chosen, spec.atlas.media, spec.atlas.modalities)


def _not_logged(metrics: Metrics, step: int) -> None:
    """Takes the metrics of steps that belong to no run."""

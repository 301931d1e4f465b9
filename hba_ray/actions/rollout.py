"""`hba doctor rollout`: compares what transformers and vLLM make of the rows of a spec, on its backbone, before any training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.runs.plan import plan
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Step
from hba_ray.steps.run import do_step

if TYPE_CHECKING:
    from hba_ray.rl.parity import RowParity


def check_rollout(spec: ExperimentSpec, rows: int, say: Callable[[str], None]) -> list[RowParity]:
    """Compares vLLM's prompts, probabilities and greedy answers with those of transformers.

    Args:
        rows: of each set of modalities in the training split, the first ones.

    Raises:
        HbaError: the atlas or the backbone cannot be used, or vLLM is not installed.
    """
    import torch

    from hba_ray.rl.checkpoints import write_start
    from hba_ray.rl.parity import compare

    earlier: dict[str, Step] = {}
    planned = plan(spec.model_copy(update={"stages": ("sft",)}))
    spec = planned.spec
    for step in planned.steps:
        if step.kind.name in ("atlas", "backbone"):
            do_step(Context(spec, step, dict(earlier)), say)
            earlier[step.name] = step
    context = Context(spec, earlier["atlas"], earlier)
    index = context.index
    signatures = index.table.column("modality_signature").to_pylist()
    lines: dict[str, list[int]] = {}
    for line in index.rows_of("train"):
        lines.setdefault(signatures[line], []).append(int(line))
    chosen = [line for found in lines.values() for line in found[:rows]]
    with tempfile.TemporaryDirectory(prefix="hba-rollout-") as folder:
        start, rows_there = Path(folder) / "start", Path(folder) / "rows"
        rows_there.mkdir()
        index.save(rows_there)
        write_start(spec, context.backbone, None, start, dtype=torch.bfloat16 if spec.uses_bf16 else torch.float32)
        say(f"vLLM answers {len(chosen)} rows")
        return compare(str(start), str(rows_there / "train"), chosen, spec.atlas.media, spec.atlas.modalities)

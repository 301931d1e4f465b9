"""The pack step: every clip is decoded once, and kept as models are shown it, for all stages and trials (`compute.pack`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hba_ray.progress import progress
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Draft, Result, StepKind


@dataclass(frozen=True, kw_only=True)
class PackResult(Result):
    """What the pack step says of itself.

    Attributes:
        rows: that are packed, bad ones included; stages refuse or drop these, as they would without a pack.
        mib: of all files.
    """

    rows: int
    mib: float


class PackSteps(StepKind[PackResult]):
    """The clips of all rows, decoded within `atlas.media`. No result depends on it, so it enters no other step's name."""

    name = "pack"
    result_type = PackResult

    def plan(self, draft: Draft) -> None:
        if draft.spec.compute.pack:
            what = "decode every clip once, for all stages"
            resources = "all CPUs" if draft.spec.compute.workers else "1 CPU"
            draft.add(self, _identity(draft), what, resources=resources, uses_ray=True)

    def make(self, context: Context) -> PackResult:
        from hba_ray.data.feed.packing import Packing
        from hba_ray.data.feed.spread import spread_here, spread_on_ray

        index = context.whole_index
        with progress("pack", total=len(index.table)) as bar:
            packing = Packing(index, context.spec.atlas.media, context.folder)
            packing.write(spread_on_ray if context.spec.compute.workers else spread_here, bar.advance)
        size = sum(file.stat().st_size for file in context.folder.rglob("*") if file.is_file())
        return PackResult(rows=len(index.table), mib=round(size / 2**20, 1))

    def notes(self, spec: ExperimentSpec, result: PackResult) -> list[str]:
        return [f"Clips were decoded once for all stages: {result.rows} rows, {result.mib:.0f} MiB."]

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        from hba_ray.data.packed import SHARDS

        files = len(list((folder / SHARDS).glob("*.arrow")))
        return f"file {files}" if files else ""


def _identity(draft: Draft) -> Mapping[str, Any]:
    return {"atlas": draft["atlas"].fingerprint, "media": draft.spec.atlas.media.identity()}

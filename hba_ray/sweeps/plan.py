"""Spec -> steps. Each step is named by the fingerprint of all that its result depends on.

`compute` and `tracking` are no part of it: the same experiment on another machine is the same
experiment. Steps that two specs share have the same fingerprint, and are done once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hba_ray.data.atlas import find_shards
from hba_ray.errors import CheckpointError, DataError
from hba_ray.runtime.storage import Storage, done
from hba_ray.specs import AtlasSpec, ExperimentSpec, fingerprint

Kind = Literal["atlas", "backbone", "sft", "evaluate"]

VERSIONS: dict[Kind, int] = {"atlas": 1, "backbone": 1, "sft": 1, "evaluate": 1}
"""Raised when the code of a step changes what it makes, so that old results are not taken for new ones."""
_EDGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Step:
    """One unit of work.

    Attributes:
        what: one line for people.
        resources: one line of what it needs at a time.
    """

    kind: Kind
    fingerprint: str
    folder: Path
    what: str
    resources: str = "1 CPU"

    @property
    def is_done(self) -> bool:
        return done(self.folder) is not None


def plan(spec: ExperimentSpec, storage: Storage) -> list[Step]:
    """The steps of an experiment, in order.

    Raises:
        DataError: the atlas or a converter's files are not there.
        CheckpointError: the backbone is a folder that is not there.
    """
    atlas = _step(
        storage, "atlas", _atlas_identity(spec), f"{spec.atlas.source} atlas" + (f" at {spec.atlas.root}" if spec.atlas.root else "")
    )
    steps = [atlas]
    backbone = _backbone_identity(spec, atlas.fingerprint)
    if spec.model.backbone == "tiny":
        tiny = spec.model.tiny
        what = f"tiny Qwen2.5-Omni, {tiny.layers} layers of {tiny.hidden}, random weights"
        steps.append(_step(storage, "backbone", backbone, what))
    compute = spec.compute
    gpus = f", {compute.workers * compute.gpus_per_worker:g} GPUs" if compute.gpus_per_worker else ""
    workers = max(1, compute.workers)
    cpus = workers * compute.cpus_per_worker + compute.workers * compute.loaders * compute.cpus_per_loader
    needs = f"{cpus:g} CPUs{gpus} ({workers} worker{'s' if workers > 1 else ''})"
    seen = {
        "atlas": atlas.fingerprint,
        "backbone": fingerprint(backbone),
        "media": spec.atlas.media.identity(),
        "modalities": sorted(spec.atlas.modalities),
        "model": spec.model.model_dump(mode="json", exclude={"backbone", "tiny"}),
        "seed": spec.seed,
    }
    trained = seen
    for stage in spec.stages:
        trained = {"before": fingerprint(trained), "stage": stage, "sft": spec.sft.identity(), **seen}
        what = f"{spec.sft.epochs} epochs of {spec.model.train} training, batch {spec.sft.batch}, lr {spec.sft.lr:g}"
        steps.append(_step(storage, stage, trained, what, needs))
    evaluate = {"model": fingerprint(trained), "evaluate": spec.evaluate.identity()}
    steps.append(_step(storage, "evaluate", evaluate, f"predict and score the {spec.evaluate.split} split", needs))
    return steps


def run_fingerprint(steps: list[Step]) -> str:
    """Names the experiment: what its last step's result depends on."""
    return steps[-1].fingerprint


def _step(storage: Storage, kind: Kind, identity: dict[str, Any], what: str, resources: str = "1 CPU") -> Step:
    name = fingerprint({"kind": kind, "version": VERSIONS[kind], **identity})
    return Step(kind, name, storage.step(kind, name), what, resources)


def _atlas_identity(spec: ExperimentSpec) -> dict[str, Any]:
    """What the rows are: the generator's settings, or the content of the files."""
    atlas = spec.atlas
    chosen = atlas.model_dump(mode="json", include={"source", "format", "datasets", "on_bad_row", "limit", "split_surprise", "split_by"})
    if atlas.source == "toy":
        return {**chosen, "toy": atlas.toy.identity()}
    if atlas.source == "released":
        return {**chosen, "files": _digest_shards(atlas)}
    return {**chosen, "files": _digest_sources(Path(atlas.root or "")), "seed": spec.seed}


def _digest_shards(atlas: AtlasSpec) -> list[list[Any]]:
    root = Path(atlas.root or "")
    return [[Path(shard.path).name, shard.split, *_digest(Path(shard.path))] for shard in find_shards(root, atlas.format)]


def _digest_sources(root: Path) -> list[list[Any]]:
    """A converter's tables; its clips are named in them."""
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "give the folder of the public files as atlas.root", reason="missing file")
    return [[path.name, *_digest(path)] for path in sorted(root.iterdir()) if path.suffix in (".csv", ".json")]


def _backbone_identity(spec: ExperimentSpec, atlas: str) -> dict[str, Any]:
    model = spec.model
    if model.backbone == "tiny":
        return {"tiny": model.tiny.identity(), "atlas": atlas, "audio_seconds": spec.atlas.media.audio_seconds}
    folder = Path(model.backbone).expanduser()
    if folder.is_dir():
        return {"folder": [[path.name, *_digest(path)] for path in sorted(folder.iterdir()) if path.is_file()]}
    if folder.is_absolute() or model.backbone.startswith("."):
        raise CheckpointError("model.backbone", f"no such folder: {model.backbone}", "give a folder, a hub id, or tiny")
    return {"hub": model.backbone}


def _digest(path: Path) -> tuple[int, str]:
    """Size and a digest of a file's two ends: enough to notice a change, cheap enough for 300 GB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_EDGE_BYTES)
        if size > 2 * _EDGE_BYTES:
            file.seek(-_EDGE_BYTES, 2)
        ends += file.read(_EDGE_BYTES)
    return size, hashlib.sha256(ends).hexdigest()[:16]

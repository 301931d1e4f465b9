"""The backbone step: builds the tiny model. Its vocabulary comes from the training text; a real backbone is only named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hba_ray.errors import CheckpointError
from hba_ray.runtime.progress import progress
from hba_ray.specs import fingerprint
from hba_ray.sweeps.steps.base import Context, Draft, Step, digest_file


def plan(draft: Draft) -> Step | None:
    """None where the backbone is a folder or a hub id: then nothing has to be made."""
    if draft.spec.model.backbone != "tiny":
        return None
    tiny = draft.spec.model.tiny
    return draft.add("backbone", _identity(draft), f"tiny Qwen2.5-Omni, {tiny.layers} layers of {tiny.hidden}, random weights")


def identity(draft: Draft) -> str:
    """What names the backbone's content in the fingerprints of later steps.

    Raises:
        CheckpointError: the backbone is a folder that is not there.
    """
    return fingerprint(_identity(draft))


def _identity(draft: Draft) -> dict[str, Any]:
    model = draft.spec.model
    if model.backbone == "tiny":
        seconds = draft.spec.atlas.media.audio_seconds
        return {"tiny": model.tiny.identity(), "atlas": draft["atlas"].fingerprint, "audio_seconds": seconds}
    folder = Path(model.backbone).expanduser()
    if folder.is_dir():
        return {"folder": [[path.name, *digest_file(path)] for path in sorted(folder.iterdir()) if path.is_file()]}
    if folder.is_absolute() or model.backbone.startswith("."):
        raise CheckpointError("model.backbone", f"no such folder: {model.backbone}", "give a folder, a hub id, or tiny")
    return {"hub": model.backbone}


def make(context: Context) -> dict[str, Any]:
    from hba_ray.models.tiny import build_tiny

    spec = context.spec
    with progress("backbone", total=None):
        build_tiny(spec.model.tiny, context.folder / "model", context.index.texts("train"), audio_seconds=spec.atlas.media.audio_seconds)
    return {}

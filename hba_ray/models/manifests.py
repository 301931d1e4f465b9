"""Reads the small JSON files that describe checkpoints. Nothing of torch is loaded here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hba_ray.errors import CheckpointError

MOST_BYTES = 1 << 20
"""The manifests that we and the released code write have a few kilobytes."""


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint's folder.

    Raises:
        CheckpointError: the file is missing, is no regular file, is larger than a manifest can be, or holds no JSON object.
    """
    path = folder / name
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(str(path), "is no file", "give the folder that was saved")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as cause:
        raise CheckpointError(str(folder), f"is no checkpoint: it holds no {name}", "give the folder that was saved") from cause
    if len(text) > MOST_BYTES:
        raise CheckpointError(str(path), "is larger than 1 MiB, so it describes no checkpoint", "use another checkpoint")
    try:
        manifest = json.loads(text)
        json.dumps(manifest, ensure_ascii=False).encode()  # half a character could enter no fingerprint
    except (ValueError, RecursionError) as cause:
        raise CheckpointError(str(path), f"is damaged: {cause}", "use another checkpoint") from cause
    if not isinstance(manifest, dict):
        raise CheckpointError(str(path), "is damaged: not a JSON object", "use another checkpoint")
    return manifest

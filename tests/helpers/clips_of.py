"""Small released atlases of rows that a test names, with sounds and films of known length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def sound(file: Path, seconds: float) -> Path:
    """A WAV of so many seconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.1 * np.sin(np.arange(int(seconds * 8000)) / 5), 8000, subtype="PCM_16")
    return file


def write_rows(folder: Path, **splits: Sequence[Mapping[str, Any]]) -> Path:
    """A jsonl atlas of these rows, by split; a row without a question has one."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [json.dumps({"problem": f"Words {place}.\nHow is it?", **row}) for place, row in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder

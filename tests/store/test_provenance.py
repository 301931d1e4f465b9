"""Provenance tells the source, the machine and the process, and costs no heavy import."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import hba_ray
from hba_ray.store.provenance import Process, changes, environment, source


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "tracked.txt").write_text("one")
    git(tmp_path, "add", "tracked.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_environment_is_plain_json_and_names_the_installed_versions() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["hba_ray"] == hba_ray.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["torch"].startswith("2.")
    assert facts["cpus"] >= 1 and facts["user"]


def test_a_changed_file_makes_the_commit_dirty(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert source(checkout) == (commit, False)
    (checkout / "tracked.txt").write_text("two")
    assert source(checkout) == (commit, True)


def test_changes_are_a_patch_whatever_the_bytes_of_the_file_are(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hba_ray, "__file__", str(checkout / "tracked.txt"))
    monkeypatch.delenv("HBA_DIFF", raising=False)
    (checkout / "tracked.txt").write_bytes("zwölf".encode("latin-1"))
    assert "+zw\ufffdlf" in changes()


def test_a_package_installed_inside_someone_elses_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "hba_ray"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert source(installed) == (None, None)


def test_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert source(tmp_path) == (None, None)


def test_a_process_is_alive_until_it_ends_even_where_its_id_is_used_again() -> None:
    mine = Process.current()
    assert Process.from_text(mine.to_text()) == mine
    assert mine.is_alive()
    assert not replace(mine, boot="another start of the machine").is_alive()
    assert not replace(mine, started=mine.started + 1).is_alive()

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    other = replace(mine, pid=child.pid, started=started)
    assert other.is_alive()
    child.communicate(b"\n")
    assert not other.is_alive()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"host": "x"}', "not json"])
def test_a_foreign_tag_is_no_process(text: str) -> None:
    assert Process.from_text(text) is None

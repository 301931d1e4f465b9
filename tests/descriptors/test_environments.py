"""An extractor's environment is named, checked and built whole, or the error says which package failed and how to go on."""

import sys
from pathlib import Path

import pytest

from hba_ray.descriptors import environments
from hba_ray.descriptors.environments import ENVIRONMENTS, Environment, build, default_folder, runtime_env
from hba_ray.errors import EnvironmentMissing


def test_what_is_installed_here_needs_no_other_environment(monkeypatch, tmp_path):
    monkeypatch.setitem(ENVIRONMENTS, "acoustic", Environment("numpy", environments.metadata.version("numpy"), "numpy"))
    assert runtime_env("acoustic", tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_another_version_is_not_the_one_that_tables_are_named_after():
    assert not Environment("numpy", "0.0.1", "numpy").is_here
    assert not Environment("no-such-package-at-all", "1", "none").is_here


def test_decoding_and_ray_are_those_of_this_environment():
    wanted = ENVIRONMENTS["pose"].requirements
    assert wanted[0] == "mediapipe==0.10.21" and "numpy<2" in wanted and "protobuf<5" in wanted
    assert f"ray[data]=={environments.metadata.version('ray')}" in wanted and f"av=={environments.metadata.version('av')}" in wanted


def test_a_named_python_that_is_not_there_is_refused_before_ray_tries_it(tmp_path):
    with pytest.raises(EnvironmentMissing, match="cannot be started") as refused:
        runtime_env("pose", tmp_path, str(tmp_path / "bin" / "python"))
    assert "uv pip install" in refused.value.way_out and "'mediapipe==0.10.21'" in refused.value.way_out


def test_a_named_python_without_the_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(ENVIRONMENTS, "pose", Environment("mediapipe", "0.10.21", "no_such_module"))
    with pytest.raises(EnvironmentMissing, match="no_such_module"):
        runtime_env("pose", tmp_path, sys.executable)


@pytest.fixture
def fake_uv(monkeypatch, tmp_path) -> Path:
    """A `uv` that fails like the real one where a package does not exist."""
    folder = tmp_path / "bin"
    folder.mkdir()
    uv = folder / "uv"
    uv.write_text(
        '#!/bin/sh\ncase "$1" in venv) exit 0;; esac\necho "Because mediapipe==0.10.21 was not found, it cannot be used." >&2\nexit 1\n'
    )
    uv.chmod(0o755)
    monkeypatch.setattr(environments.shutil, "which", lambda name, path: str(uv))
    return uv


def test_a_package_that_cannot_be_installed_is_named_with_the_way_to_build_beforehand(fake_uv, tmp_path):
    with pytest.raises(EnvironmentMissing, match=r"mediapipe==0\.10\.21 was not found") as refused:
        build("pose", tmp_path / "environments")
    assert "compute.pythons.pose=" in refused.value.way_out
    assert not [entry for entry in (tmp_path / "environments").iterdir() if not entry.name.startswith(".")]


def test_a_machine_without_uv_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(environments.shutil, "which", lambda name, path: None)
    with pytest.raises(EnvironmentMissing, match="uv") as refused:
        build("pose", tmp_path)
    assert "pip install uv" in refused.value.way_out


def test_a_cluster_builds_where_all_nodes_see_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder("local", tmp_path / "store") == tmp_path / "cache" / "hba_ray" / "environments"
    assert default_folder("auto", tmp_path / "store") == tmp_path / "store" / "environments"

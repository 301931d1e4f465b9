"""What is not installed is named with its extra, whatever imports it first."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from hba_ray.cluster import environment
from hba_ray.cluster.environment import defects, lacking, requirements
from hba_ray.errors import EnvironmentMissing

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", environment.EXTRAS)
def test_an_extra_is_what_the_project_says(extra: str):
    if not requirements(extra):
        pytest.skip("this package is not installed")
    assert len(requirements(extra)) == len(PROJECT["optional-dependencies"][extra])


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "train"), ("PIL", "train"), ("whisper", "descriptors"), ("verl.trainer", "rl-cpu")]
)
def test_a_module_that_is_not_there_is_named_with_its_extra(module: str, extra: str):
    if not requirements(extra):
        pytest.skip("this package is not installed")
    error = lacking(ModuleNotFoundError(f"No module named '{module}'", name=module))
    assert isinstance(error, EnvironmentMissing) and error.exit_code == 5
    assert error.where == module.partition(".")[0] and f"'.[{extra}]'" in error.way_out


def test_a_library_of_another_version_is_no_missing_one():
    error = lacking(ImportError("cannot import name 'Omni' from 'transformers'", name="transformers"))
    assert "cannot import name 'Omni'" in error.what and "hba doctor" in error.way_out


def test_a_version_out_of_bounds_is_a_defect(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ['torch==2.11.*; extra == "train"', 'av>=16; extra == "train"', "rich>=13"])
    assert defects("train", {"torch": "2.10.0"}) == ["torch is 2.10.0, not ==2.11.*", "av is not installed"]

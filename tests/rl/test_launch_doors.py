"""verl finds our code by names: each leads to an object of the kind that verl expects."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from hba_ray import rl
from hba_ray.cluster import forkserver

pytest.importorskip("verl")


def test_the_plugin_is_the_entry_point_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["verl.plugins"] == {"hba_ray": rl.PLUGIN}
    assert import_module(rl.PLUGIN).CPU == "cpu"


def test_the_dataset_and_the_reward_are_where_verl_looks_for_them():
    from torch.utils.data import Dataset

    for (path, name), expected in ((rl.DATASET, Dataset), (rl.REWARD, None)):
        found = getattr(import_module(path.removeprefix("pkg://")), name)
        assert callable(found) and (expected is None or issubclass(found, expected))


def test_the_agent_loop_and_the_trainer_are_in_verls_registries():
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, _agent_loop_registry
    from verl.trainer.ppo.v1.trainer_base import get_trainer_cls

    trainer = import_module(rl.TRAINER_MODULE).HbaTrainer
    module, _, name = rl.AGENT_LOOP.rpartition(".")
    assert issubclass(getattr(import_module(module), name), AgentLoopBase)
    import_module(rl.PLUGIN)
    assert _agent_loop_registry[rl.AGENT] == {"_target_": rl.AGENT_LOOP}
    assert get_trainer_cls(rl.TRAINER) is trainer


def test_what_is_imported_before_forks_is_listed_once():
    assert set(rl.FORKED) <= set(forkserver.VERL_MODULES)
    assert all(import_module(name) for name in rl.FORKED)

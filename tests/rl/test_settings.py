"""verl's configuration: what differs from its defaults is golden; unknown keys are refused with the nearest."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hba_ray.errors import DataError, EnvironmentMissing, SpecError
from hba_ray.rl import settings
from hba_ray.rl.settings import RlPaths, cpus_needed, environment, verl_config
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import flat

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

GOLDEN = Path(__file__).parent / "golden"
PATHS = RlPaths("/store/model", "/store/train", "/store/validation", "/store/checkpoints", "/store/rollouts")
TOY = {
    "model": {"backbone": "tiny"},
    "grpo": {
        "lr": 1e-3,
        "rollouts": 4,
        "batch": 4,
        "mini_batch": 4,
        "micro_batch": 4,
        "prompt_tokens": 128,
        "response_tokens": 16,
        "steps": 30,
        "validate_every": None,
        "reward": {"similarity_weight": 0},
    },
}


def spec(**sections: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "stages": ["grpo"], **sections})


def paper(**grpo: Any) -> ExperimentSpec:
    return spec(compute={"workers": 8, "gpus_per_worker": 1, "loaders": 4}, grpo=grpo)


def differing(config: DictConfig) -> dict[str, Any]:
    """What is not as verl has it, by dotted key."""
    theirs = flat(OmegaConf.to_container(settings._verl_defaults()))  # type: ignore[arg-type]
    ours = flat(OmegaConf.to_container(config))  # type: ignore[arg-type]
    return {key: ours[key] for key in sorted(ours) if key not in theirs or ours[key] != theirs[key]}


@pytest.mark.parametrize(("name", "made"), [("paper_gpu", paper()), ("toy_cpu", spec(**TOY))])
def test_what_differs_from_verls_defaults_is_golden(name: str, made: ExperimentSpec):
    config = verl_config(made, PATHS, train_rows=1000)
    assert differing(config) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.slow
def test_verl_itself_accepts_both():
    probe = (
        "import json, sys\n"
        "from omegaconf import OmegaConf\n"
        "from verl.utils.config import validate_config\n"
        "for text in json.load(sys.stdin): validate_config(OmegaConf.create(text), use_reference_policy=False, use_critic=False)\n"
    )
    configs = [OmegaConf.to_yaml(verl_config(made, PATHS, train_rows=1000), resolve=True) for made in (paper(), spec(**TOY))]
    done = subprocess.run([sys.executable, "-c", probe], input=json.dumps(configs), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_users_settings_win_dotted_or_nested():
    actor = {"actor_rollout_ref.actor.grad_clip": 0.5, "actor_rollout_ref": {"actor": {"optim": {"lr": 3e-6}}}}
    free = {"actor_rollout_ref.rollout.engine_kwargs.vllm.skip_mm_profiling": True, "+data.sampler.class_path": "x"}
    config = verl_config(paper(verl=actor | free), PATHS, train_rows=1000)
    assert (config.actor_rollout_ref.actor.grad_clip, config.actor_rollout_ref.actor.optim.lr) == (0.5, 3e-6)
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.skip_mm_profiling is True
    assert config.data.sampler.class_path == "x"


@pytest.mark.slow
def test_a_field_of_verls_dataclass_is_known_though_its_files_do_not_list_it():
    config = verl_config(paper(verl={"actor_rollout_ref.rollout.limit_images": 2}), PATHS, train_rows=1000)
    assert config.actor_rollout_ref.rollout.limit_images == 2


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("actor_rollout_ref.actor.grad_clipp", "actor_rollout_ref.actor.grad_clip"),
        ("actor.grad_clip", "actor_rollout_ref.actor.grad_clip"),
        ("trainer.total_epoch", "trainer.total_epochs"),
        ("trainer.total_epochs.more", "trainer.total_epochs"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str):
    with pytest.raises(SpecError, match=rf"verl has no key '{key}'\n  did you mean '{nearest}'\?"):
        verl_config(paper(verl={key: 1}), PATHS, train_rows=1000)


def test_a_key_like_no_other_is_refused():
    with pytest.raises(SpecError, match="verl has no key 'qqq'"):
        verl_config(paper(verl={"qqq": {}}), PATHS, train_rows=1000)


def test_fewer_rows_than_a_batch_are_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"255 rows, fewer than grpo\.batch 256"):
        verl_config(paper(), PATHS, train_rows=255)


def test_without_verl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    settings._composed.cache_clear()
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMissing, match="rl-cpu"):
        verl_config(paper(), PATHS, train_rows=1000)


def test_another_version_than_the_patches_are_for_is_refused_before_any_process_starts(monkeypatch: pytest.MonkeyPatch):
    settings._composed.cache_clear()
    monkeypatch.setattr(settings.patches, "PATCHES", [replace(settings.patches.PATCHES[0], version="0.1.0")])
    with pytest.raises(EnvironmentMissing, match=r"(?s)verl: is 0\.9\.1.*0\.1\.0"):
        verl_config(paper(), PATHS, train_rows=1000)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "harpo"])
def test_the_algorithm_is_a_name_and_harpos_constants_go_with_it(algorithm: str):
    config = verl_config(paper(algorithm=algorithm, harpo={"strength": 2}), PATHS, train_rows=1000)
    assert config.algorithm.adv_estimator == algorithm
    assert ("harpo" in config.algorithm) == (algorithm == "harpo")
    if algorithm == "harpo":
        assert config.algorithm.harpo.strength == 2


def test_a_kl_weight_turns_the_kl_loss_on():
    actor = verl_config(paper(kl=0.01), PATHS, train_rows=1000).actor_rollout_ref.actor
    assert (actor.use_kl_loss, actor.kl_loss_coef) == (True, 0.01)


def test_checkpoints_come_at_the_end_of_every_epoch_or_as_asked():
    assert verl_config(paper(), PATHS, train_rows=1000).trainer.save_freq == 3
    assert verl_config(paper(save_every=7), PATHS, train_rows=1000).trainer.save_freq == 7


def test_steps_never_exceed_the_epochs():
    assert verl_config(paper(steps=10**6), PATHS, train_rows=1000).trainer.total_training_steps == 30


@pytest.mark.parametrize(
    ("made", "total"),
    [
        (paper(), 8 * 3 + 8 + 1 + 1),
        (spec(), 3 + 1 + 1 + 1),
        (paper(verl={"transfer_queue.backend.SimpleStorage.num_data_storage_units": 2}), 8 * 3 + 2 + 1 + 1),
        (spec(stages=["sft"]), 0),
    ],
)
def test_the_cpus_of_a_run_are_counted_with_verls_storage(made: ExperimentSpec, total: int):
    assert cpus_needed(made).total == total
    if total:
        units = verl_config(made, PATHS, train_rows=1000).transfer_queue.backend.SimpleStorage.num_data_storage_units
        assert cpus_needed(made).parts["storage of responses"] == units


def test_two_nodes_share_the_workers_evenly():
    trainer = verl_config(paper(nodes=2), PATHS, train_rows=1000).trainer
    assert (trainer.nnodes, trainer.n_gpus_per_node) == (2, 4)


def test_composing_leaves_hydra_and_verl_alone():
    """Composing inside a program that uses hydra itself must not disturb it; verl is not even imported."""
    probe = (
        "import sys\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "from hba_ray.rl.settings import _verl_defaults\n"
        "_verl_defaults()\n"
        "print(GlobalHydra.instance().is_initialized(), 'verl' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], text=True, check=True, capture_output=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_cpu_run_names_its_platform_and_a_gpu_run_does_not():
    assert environment(spec(**TOY), "m.jsonl")["VERL_PLATFORM"] == "cpu"
    assert "VERL_PLATFORM" not in environment(paper(), "m.jsonl")

"""From a spec to verl's configuration (verl 0.9.1, V1 trainer): pure, no process is started.

The result is verl's own `ppo_trainer` composed by hydra, then ours on top, then `grpo.verl`.
On a CPU the values are those with which verl and vLLM's CPU build were seen to run.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hba_ray.cluster.environment import VLLM_ON_CPU
from hba_ray.errors import DataError, EnvironmentMissing, SpecError
from hba_ray.rl import REWARD, TRAINER, patches
from hba_ray.rl.advantages import OWN
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.base import flat
from hba_ray.specs.sections.grpo import GrpoLoraSpec
from hba_ray.specs.sections.own import OWN_DATASETS, in_words

LOSSES = {"response": "seq-mean-token-mean", "token": "token-mean"}
"""`grpo.loss_average` -> `actor.loss_agg_mode`."""
LAYERS = ["Qwen2_5OmniDecoderLayer", "Qwen2_5OmniAudioEncoderLayer", "Qwen2_5OmniVisionBlock"]
"""What FSDP2 wraps. verl's default also names whole towers, and a wrapped tower above wrapped layers fails."""
KEPT_CHECKPOINTS = 2

STORAGE_UNITS = {True: 8, False: 1}
"""Actors that hold the responses of a step, each with a CPU of its own: verl's number where it trains on GPUs, one on a CPU."""

_UNITS_KEY = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
_BUCKET_MEGABYTES = 2048
_CPUS_PER_WORKER = 3
"""What verl reserves beside each GPU (`RayResourcePool.max_colocate_count`)."""
_CPU_BATCHED_TOKENS, _CPU_SEQUENCES = 512, 16


@dataclass(frozen=True)
class RlPaths:
    """Where a run reads and writes; all paths are absolute and seen by every node.

    Attributes:
        model: folder of the full Omni model to start from, tokenizer and processor included.
        train, validation: what the dataset class reads.
        checkpoints: folder of `global_step_N`.
        rollouts: folder of sampled responses, one JSONL file a step; None keeps none.
    """

    model: str
    train: str
    validation: str
    checkpoints: str
    rollouts: str | None = None


def verl_config(spec: ExperimentSpec, paths: RlPaths, *, train_rows: int, more: Mapping[str, Any] = MappingProxyType({})) -> DictConfig:
    """verl's whole configuration for the stage `grpo`.

    Args:
        train_rows: rows of the training split, of which each epoch makes `train_rows // grpo.batch` steps.
        more: further settings of ours, by dotted key.

    Raises:
        SpecError: `grpo.verl` names a key that verl does not have, or a value that cannot stand there.
        DataError: fewer rows than one batch.
        EnvironmentMissing: verl is not installed, or a package has another version than the patches are for.
    """
    steps = steps_per_epoch(spec, train_rows)
    config = _verl_defaults()
    theirs = _checked(config, spec.grpo.verl)
    ours = {**_data(spec, paths), **_training(spec, paths, steps), **_actor(spec, paths), **_rollout(spec), **_reward(spec)}
    ours |= {} if uses_gpu(spec) else _cpu(spec)
    ours |= {} if spec.grpo.lora is None else _lora(spec, spec.grpo.lora)
    for key, value in {**ours, **more, **theirs}.items():
        try:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        except (OmegaConfBaseException, ValueError) as cause:
            raise SpecError(f"grpo.verl.{key}", f"cannot be set to {value!r}: {str(cause).splitlines()[0]}") from None
    return config


def steps_per_epoch(spec: ExperimentSpec, train_rows: int) -> int:
    """Whole batches in the training split; verl leaves out the rest.

    Raises:
        DataError: there is not one.
    """
    if train_rows < spec.grpo.batch:
        raise DataError(
            "grpo", f"the training split has {train_rows} rows, fewer than grpo.batch {spec.grpo.batch}", "make the batch smaller"
        )
    return train_rows // spec.grpo.batch


def uses_gpu(spec: ExperimentSpec) -> bool:
    return spec.compute.gpus_per_worker > 0


@dataclass(frozen=True)
class CpusNeeded:
    """The logical CPUs that a run of verl holds from its start to its end.

    Attributes:
        parts: what holds them -> CPUs.
    """

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        return f"{self.total} CPUs ({', '.join(f'{cpus} for {part}' for part, cpus in self.parts.items())})"


def cpus_needed(spec: ExperimentSpec) -> CpusNeeded:
    """The CPUs of the stage `grpo`; none where it is no stage. With fewer verl waits for ever and does not say why.

    >>> spec = ExperimentSpec.model_validate({"name": "x", "atlas": {"source": "toy"}, "stages": ["grpo"], "compute": {"workers": 2}})
    >>> str(cpus_needed(spec))
    '9 CPUs (6 for workers, 1 for storage of responses, 1 for its queue, 1 for its driver)'
    """
    if "grpo" not in spec.stages:
        return CpusNeeded({})
    units = int(flat(spec.grpo.verl).get(_UNITS_KEY, STORAGE_UNITS[uses_gpu(spec)]))
    workers = _CPUS_PER_WORKER * max(1, spec.compute.workers)
    return CpusNeeded({"workers": workers, "storage of responses": units, "its queue": 1, "its driver": 1})


def environment(spec: ExperimentSpec, metrics: str) -> dict[str, str]:
    """Environment variables of verl's processes.

    Args:
        metrics: file that verl's file logger writes, one JSON object a step.
    """
    common = {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFER_QUEUE_ENABLE": "1",  # verl sets it only where it starts Ray itself
        "VERL_FILE_LOGGER_PATH": metrics,
    }
    if spec.atlas.own:
        common[OWN_DATASETS] = in_words(spec.atlas.own)
    if uses_gpu(spec):
        return common | ({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"} if spec.precision == "tf32" else {})
    return common | {
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engine for cuda and npu only
        "OMP_NUM_THREADS": "1",
        **VLLM_ON_CPU,
    }


def _data(spec: ExperimentSpec, paths: RlPaths) -> dict[str, Any]:
    grpo = spec.grpo
    return {
        "data.train_files": paths.train,
        "data.val_files": paths.validation,
        "data.train_batch_size": grpo.batch,
        "data.val_batch_size": grpo.batch,  # else the whole split is decoded at once
        "data.max_prompt_length": grpo.prompt_tokens,
        "data.max_response_length": grpo.response_tokens,
        "data.truncation": "error",
        "data.seed": spec.seed,
        "data.dataloader_num_workers": (spec.compute.loaders or 1) if uses_gpu(spec) else 0,
    }


def _training(spec: ExperimentSpec, paths: RlPaths, steps: int) -> dict[str, Any]:
    grpo, workers = spec.grpo, max(1, spec.compute.workers)
    settings = {
        "algorithm.adv_estimator": grpo.algorithm,
        "algorithm.use_kl_in_reward": False,
        "trainer.v1.trainer_mode": TRAINER,
        "trainer.project_name": "hba_ray",
        "trainer.experiment_name": spec.name,
        "trainer.logger": ["console", "file"],
        "trainer.nnodes": grpo.nodes,
        "trainer.n_gpus_per_node": workers // grpo.nodes,
        "trainer.total_epochs": grpo.epochs,
        "trainer.total_training_steps": None if grpo.steps is None else min(grpo.steps, steps * grpo.epochs),
        "trainer.test_freq": grpo.validate_every or -1,
        "trainer.val_before_train": grpo.validate_every is not None,
        "trainer.save_freq": grpo.save_every or steps,
        "trainer.max_actor_ckpt_to_keep": KEPT_CHECKPOINTS,
        "trainer.default_local_dir": paths.checkpoints,
        "trainer.resume_mode": "auto",
        "trainer.rollout_data_dir": paths.rollouts,
        _UNITS_KEY: STORAGE_UNITS[uses_gpu(spec)],
        "transfer_queue.backend.SimpleStorage.required_node_resource": "CPU",  # not on a head that has none to give
    }
    if grpo.algorithm in OWN:
        section = getattr(grpo, grpo.algorithm, None)
        settings[f"algorithm.{grpo.algorithm}"] = section.model_dump(mode="json") if section else {}
    return settings


def _actor(spec: ExperimentSpec, paths: RlPaths) -> dict[str, Any]:
    grpo, actor = spec.grpo, "actor_rollout_ref.actor"
    return {
        "actor_rollout_ref.model.path": paths.model,
        "actor_rollout_ref.model.use_remove_padding": uses_gpu(spec),  # rows behind each other, without padding: see `omni.OmniActor`
        "actor_rollout_ref.model.enable_gradient_checkpointing": uses_gpu(spec) or spec.compute.gradient_checkpointing,
        "actor_rollout_ref.model.override_config.attn_implementation": _attention(spec),
        f"{actor}.strategy": "fsdp2",
        f"{actor}.fsdp_config.strategy": "fsdp2",
        f"{actor}.fsdp_config.dtype": _precision(spec),
        f"{actor}.fsdp_config.wrap_policy.transformer_layer_cls_to_wrap": LAYERS,
        f"{actor}.fsdp_config.seed": spec.seed,
        f"{actor}.data_loader_seed": spec.seed,
        f"{actor}.optim.lr": grpo.lr,
        f"{actor}.ppo_mini_batch_size": grpo.mini_batch,
        f"{actor}.ppo_micro_batch_size_per_gpu": grpo.micro_batch,
        f"{actor}.loss_agg_mode": LOSSES[grpo.loss_average],
        f"{actor}.use_kl_loss": grpo.kl > 0,
        f"{actor}.kl_loss_coef": grpo.kl,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": grpo.micro_batch,
        "actor_rollout_ref.ref.fsdp_config.dtype": _precision(spec),
    }


def _rollout(spec: ExperimentSpec) -> dict[str, Any]:
    grpo, rollout = spec.grpo, "actor_rollout_ref.rollout"
    tokens = grpo.prompt_tokens + grpo.response_tokens
    return {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": grpo.rollouts,
        f"{rollout}.temperature": grpo.temperature,
        f"{rollout}.seed": spec.seed,
        f"{rollout}.dtype": _precision(spec),
        f"{rollout}.tensor_model_parallel_size": grpo.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": grpo.rollout_memory,
        f"{rollout}.max_model_len": tokens,
        f"{rollout}.max_num_batched_tokens": max(tokens, 8192),
        f"{rollout}.log_prob_micro_batch_size_per_gpu": grpo.micro_batch,
    }


def _lora(spec: ExperimentSpec, lora: GrpoLoraSpec) -> dict[str, Any]:
    """verl merges the updates into the weights that vLLM gets, and writes the updates alone into checkpoints."""
    from hba_ray.models.backbone import LANGUAGE_LAYERS

    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    return {
        f"{model}.lora_rank": lora.rank,
        f"{model}.lora_alpha": lora.alpha,
        f"{model}.target_modules": LANGUAGE_LAYERS,
        f"{model}.lora.merge": True,
        f"{actor}.checkpoint.save_lora_only": True,
        f"{actor}.fsdp_config.param_offload": uses_gpu(spec),  # the weights leave the GPU while vLLM samples on it
        f"{actor}.fsdp_config.optimizer_offload": uses_gpu(spec),
    }


def _reward(spec: ExperimentSpec) -> dict[str, Any]:
    return {
        "reward.custom_reward_function.path": REWARD[0],
        "reward.custom_reward_function.name": REWARD[1],
        "reward.custom_reward_function.reward_kwargs": {"reward": spec.grpo.reward.model_dump(mode="json")},
    }


def _cpu(spec: ExperimentSpec) -> dict[str, Any]:
    """What differs on a CPU; the reasons are vLLM's CPU build and a machine with few cores."""
    grpo, rollout = spec.grpo, "actor_rollout_ref.rollout"
    return {
        "trainer.device": "cpu",
        "reward.num_workers": 1,
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        f"{rollout}.agent.num_workers": 1,
        f"{rollout}.enforce_eager": True,
        f"{rollout}.enable_chunked_prefill": False,  # a prompt in parts takes back a random draw, which generators of a CPU cannot
        f"{rollout}.free_cache_engine": False,
        f"{rollout}.enable_sleep_mode": False,  # there is none on a CPU
        f"{rollout}.load_format": "auto",
        f"{rollout}.max_num_batched_tokens": max(grpo.prompt_tokens + grpo.response_tokens, _CPU_BATCHED_TOKENS),
        f"{rollout}.max_num_seqs": min(grpo.batch * grpo.rollouts, _CPU_SEQUENCES),
    }


def bucket_megabytes(weight_bytes: int) -> int:
    """Size of the buffer through which verl sends weights to vLLM: verl's own, doubled until the largest weight fits.

    >>> bucket_megabytes(152_064 * 3584 * 4)
    4096
    """
    size = _BUCKET_MEGABYTES
    while size << 20 < weight_bytes:
        size *= 2
    return size


def _precision(spec: ExperimentSpec) -> str:
    return "bfloat16" if uses_gpu(spec) and spec.uses_bf16 else "float32"


def _attention(spec: ExperimentSpec) -> str:
    return {"auto": "sdpa" if uses_gpu(spec) else "eager"}.get(spec.model.attention, spec.model.attention)


def _verl_defaults() -> DictConfig:
    return copy.deepcopy(_composed())


@cache
def _composed() -> DictConfig:
    """verl's `ppo_trainer`, composed by hydra from the installed files, without importing verl."""
    found = importlib.util.find_spec("verl")
    if found is None or not found.submodule_search_locations:
        raise EnvironmentMissing("grpo", "verl is not installed", "install the extra rl-cpu, or rl-gpu on a machine with GPUs")
    patches.check_versions(patches.PATCHES)  # here for the user's eyes; in verl's processes `patches.apply` refuses once more
    from hydra import compose, initialize_config_dir

    folder = Path(found.submodule_search_locations[0]).resolve() / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer")


def _checked(config: DictConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`grpo.verl` as dotted keys; `+key` is one that verl's files do not list, as in hydra.

    Args:
        config: verl's defaults, against which keys are checked.
    """
    checked = {}
    for key, value in flat(settings).items():
        if not key.startswith("+") and not _is_known(config, key.split(".")):
            raise SpecError("grpo.verl", f"verl has no key '{key}'", _nearest(config, key))
        checked[key.removeprefix("+")] = value
    return checked


def _is_known(section: Any, parts: Sequence[str]) -> bool:
    """Whether verl's files list the key, or leave its section open by `{}`, or the section's dataclass has it."""
    for part in parts:
        if not isinstance(section, DictConfig):
            return False
        if part not in section:
            return not section or part in _fields(section)
        section = section._get_node(part)
    return True


def _fields(section: DictConfig) -> set[str]:
    """Fields of the dataclass that verl makes of a section."""
    from hydra.utils import get_class

    target = section.get("_target_")
    return {field.name for field in fields(get_class(target))} if target else set()


def _nearest(config: DictConfig, key: str) -> str:
    names = [name for name in flat(OmegaConf.to_container(config)) if "_target_" not in name]  # pyright: ignore[reportArgumentType]
    longer = [name for name in names if name.endswith(f".{key}")]
    same = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = longer or get_close_matches(key, same, n=1, cutoff=0.0) or get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "its keys are in verl/trainer/config"
    return f"{hint} A key that its files do not list is set by '+{key}'"

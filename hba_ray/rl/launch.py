"""A GRPO run on the Ray that the caller has opened: waits for its turn and its GPUs, runs verl, leaves nothing behind.

verl names its actors and its queue the same in every run, so a cluster holds one run at a time; the
next one waits. verl neither waits for GPUs nor asks an autoscaler for them, so that is done here.
A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from hba_ray.cluster import ray_private
from hba_ray.cluster.growth import largest
from hba_ray.cluster.session import ANYWHERE
from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.prompts import load_reasoning
from hba_ray.errors import BadMedia, DataError, EnvironmentMissing, HbaError, TrainingError
from hba_ray.rl import DATASET, PLUGIN, TRAINER_MODULE
from hba_ray.rl.records import read_failures
from hba_ray.rl.settings import RlPaths, bucket_megabytes, cpus_needed, environment, uses_gpu, verl_config
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.wording import Wording
from hba_ray.store.folders import keep_lines

NAMESPACE, RUNNER = "hba_ray", "grpo"
"""Whoever holds the actor of this name on a cluster has the turn."""
TURN_SECONDS = 5.0
"""Between two looks for the turn and for GPUs."""
CLEAN_SECONDS = 60.0
"""How long actors and placement groups of an ended run may take to go."""
_SHARE_OF_GPU = 0.01
"""Keeps a task on a machine with GPUs, and takes none of them from others."""
VERL_VARIABLES = {
    "NCCL_DEBUG": "WARN",
    "VLLM_LOGGING_LEVEL": "WARN",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
}
"""What verl 0.9.1 gives to the processes of a Ray that it started itself (`verl/trainer/constants_ppo.py`)."""

_BUCKET = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"

Say = Callable[[str], None]


@dataclass(frozen=True)
class GrpoJob:
    """What a run needs.

    Attributes:
        start: folder in full layout (`checkpoints.write_start`).
        index: the rows to train on and to validate with; verl's processes read it from `rows`.
        folder: of the step, seen by all nodes: rows/, checkpoints/, rollouts/, verl's metrics.
    """

    spec: ExperimentSpec
    start: Path
    index: AtlasIndex
    folder: Path

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    def write_rows(self) -> None:
        """Writes down what verl's processes read: the index without held-out datasets, and with transcripts."""
        self.rows.mkdir(exist_ok=True)
        self.index.save(self.rows)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.folder / "rollouts"

    @property
    def metrics(self) -> Path:
        """verl's log of the running attempt: an object with `step` and `data` a line."""
        return self.folder / "verl.jsonl"

    @property
    def failures(self) -> Path:
        return self.folder / "failures.jsonl"

    def config(self) -> DictConfig:
        """verl's configuration with what ties it to our dataset and rollouts.

        Raises:
            SpecError: see `settings.verl_config`.
        """
        spec = self.spec
        paths = RlPaths(
            model=str(self.start),
            train=str(self.rows / "train"),
            validation=str(self.rows / "validation"),
            checkpoints=str(self.checkpoints),
            rollouts=str(self.rollouts) if spec.grpo.log_rollouts else None,
        )
        return verl_config(spec, paths, train_rows=len(self.index.rows_of("train")), more=self._ours())

    def _ours(self) -> dict[str, Any]:
        spec, engine = self.spec, "actor_rollout_ref.rollout.engine_kwargs.vllm"
        wording = Wording.of(spec.model)
        rows = {
            "media": spec.atlas.media.model_dump(mode="json"),
            "modalities": sorted(spec.atlas.modalities),
            "template": load_reasoning(spec.grpo.prompts).template,
            "seed": spec.seed,
            "modality_batches": spec.grpo.modality_batches,
            "failures": str(self.failures),
            "drop_bad_rows": spec.atlas.on_bad_row == "drop",
            "log_rollouts": spec.grpo.log_rollouts,
            "layout": wording.layout,
            "system": wording.system,
        }
        ours: dict[str, Any] = {
            "data.custom_cls.path": DATASET[0],
            "data.custom_cls.name": DATASET[1],
            "data.hba": rows,
            "data.dataloader_num_workers": 0,  # a row of the dataset is a few hundred bytes
            "reward.num_workers": 0,  # rewards are computed where responses are (rollouts.ClipLoop)
        }
        if self.start.exists():
            from hba_ray.rl.checkpoints import largest_weight

            ours[_BUCKET] = bucket_megabytes(largest_weight(self.start))
        if not spec.uses_bf16:  # verl computes in bf16 unless it is told otherwise, whatever the weights are
            fp32 = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
            ours["actor_rollout_ref.actor.fsdp_config.mixed_precision"] = fp32
        if not uses_gpu(spec):  # `uni`: vLLM's engine computes in its own process, without a worker beside it
            ours |= {f"{engine}.distributed_executor_backend": "uni", f"{engine}.skip_mm_profiling": True}
        return ours


def run_grpo(job: GrpoJob, say: Say) -> None:
    """Trains until the last step has its checkpoint.

    Args:
        say: takes a line for people while the run waits.

    Raises:
        DataError: a row cannot become a prompt.
        EnvironmentMissing: the cluster can never hold the run.
        TrainingError: a process of the run ended, or verl gave up.
    """
    config = job.config()
    forget_failures(job)
    job.write_rows()
    check_room(job.spec)
    before = _held()
    runner = _take_turn(_variables(job), say)
    try:
        wait_for_room(job.spec, say)
        ray.get(runner.run.remote(config))
    except RayError as cause:
        raise _located(job, cause) from cause
    finally:
        ray.kill(runner)
        _free_places()
        _wait_until_gone(before)


def prepare(job: GrpoJob, backbone: str, sft: Path | None) -> None:
    """Writes the folder that a run starts from, where it is not there yet.

    Raises:
        CheckpointError: see `checkpoints.write_start`.
    """
    if not job.start.exists():
        _where_workers_are(job.spec, _write_start, job.spec, backbone, sft, job.start)


def collect(job: GrpoJob, step: int, folder: Path) -> None:
    """Writes the trained model of a checkpoint.

    Raises:
        CheckpointError: see `checkpoints.write_trained`.
    """
    _where_workers_are(job.spec, _write_trained, job.checkpoints / f"global_step_{step}", job.start, folder)


def _where_workers_are(spec: ExperimentSpec, do: Callable[..., None], *arguments: object) -> None:
    """Does it in a task where the workers are: it holds a whole model, or reads hundreds of GB, and a cluster's head has neither their
    memory nor their disks."""
    gpus = {"num_gpus": _SHARE_OF_GPU} if uses_gpu(spec) else {}
    task = ray.remote(num_cpus=1, **gpus, **ANYWHERE)(do)
    try:
        ray.get(task.remote(*arguments))
    except RayTaskError as cause:
        if isinstance(cause.cause, HbaError):
            raise cause.cause from None
        raise


def _write_start(spec: ExperimentSpec, backbone: str, sft: Path | None, folder: Path) -> None:
    import torch

    from hba_ray.rl.checkpoints import write_start

    write_start(spec, backbone, sft, folder, dtype=torch.bfloat16 if spec.uses_bf16 else torch.float32)


def _write_trained(checkpoint: Path, start: Path, folder: Path) -> None:
    from hba_ray.rl.checkpoints import write_trained

    write_trained(checkpoint, start, folder)


@ray.remote(num_cpus=1, max_restarts=0)
class _Runner:
    """The driver of verl's run; everything else belongs to it and ends with it."""

    def run(self, config: DictConfig) -> None:
        from verl.trainer.main_ppo import TaskRunnerV1
        from verl.utils.config import validate_config

        import_module(TRAINER_MODULE)  # which registers itself
        validate_config(config=config, use_reference_policy=config.actor_rollout_ref.actor.use_kl_loss, use_critic=False)
        TaskRunnerV1.__ray_metadata__.modified_class().run(config)  # type: ignore[attr-defined]


def _variables(job: GrpoJob) -> dict[str, str]:
    ours = {"VERL_USE_EXTERNAL_MODULES": PLUGIN, "HF_HUB_OFFLINE": "1"}
    if not uses_gpu(job.spec):
        ours["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # or vLLM's CPU platform puts the executor `mp` in the place of `uni`
    return VERL_VARIABLES | environment(job.spec, str(job.metrics)) | ours


def _take_turn(variables: dict[str, str], say: Say) -> Any:
    waiting = False
    while True:
        try:
            return _Runner.options(name=RUNNER, namespace=NAMESPACE, runtime_env={"env_vars": variables}, **ANYWHERE).remote()  # type: ignore[attr-defined]
        except ValueError as taken:
            if "already" not in str(taken):
                raise
            if not waiting:
                say("another GRPO run is on this cluster; waiting for its end")
            waiting = True
            time.sleep(TURN_SECONDS)


def check_room(spec: ExperimentSpec) -> None:
    """Refuses what the largest form of the cluster cannot hold.

    Raises:
        EnvironmentMissing: names what lacks.
    """
    cpus_there, gpus_there, _ = largest(spec.compute, ray.cluster_resources(), nodes=1)
    gpus = "lower compute.workers, or add nodes" if uses_gpu(spec) else "verl counts in GPUs on any machine: `ray start --num-gpus=1`"
    cpus = "raise compute.cpus; CPUs of a local Ray are logical" if spec.compute.address == "local" else "add nodes"
    needs, workers = cpus_needed(spec), max(1, spec.compute.workers)
    for there, needed, said, way_out in ((gpus_there, workers, f"{workers} GPUs", gpus), (cpus_there, needs.total, str(needs), cpus)):
        if there < needed:
            raise EnvironmentMissing("grpo", f"needs {said}, but the cluster has {there:g}", way_out)


def wait_for_room(spec: ExperimentSpec, say: Say) -> None:
    """Waits until the GPUs, which are asked for since the run began (`cluster.growth`), are free."""
    workers = max(1, spec.compute.workers)
    waiting = False
    while (free := ray.available_resources().get("GPU", 0)) < workers:
        if not waiting:
            say(f"waiting for GPUs: {free:g} of {workers} are free")
        waiting = True
        time.sleep(TURN_SECONDS)


def _held() -> tuple[set[str], set[str]]:
    """Ids of the actors and placement groups that are there now."""
    from ray.util import placement_group_table

    groups = {name for name, facts in placement_group_table().items() if facts["state"] != "REMOVED"}
    return ray_private.living_actors(), groups


def _free_places() -> None:
    """Removes verl's placement groups, which outlive the actor that made them until its whole job ends."""
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name, facts in placement_group_table().items():
        if "verl_group_" in facts["name"] and facts["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def _wait_until_gone(before: tuple[set[str], set[str]]) -> None:
    """Until only those of `before` are left, or time is up.

    Actors belong to the runner and end with it, which takes a moment.
    """
    deadline = time.monotonic() + CLEAN_SECONDS
    while any(now - then for now, then in zip(_held(), before, strict=True)) and time.monotonic() < deadline:
        time.sleep(0.5)


def _located(job: GrpoJob, cause: RayError) -> Exception:
    kinds = {"DataError": DataError, "BadMedia": BadMedia}
    for note in read_failures(job.failures):
        if "reason" not in note or job.spec.atlas.on_bad_row == "fail":
            arguments = (note["where"], note["what"], note["way_out"])
            return kinds.get(note["kind"], TrainingError)(*arguments, **({"reason": note["reason"]} if "reason" in note else {}))
    if isinstance(own := getattr(cause, "cause", None), HbaError):  # of the runner: verl's trainer is part of it
        return own
    if isinstance(cause, TaskCancelledError):
        return TrainingError("grpo", "the run was cancelled", "run the same command to go on from its last checkpoint")
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return TrainingError(
        "grpo",
        f"verl ended without a result: {lines[-1] if lines else type(cause).__name__}",
        "the logs of its processes are in the run's logs folder; run the same command to go on from the last checkpoint",
    )


def forget_failures(job: GrpoJob) -> None:
    """Drops the notes of an earlier attempt, but for rows that were left out for good."""
    keep_lines(job.failures, lambda note: "reason" in note and job.spec.atlas.on_bad_row == "drop")


def clear_checkpoints(job: GrpoJob) -> None:
    """Removes what only a resumed run would need."""
    for path in (job.rows, job.checkpoints, job.start):
        shutil.rmtree(path, ignore_errors=True)
    job.metrics.unlink(missing_ok=True)

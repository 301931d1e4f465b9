"""verl's synchronous trainer (verl 0.9.1, V1), with four things of our own.

Batches follow from seed and step alone, so a resumed run goes on with the rows that come next; the responses of a batch are put
in the order of its rows, so a repeated run computes the same. A row that cannot become a prompt ends the run and is named, where
verl would go on with fewer rows. Parts of the reward are logged by task and dataset, and responses kept as tables. An estimator
of ours is told which task a response belongs to, and keeps its state with the checkpoint.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import transfer_queue as tq
from omegaconf import open_dict
from ray.exceptions import RayError
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn

from hba_ray.errors import TrainingError
from hba_ray.rl import EQUAL_GROUPS, TRAINER
from hba_ray.rl.advantages import start_estimator
from hba_ray.rl.dataset import AtlasDataset, RowSettings
from hba_ray.rl.records import equal_groups, read_failures, reward_means

POLL_SECONDS = 0.25
"""Between two looks for responses; verl's own 2 s are most of a small model's step."""
PING_SECONDS = 10.0
"""Between two looks whether the rollout workers live, while responses are waited for."""


@register_trainer(TRAINER)
class HbaTrainer(PPOTrainerSync):
    """verl looks it up by the name `TRAINER` of this package."""

    def __init__(self, config: Any):
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl asks for this name wherever modes differ
        self.settings = RowSettings.of(config.data)
        self._pinged = time.monotonic()
        self.estimator = start_estimator(config.algorithm.adv_estimator)
        super().__init__(config)

    # the order of the rows, and of the responses to them

    def _fetch_one_gen_batch(self) -> Any:
        size = self.config.data.get("gen_batch_size", None) or self.config.data.train_batch_size
        items = cast(AtlasDataset, self.train_dataset).batch(self.global_steps - 1, size)
        batch = collate_fn([self.train_dataset[item] for item in items])
        batch["uid"] = np.array([f"{place:06d}-{uuid.uuid4()}" for place in range(len(items))], dtype=object)
        return tensordict_utils.get_tensordict(batch)

    def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The batch in the order of its rows, then balanced as verl does it. Responses come in the order in which they are finished,
        and mini-batches are cut from what comes."""
        batch.reorder(sorted(range(len(batch.keys)), key=lambda place: batch.keys[place]))
        return super()._balance_batch(batch, *args, **kwargs)

    # failures of rows and of workers

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = min(buffer.poll_interval, POLL_SECONDS)
        look = buffer._sync_metadata_from_transfer_queue

        def look_and_check() -> None:
            look()
            self._check(buffer)

        buffer._sync_metadata_from_transfer_queue = look_and_check
        return buffer

    def _check(self, buffer: Any) -> None:
        """
        Raises:
            TrainingError: a prompt failed for good, or a rollout worker is gone.
        """
        failed = sum(len(keys) for keys in buffer.failure_keys.values())
        if failed:
            notes = read_failures(Path(self.settings.failures))
            fatal = [note for note in notes if "reason" not in note or not self.settings.drop_bad_rows]
            if fatal or not notes:
                first = f"first: {fatal[0]['where']}: {fatal[0]['what']}" if fatal else "the reason is in the run's logs"
                raise TrainingError("grpo", f"{failed} prompts of step {self.global_steps} got no responses, {first}")
        if time.monotonic() - self._pinged > PING_SECONDS:
            self._pinged = time.monotonic()
            try:
                ray.get([worker.__ray_call__.remote(_alive) for worker in self.agent_loop_manager.agent_loop_workers])
            except RayError as cause:
                raise TrainingError("grpo", f"a rollout worker is gone: {str(cause).splitlines()[0]}") from cause

    # estimators of ours, which verl tells neither the tasks nor when a checkpoint is written

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if self.estimator is None:
            return super()._compute_advantage(batch, metrics)
        rows = self._rows(batch, ["uid"])
        with self.estimator.batch({str(row["uid"]): row["extra_info"]["task"] for row in rows}):
            batch = super()._compute_advantage(batch, metrics)
        metrics.update(self.estimator.metrics())
        return batch

    def _save_checkpoint(self) -> None:
        if self.estimator is not None:
            self.estimator.save(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}")
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.estimator is not None and self.global_steps:
            self.estimator.load(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}")

    # records

    def _compute_metrics(self, batch: Any, metrics: dict[str, Any], timing_raw: Any, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        rows = self._rows(batch, ["uid"])
        metrics.update({**reward_means(rows), EQUAL_GROUPS: equal_groups(rows)})

    def _log_rollout_data(self, batch: Any, timing_raw: Any, rollout_data_dir: str) -> None:
        rows = self._rows(batch, ["prompts", "responses", "reward_model"])
        if not self.settings.log_rollouts:
            return
        records = [
            {
                "step": self.global_steps,
                "sample_id": row["extra_fields"]["sample_id"],
                **{name: row["extra_info"][name] for name in ("dataset", "task")},
                "prompt": self.tokenizer.decode(row["prompts"], skip_special_tokens=True),
                "response": self.tokenizer.decode(row["responses"], skip_special_tokens=True),
                "true": row["reward_model"]["ground_truth"],
                **{f"reward_{name}": value for name, value in row["parts"].items()},
            }
            for row in sorted(rows, key=lambda row: row["key"])[: self.settings.log_rollouts]
        ]
        Path(rollout_data_dir).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(records), Path(rollout_data_dir) / f"step-{self.global_steps:06d}.parquet")

    def _rows(self, batch: Any, fields: list[str]) -> list[dict[str, Any]]:
        """What verl's queue holds of each response, fillers left out."""
        kept = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        data = tq.kv_batch_get(keys=kept, partition_id=batch.partition_id, select_fields=["extra_fields", "extra_info", *fields])
        columns = {name: _values(data[name]) for name in cast(list[str], data.keys())}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{**row, "key": key, "parts": row["extra_fields"].get("reward_extra_info", {})} for key, row in zip(kept, rows, strict=True)]


def _values(column: Any) -> list[Any]:
    """The entries of a column of verl's queue: tensors of different lengths, or Python values."""
    if isinstance(column, torch.Tensor):
        return list(column.unbind())
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _alive(_: Any) -> bool:
    return True

"""DeepSpeed for a supervised stage: its settings, a pure function of the spec, its process group and its engine."""

from __future__ import annotations

import os
from typing import Any

from hba_ray.specs import ExperimentSpec

_BUCKET_ELEMENTS = 50_000_000


def deepspeed_settings(spec: ExperimentSpec, *, bf16: bool) -> dict[str, Any]:
    """The DeepSpeed configuration of a supervised stage.

    The batch is counted in rows: micro_batch x accumulation x workers = `sft.batch`.
    """
    zero: dict[str, Any] = {
        "stage": spec.compute.zero,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": _BUCKET_ELEMENTS,
        "allgather_bucket_size": _BUCKET_ELEMENTS,
    }
    if spec.compute.zero == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
    return {
        "train_micro_batch_size_per_gpu": spec.compute.micro_batch,
        "gradient_accumulation_steps": spec.accumulation,
        "gradient_clipping": spec.sft.max_gradient_norm or 0.0,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},  # sums of hundreds of micro-batches lose a percent and more in bf16
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def join_process_group(*, gpu: bool) -> None:
    """Gives DeepSpeed the process group that Ray Train made; without one, makes one of this process alone.

    The group is kept while the process lives, since DeepSpeed remembers the groups that it made in it.
    """
    import deepspeed
    import deepspeed.ops
    import torch.distributed

    backend = "nccl" if gpu else "gloo"
    if not gpu:  # an operator for inference that DeepSpeed would compile for a minute at first use
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    if torch.distributed.get_world_size() == 1:  # which DeepSpeed does not take from the group
        os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)


def start_engine(model: Any, spec: ExperimentSpec, *, steps: int, bf16: bool) -> Any:
    """The model inside a DeepSpeed engine, with its optimiser and its schedule.

    Args:
        steps: steps of the learning rate's cosine, warm-up included.
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    sft = spec.sft
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = torch.optim.Adam if sft.optimizer == "adam" else torch.optim.AdamW
    optimizer = kind(parameters, lr=sft.lr, weight_decay=sft.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, sft.warmup_steps, steps)
    return wrap(model, optimizer, deepspeed_settings(spec, bf16=bf16), schedule)


def wrap(model: Any, optimizer: Any, settings: dict[str, Any], schedule: Any = None) -> Any:
    """The model inside a DeepSpeed engine.

    Args:
        settings: of `deepspeed_settings`.
        schedule: of the learning rate, which is constant without one.
    """
    import deepspeed

    made: Any = deepspeed.initialize
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    engine, *_ = made(model=model, model_parameters=parameters, optimizer=optimizer, lr_scheduler=schedule, config=settings)
    return engine

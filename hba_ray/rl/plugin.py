"""What verl imports at the end of its own import, in every process: it registers the CPU platform and applies the patches.

verl knows CUDA and Ascend devices and lets others be registered (verl 0.9.1, `verl/plugin/platform`).
`CpuPlatform` is a machine without an accelerator: torch's CPU device, gloo between processes, and a logical
Ray resource named GPU, since verl counts its places by that name.

The patches have to be set up before other modules of verl bind the names that they replace.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from hba_ray.rl import patches
from hba_ray.specs.sections.own import OWN_DATASETS, declare_all

MEMORY_BYTES = (16 << 30, 24 << 30)
"""(free, total) bytes that verl is told where it asks for a device's memory; only its log shows them."""


class _CpuDevice(types.ModuleType):
    """`torch.cpu`, and the functions of `torch.cuda` that verl calls on any device and that do nothing on a CPU."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("memory_", "max_memory_")):
            return lambda *_: 0
        return getattr(torch.cpu, name)

    def nothing(self, *_: Any, **__: Any) -> None:
        return None

    empty_cache = ipc_collect = reset_peak_memory_stats = manual_seed = manual_seed_all = set_device = nothing

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return MEMORY_BYTES

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def current_device(self) -> str:
        return "cpu"

    def is_available(self) -> bool:
        return True

    def get_device_name(self, *_: Any) -> str:
        return "cpu"


_DEVICE = _CpuDevice("cpu_device")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """A machine without an accelerator, which verl takes where VERL_PLATFORM is `cpu`; the methods are those of `PlatformBase`."""

    device_name = "cpu"  # type: ignore[assignment]
    vendor_name = "cpu"  # type: ignore[assignment]

    @property
    def device_module(self) -> types.ModuleType:
        return _DEVICE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never found by itself: a machine with a GPU is to use it

    def current_device(self) -> str:  # type: ignore[override]
        return "cpu"  # an index would be taken for cuda:0

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "HBA_CPU_VISIBLE_DEVICES"  # of no meaning; CUDA's own is left alone

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def get_collective_module(self) -> None:
        return None

    def cudart(self) -> None:
        return None


CPU = CpuPlatform.device_name
"""Value of VERL_PLATFORM on machines without a GPU."""

if OWN_DATASETS in os.environ:
    declare_all(os.environ[OWN_DATASETS])
patches.apply(cpu=os.environ.get("VERL_PLATFORM") == CPU)

"""Loaded by verl at the end of its own import, in every process (entry point `verl.plugins`, or VERL_USE_EXTERNAL_MODULES).

Registers the CPU platform and applies the patches, before other modules of verl bind names.
"""

from __future__ import annotations

import os

from hba_ray.rl import patches, platform

CPU = platform.CpuPlatform.device_name
"""Value of VERL_PLATFORM on machines without a GPU."""

patches.apply(cpu=os.environ.get("VERL_PLATFORM") == CPU)

"""The kinds of steps. Each is one class in a module of its name; this is the list of them, in the order of a plan."""

from __future__ import annotations

from typing import Any

from hba_ray.steps.atlas import Atlas
from hba_ray.steps.backbone import Backbone
from hba_ray.steps.bam import Bam, States
from hba_ray.steps.base import StepKind
from hba_ray.steps.compare import Compare
from hba_ray.steps.describe import Describe
from hba_ray.steps.evaluate import Evaluate
from hba_ray.steps.grpo import Grpo
from hba_ray.steps.judge import Judge
from hba_ray.steps.probe import Probe
from hba_ray.steps.retention import Retention
from hba_ray.steps.sft import Sft, Transfer

BEFORE: tuple[StepKind[Any], ...] = (Atlas(), Describe(), Backbone())
"""Kinds that every experiment begins with."""
STAGES: dict[str, StepKind[Any]] = {"sft": Sft(), "bam": Bam(), "transfer": Transfer(), "grpo": Grpo()}
"""Stage of a spec -> the kind that trains it."""
AFTER: tuple[StepKind[Any], ...] = (Evaluate(), Judge(), Compare(), Probe(), Retention())
"""Kinds that look at what the stages have made."""
KINDS: dict[str, StepKind[Any]] = {kind.name: kind for kind in (*BEFORE, States(), *STAGES.values(), *AFTER)}
"""All kinds by name; `states` are planned by `bam`, which needs them."""

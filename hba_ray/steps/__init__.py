"""The kinds of steps. Each is one class in a module of its name; this is the list of them, in the order of a plan."""

from __future__ import annotations

from typing import Any

from hba_ray.steps.base import StepKind
from hba_ray.steps.inputs.atlas import AtlasSteps
from hba_ray.steps.inputs.backbone import BackboneSteps
from hba_ray.steps.inputs.describe import DescribeSteps
from hba_ray.steps.inputs.pack import PackSteps
from hba_ray.steps.results.compare import CompareSteps
from hba_ray.steps.results.evaluate import EvaluateSteps
from hba_ray.steps.results.judge import JudgeSteps
from hba_ray.steps.results.probe import ProbeSteps
from hba_ray.steps.results.retention import RetentionSteps
from hba_ray.steps.stages.bam import BamSteps, StatesSteps
from hba_ray.steps.stages.grpo import GrpoSteps
from hba_ray.steps.stages.sft import SftSteps, TransferSteps

BEFORE: tuple[StepKind[Any], ...] = (AtlasSteps(), DescribeSteps(), BackboneSteps(), PackSteps())
"""Kinds that every experiment begins with."""
STAGES: dict[str, StepKind[Any]] = {"sft": SftSteps(), "bam": BamSteps(), "transfer": TransferSteps(), "grpo": GrpoSteps()}
"""Stage of a spec -> the kind that trains it."""
AFTER: tuple[StepKind[Any], ...] = (EvaluateSteps(), JudgeSteps(), CompareSteps(), ProbeSteps(), RetentionSteps())
"""Kinds that look at what the stages have made."""
KINDS: dict[str, StepKind[Any]] = {kind.name: kind for kind in (*BEFORE, StatesSteps(), *STAGES.values(), *AFTER)}
"""All kinds by name; `states` are planned by `bam`, which needs them."""

"""The kinds of steps, one module each: how a step is named (`plan`), what it needs (`check`), how it is done (`make`),
and what a report says of it (`notes`)."""

from collections.abc import Callable, Mapping
from typing import Any

from hba_ray.specs import ExperimentSpec
from hba_ray.steps import atlas, backbone, bam, compare, describe, evaluate, grpo, judge, probe, retention, sft, states, transfer
from hba_ray.steps.base import Context

MAKERS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "atlas": atlas.make,
    "backbone": backbone.make,
    "describe": describe.make,
    "sft": sft.make,
    "states": states.make,
    "bam": bam.make,
    "transfer": transfer.make,
    "grpo": grpo.make,
    "evaluate": evaluate.make,
    "judge": judge.make,
    "compare": compare.make,
    "probe": probe.make,
    "retention": retention.make,
}
"""Kind of a step -> what does it; returns what `done.json` says of it."""

NOTES: dict[str, Callable[[ExperimentSpec, Mapping[str, Any]], list[str]]] = {
    "atlas": atlas.notes,
    "describe": describe.notes,
    "sft": sft.notes,
    "bam": bam.notes,
    "transfer": transfer.notes,
    "grpo": grpo.notes,
    "evaluate": evaluate.notes,
    "judge": judge.notes,
    "probe": probe.notes,
    "retention": retention.notes,
}
"""Kind of a step -> sentences for the report, from the spec and from what `make` returned."""

CHECKS: dict[str, Callable[[ExperimentSpec], None]] = {
    **dict.fromkeys(("sft", "bam", "grpo", "evaluate"), backbone.check_hub),
    **dict.fromkeys(("judge", "retention"), judge.check),
}
"""Kind of a step -> what makes sure, before the first step of a run, that it can be done when its turn comes."""

"""The kinds of steps, one module each: how a step is named (`plan`) and how it is done (`make`)."""

from collections.abc import Callable
from typing import Any

from hba_ray.sweeps.steps import atlas, backbone, evaluate, sft
from hba_ray.sweeps.steps.base import Context

MAKERS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "atlas": atlas.make,
    "backbone": backbone.make,
    "sft": sft.make,
    "evaluate": evaluate.make,
}
"""Kind of a step -> what does it; returns what `done.json` says of it."""

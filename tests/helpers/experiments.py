"""An experiment and a sweep small enough to run whole, in seconds and in this process."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from hba_ray.specs import ExperimentSpec

NAMES = [f"sft.lr={rate} evaluate.max_new_tokens={tokens}" for rate in ("0.001", "0.002") for tokens in (4, 5)]
"""Of the trials of `small_sweep`."""

SMALL = {
    "name": "small",
    "atlas": {"source": "toy", "toy": {"rows": 40}, "limit": 2, "media": {"audio_seconds": 1, "video_frames": 2, "video_pixels": 3136}},
    "model": {"backbone": "tiny", "train": "all", "tiny": {"hidden": 64, "vocabulary": 512}},
    "sft": {"epochs": 2, "batch": 4, "lr": 1e-3, "warmup_steps": 2, "max_gradient_norm": 1.0},
    "evaluate": {"max_new_tokens": 4},
    "compute": {"workers": 0, "micro_batch": 4, "fork": True},
}


def small_experiment(storage: Path | str, **changes: object) -> ExperimentSpec:
    """The spec, with `section__field=value` changed."""
    raw: dict[str, Any] = deepcopy(SMALL)
    raw["compute"]["storage"] = str(storage)
    for path, value in changes.items():
        *sections, name = path.split("__")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return ExperimentSpec.model_validate(raw)


def small_sweep(storage: Path, **changes: object) -> ExperimentSpec:
    """Two learning rates, each evaluated in two ways: 4 trials that share an atlas, a backbone and two trainings."""
    axes = {"sft.lr": [1e-3, 2e-3], "evaluate.max_new_tokens": [4, 5]}
    return small_experiment(storage, **{"sft__epochs": 1, "sweep": {"axes": axes}, **changes})

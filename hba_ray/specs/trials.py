"""The trials of a sweep: from a spec with the section `sweep` to the experiments that it stands for.

All trials are made and validated when a spec is read, so a wrong axis is refused before anything starts.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic import ValidationError

from hba_ray.errors import SpecError
from hba_ray.specs.base import fingerprint, put_at
from hba_ray.specs.experiment import ExperimentSpec
from hba_ray.specs.reading.defects import problems
from hba_ray.specs.sections.compute import CHANGE_NO_RESULT
from hba_ray.specs.sections.sweep import DrawSpec, SweepSpec

MOST_TRIALS = 10_000
"""A sweep of more trials is taken for a mistake; of so many a plan takes half a minute and a gigabyte at most (tests/bench/plans.py)."""
DIGITS = 4
"""Significant digits of a drawn number; so few can be part of a trial's name."""
NOT_VARIED = {
    "name": "it names the sweep as a whole",
    "sweep": "a sweep has no sweeps in it",
    "paper": "it says what the results are set beside",
    "compute": "it says where a trial runs and changes no result",
    "tracking": "it says where a trial is recorded and changes no result",
    "report": "it says what is shown of a trial and changes no result",
}
"""Sections that a sweep cannot vary, and why."""
Path = tuple[str, ...]
"""Keys from the top of a spec downwards."""


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep.

    Attributes:
        name: unique in the sweep, for example `bam.hidden=512 seed=1`.
        arm: the name without the seed; trials of one arm differ in the seed alone. Empty where only seeds vary.
        sets: dotted key -> the value that this trial sets, including `seed` where seeds vary.
        spec: the experiment, without the section `sweep`.
    """

    name: str
    arm: str
    sets: Mapping[str, Any]
    spec: ExperimentSpec


def trials(spec: ExperimentSpec, locate: Callable[[Path], str] = ".".join) -> list[Trial]:
    """The trials of a spec's sweep, in the order of arms, axes, drawn points and seeds; none where it has no section `sweep`.

    Args:
        locate: turns a key path into the file and line that an error names.

    Raises:
        SpecError: an axis is no key of a spec, a value is not valid, or two trials are the same experiment.
    """
    sweep = spec.sweep
    if sweep is None:
        return []
    _check_keys(sweep, locate)
    count = prod((len(sweep.arms) or 1, *map(len, sweep.axes.values()), sweep.samples or 1, len(sweep.seeds) or 1))
    if count > MOST_TRIALS:
        raise SpecError(locate(("sweep",)), f"a sweep of {count} trials; {MOST_TRIALS} is the most", "split it, or vary fewer keys")
    base = spec.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    made: list[Trial] = []
    seen: dict[str, str] = {}
    for arm, sets in _combinations(sweep, spec.seed):
        for seed in sweep.seeds or (None,):
            full = sets if seed is None else {**sets, "seed": seed}
            name = " ".join(part for part in (arm, None if seed is None else f"seed={seed}") if part)
            trial = Trial(name, arm, full, _experiment(base, full, name, sweep, locate))
            twin = seen.get(content := _content(trial.spec))
            if twin is not None:
                raise SpecError(locate(("sweep",)), f"the trials '{twin}' and '{name}' are the same experiment", "drop one of them")
            seen[content] = name
            made.append(trial)
    return made


def _check_keys(sweep: SweepSpec, locate: Callable[[Path], str]) -> None:
    origin: dict[str, Path] = {}
    for path in _stated(sweep):
        key = path[-1]
        section = key.split(".")[0]
        if key == "seed":
            raise SpecError(locate(path), "'seed' is varied by sweep.seeds", "for example seeds: [0, 1, 2]")
        if section in NOT_VARIED:
            raise SpecError(locate(path), f"'{key}' cannot be varied: {NOT_VARIED[section]}")
        before = origin.setdefault(key, path)
        if before != path and not before[1] == path[1] == "arms":
            raise SpecError(locate(path), f"'{key}' is varied by sweep.{before[1]} too", "vary it in one place")


def _stated(sweep: SweepSpec) -> Iterator[Path]:
    """Key path of each place in the section `sweep` at which a key of the spec is varied; the last part is that key."""
    for name, sets in sweep.arms.items():
        yield from (("sweep", "arms", name, key) for key in sets)
    yield from (("sweep", "axes", key) for key in sweep.axes)
    yield from (("sweep", "search", key) for key in sweep.search)


def _combinations(sweep: SweepSpec, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each variant, seeds aside."""
    drawn = ({key: _drawn(draw, f"{seed} {key} {place}") for key, draw in sweep.search.items()} for place in range(sweep.samples or 1))
    points = [list(point.items()) for point in {fingerprint(point): point for point in drawn}.values()]
    axes = [[(key, value) for value in values] for key, values in sweep.axes.items()]
    for name, sets in (sweep.arms or {"": {}}).items():
        for *chosen, point in itertools.product(*axes, points):
            varied = [*chosen, *point]
            yield " ".join([*([name] if name else []), *(f"{key}={in_words(value)}" for key, value in varied)]), {**sets, **dict(varied)}


def _drawn(draw: DrawSpec, place: str) -> Any:
    """A value from a range. It depends on the place alone, so that it stays the same whatever else the sweep varies.

    Args:
        place: names the draw: the spec's seed, the key, and the number of the point.
    """
    source = random.Random(place)
    if draw.choice is not None:
        return source.choice(draw.choice)
    if draw.uniform is not None:
        return _rounded(source.uniform(*draw.uniform))
    low, high = draw.loguniform or (1.0, 1.0)
    return _rounded(math.exp(source.uniform(math.log(low), math.log(high))))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def in_words(value: Any) -> str:
    """A value as it is written in a trial's name: readable and without quotes.

    >>> in_words(["pose", "acoustic"]), in_words(0.0001), in_words(None)
    ('pose+acoustic', '0.0001', 'null')
    """
    if isinstance(value, list | tuple):
        return "+".join(map(in_words, value)) or "none"
    if isinstance(value, str):
        return "".join(letter if letter.isalnum() or letter in "+-_.,/" else "_" for letter in value)
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, sort_keys=True).replace('"', "").replace("'", "")


def _experiment(
    base: Mapping[str, Any], sets: Mapping[str, Any], name: str, sweep: SweepSpec, locate: Callable[[Path], str]
) -> ExperimentSpec:
    raw: dict[str, Any] = json.loads(json.dumps(base))
    if base.get("compat") == "authors" and sets.get("compat", "authors") != "authors":
        way_out = "leave compat out of the spec itself, and set it in the sweep"
        raise SpecError(locate(("compat",)), "a spec with 'compat: authors' has its settings filled in before the sweep varies it", way_out)
    for key, value in sets.items():
        try:
            put_at(raw, key, value)
        except KeyError as cause:
            way_out = f"'{cause.args[0]}' holds a value, not keys"
            raise SpecError(_place(key, sets, sweep, locate), f"unknown key '{key}'", way_out) from None
    try:
        return ExperimentSpec.model_validate(raw)
    except ValidationError as invalid:
        path, what, way_out = problems(invalid, ExperimentSpec)[0]
        where = _place(".".join(path), sets, sweep, locate)
        raise SpecError(where, f"trial '{name}': {what}", way_out) from None


def _place(key: str, sets: Mapping[str, Any], sweep: SweepSpec, locate: Callable[[Path], str]) -> str:
    """The place in the section `sweep` that sets `key`, or a key above or below it, for an error."""
    for path in _stated(sweep):
        stated = path[-1]
        ours = stated in sets and (path[1] != "arms" or sweep.arms[path[2]][stated] == sets[stated])
        if ours and key and (f"{key}.".startswith(f"{stated}.") or f"{stated}.".startswith(f"{key}.")):
            return locate(path)
    return locate(("sweep",))


def _content(spec: ExperimentSpec) -> str:
    """A name for what an experiment computes; equal trials have equal ones."""
    return fingerprint(spec.model_dump(mode="json", exclude={"name", "sweep", "paper", *CHANGE_NO_RESULT}))

"""A result outlives upgrades: steps keep their names, so what is finished is found again."""

import json
from pathlib import Path

import pytest

import hba_ray.data.prompts
import hba_ray.judge.prompts  # noqa: F401  # sections of their own
from hba_ray.specs import Added, Spec
from hba_ray.specs.base import Seed
from tests.helpers.golden_plans import GOLDEN, all_plans

FIRST_FIELDS = GOLDEN.with_name("spec_fields.json")
"""Section -> its fields in the first release, the only ones that need no mark."""
WHERE_NOT_WHAT = {"ComputeSpec", "NodesSpec", "PythonsSpec", "TrackingSpec", "ReportSpec"}
"""Sections that enter no fingerprint of a step."""
INFRA = "hba_ray.specs.infra"
"""Sections of no spec, but of what starts a cluster."""


def sections(kind: type[Spec] = Spec) -> dict[str, type[Spec]]:
    """All classes of sections in the package."""
    below = [one for one in kind.__subclasses__() if one.__module__.startswith("hba_ray.") and one.__module__ != INFRA]
    return {one.__name__: one for one in below} | {name: found for one in below for name, found in sections(one).items()}


def check_fields(section: type[Spec], first: dict[str, list[str]]) -> None:
    name = section.__name__
    assert name in first, f"{name} is a new section: list its fields in {FIRST_FIELDS.name}; see 'Adding a spec field' in CONTRIBUTING.md"
    marked = {field for field, info in section.model_fields.items() if any(isinstance(mark, Added) for mark in info.metadata)}
    unmarked = sorted(section.model_fields.keys() - marked - set(first[name]))
    way_out = "so it would rename every finished step: declare it with Added(before=...), see 'Adding a spec field' in CONTRIBUTING.md"
    assert not unmarked, f"{name}.{unmarked[0]} is new and not marked, {way_out}"


@pytest.mark.parametrize("name", sorted(sections().keys() - WHERE_NOT_WHAT))
def test_a_new_field_of_a_section_is_marked(name: str):
    check_fields(sections()[name], json.loads(FIRST_FIELDS.read_text()))


def test_a_new_field_without_a_mark_is_refused_with_what_to_do():
    class Grown(Spec):
        first: int = 0
        later: Seed = 0

    check_fields(Grown, {"Grown": ["first", "later"]})
    with pytest.raises(AssertionError, match=r"Grown\.later is new .* Added\(before=\.\.\.\)"):
        check_fields(Grown, {"Grown": ["first"]})
    with pytest.raises(AssertionError, match="Grown is a new section: list its fields"):
        check_fields(Grown, {})


def test_the_steps_of_all_shipped_specs_keep_their_names(tmp_path: Path):
    golden, found = json.loads(GOLDEN.read_text()), all_plans(tmp_path)
    assert found.keys() == golden.keys()
    renamed = {
        f"{spec}, {trial}: {step}"
        for spec, by_trial in found.items()
        for trial, names in by_trial.items()
        for step, name in names.items()
        if golden[spec].get(trial, {}).get(step) != name
    }
    assert not renamed, "\n".join(sorted(renamed))
    assert found == golden  # none has gone either

"""A result outlives upgrades: the steps of every shipped spec keep their names, so what is finished is found again."""

import json
from pathlib import Path

from tests.helpers.golden_plans import GOLDEN, all_plans


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

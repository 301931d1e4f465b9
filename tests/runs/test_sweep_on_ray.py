"""A sweep whose trials are drivers of Ray Train workers, on Ray Tune: shared steps once, two trials at a time, all of it on record."""

from collections import Counter
from pathlib import Path

import pytest

from hba_ray.runs.sweep import run_sweep
from hba_ray.runs.sweep_plan import plan_sweep
from tests.helpers.experiments import small_sweep
from tests.helpers.recorded import assert_recorded, events


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_on_ray_does_shared_steps_once_and_is_recorded_whole(tmp_path: Path):
    said: list[str] = []
    on_ray = {"compute__workers": 1, "compute__cpus": 4, "compute__object_store_mib": 100}
    spec = small_sweep(tmp_path, sweep={"axes": {"sft.lr": [1e-3, 2e-3]}}, **on_ray)
    made = run_sweep(plan_sweep(spec), said.append)
    made.check()
    assert "2 trials, 2 at a time" in said
    assert len(made.reports) == 2 and made.report is not None
    kinds = Counter(folder.name.split("-")[0] for folder in (tmp_path / "steps").iterdir())
    assert kinds == {"atlas": 1, "backbone": 1, "sft": 2, "evaluate": 2}
    assert {count for (event, _), count in events(tmp_path).items() if event in ("started", "done")} == {1}
    assert_recorded(made.mlflow, made.plan)
    assert not list(made.folder.glob("tune/**/checkpoint_*"))  # what Tune keeps is no result

"""What a sweep costs beside its trials: 20 trials of 2 s, two at a time, with MLflow; and planning all shipped specs.

Goals: at most 1.2 times the ideal wall time, and 5 s for all specs. Two trials go before the twenty: the first processes
of a Ray import for twenty seconds, which a sweep of real trials does not notice.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench._side_by_side import seconds

TRIALS, SECONDS, AT_ONCE = 20, 2.0, 2
ROOT = Path(__file__).parents[2]


def work(part: object, say: object, metric: str, report: object) -> None:
    """A trial that takes its time and records something."""
    from hba_ray.runs.sweep_plan import Assignment
    from hba_ray.store.journal import FILE, JournalTracker

    assert isinstance(part, Assignment)
    tracker = JournalTracker(part.trial.folder / FILE)
    tracker.start(part.name, {}, {})
    for step in range(20):
        tracker.log_metrics({"loss": 1.0 / (1 + step)}, step)
    time.sleep(SECONDS)
    tracker.end()


def measure() -> Iterator[dict[str, float | str]]:
    from hba_ray.cluster.session import ray_session
    from hba_ray.runs.sweep_plan import Assignment, plan_sweep
    from hba_ray.runs.tune import run_assignments
    from hba_ray.specs.sections.compute import ComputeSpec, TrackingSpec
    from hba_ray.store.journal import FILE, Record, forwarding
    from hba_ray.store.mlflow import MlflowTracker, standard_tags
    from tests.helpers.experiments import small_sweep

    with tempfile.TemporaryDirectory() as place:
        storage = Path(place)
        sweep = {"axes": {"evaluate.max_new_tokens": list(range(1, TRIALS + AT_ONCE + 1))}}
        parts = [Assignment(trial) for trial in plan_sweep(small_sweep(storage, sweep=sweep)).trials]
        mlflow = MlflowTracker(TrackingSpec(), storage)
        with ray_session(ComputeSpec(cpus=4, object_store_mib=100, fork=True), storage / "logs"):

            def sweep_once(some: list[Assignment]) -> None:
                with forwarding(mlflow, lambda line: None) as forwarder:
                    for part in some:
                        tags = standard_tags(part.trial.fingerprint, 0)
                        forwarder.add(part.trial.folder / FILE, Record(part.name, part.trial.sets, tags))
                    run_assignments(some, AT_ONCE, storage / "tune", lambda event, part, outcome: None, do=work)

            first = seconds(lambda: sweep_once(parts[:AT_ONCE]))
            wall = seconds(lambda: sweep_once(parts[AT_ONCE:]))
    yield {
        "20 trials of 2 s, 2 at a time: wall / ideal (goal <= 1.2)": wall / (TRIALS * SECONDS / AT_ONCE),
        "seconds that the first two trials took": first,
    }
    yield {
        "seconds to validate and plan all shipped specs (goal <= 5)": seconds(_plan_all),
    }


def _plan_all() -> None:
    """All in one process, as tests do it; specs whose data is not there are validated only."""
    script = (
        "import sys, tempfile\nfrom pathlib import Path\nfrom hba_ray.errors import HbaError\nfrom hba_ray.store.folders import Storage\n"
        "from hba_ray.specs import load_spec\nfrom hba_ray.runs.plan import plan\nfrom hba_ray.runs.sweep_plan import plan_sweep\n"
        "place = tempfile.mkdtemp()\n"
        "for file in sorted(Path('experiments').rglob('*.yaml')):\n"
        "    spec = load_spec(file, [f'compute.storage={place}'])\n"
        "    try:\n        plan_sweep(spec) if spec.sweep else plan(spec, Storage(place)).steps\n"
        "    except HbaError as missing:\n        print(file, missing.what)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)

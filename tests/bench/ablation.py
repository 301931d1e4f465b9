"""A BAM ablation of twelve trials as one sweep, against a process for each trial, two at a time as in the sweep.

What the trials share is done before and given to both, so that only the trials are compared. Goal: twice as fast.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench._side_by_side import seconds

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "experiments" / "ablations" / "bam_streams.yaml"
AT_ONCE = 2


def measure() -> Iterator[dict[str, float | str]]:
    from hba_ray.specs import load_spec, trials

    sets = [[f"{key}={json.dumps(value)}" for key, value in trial.sets.items()] for trial in trials(load_spec(SPEC))]
    with tempfile.TemporaryDirectory() as place:
        shared, apart = Path(place) / "shared", Path(place) / "apart"
        yield {"seconds of atlas, backbone and SFT before": seconds(lambda: _run(shared, "stages=[sft]", "sweep=null"))}
        _run(shared, "sweep=null", "bam.epochs=1")  # descriptors, the model's states, and what an adapter is compared with
        shutil.copytree(shared, apart)
        together = seconds(lambda: _run(shared))
        yield {"seconds of the sweep": together}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            alone = seconds(lambda: list(pool.map(lambda words: _run(apart, "sweep=null", *words), sets)))
    yield {
        "12 BAM trials as a sweep: times as fast as a process for each (goal >= 2)": alone / together,
        "seconds of the processes": alone,
    }


def _run(storage: Path, *words: str) -> None:
    command = [sys.executable, "-m", "hba_ray", "run", str(SPEC), f"compute.storage={storage}", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

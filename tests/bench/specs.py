"""Time to refuse a misspelt key, from the command line's start to its end. Goal: under 2 s."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench._side_by_side import seconds

SPEC = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


def measure() -> Iterator[dict[str, float | str]]:
    command = [sys.executable, "-m", "hba_ray", "validate", str(SPEC), "sft.lrr=1"]
    runs = [seconds(lambda: subprocess.run(command, capture_output=True, check=False)) for _ in range(5)]
    yield {"seconds to refuse a key (goal <= 2)": median(runs)}

"""The quickstart's supervised part with its storage in a bucket, against the same in a folder, in turns.

Goals: at most 1.3 times the seconds; another host reads no byte twice. Requests are told a step. The server of the bucket is moto's, on
this machine, so that what is measured is what runs do about a bucket, and not a network.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hba_ray.runs.plan import Experiment, plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs.load import load_spec
from hba_ray.store.mirror import Mirror, mirror_of
from tests.helpers.buckets import make_bucket, s3_server

ROOT = Path(__file__).parents[2]
ROUNDS = 2


def measure() -> Iterator[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as name, s3_server() as access, patch.dict(os.environ, access | {"HBA_SCRATCH": f"{name}/a"}):
        bucket, seconds = make_bucket(access["AWS_ENDPOINT_URL"]), {"folder": 0.0, "bucket": 0.0}
        for number in range(ROUNDS):
            for kind, storage in (("folder", f"{name}/runs"), ("bucket", bucket)):
                began = time.perf_counter()
                experiment = _done(storage, seed=number)
                seconds[kind] += time.perf_counter() - began
        yield {"seconds in a folder": seconds["folder"] / ROUNDS, "seconds in a bucket": seconds["bucket"] / ROUNDS}
        yield {"ratio (goal <= 1.3)": seconds["bucket"] / seconds["folder"]}
        steps = ROUNDS * len(experiment.steps)
        yield {"requests a step": sum(_mirror(experiment).bucket.requests.values()) / steps}
        with patch.dict(os.environ, {"HBA_SCRATCH": f"{name}/b"}):
            elsewhere = plan(_spec(bucket, seed=ROUNDS - 1))
            sizes = sum(file.stat().st_size for step in elsewhere.steps for file in step.whole().rglob("[!.]*") if file.is_file())
            read = _mirror(elsewhere).bucket.moved["read"]
            yield {"bytes that another host reads, a byte of what the steps have made": read / sizes}
            for step in elsewhere.steps:
                step.whole()
            yield {"bytes that it reads again (goal 0)": float(_mirror(elsewhere).bucket.moved["read"] - read)}


def _spec(storage: str, seed: int):
    words = ["stages=[sft]", "descriptors.streams=[]", "descriptors.probe=false", f"seed={seed}", f"compute.storage={storage}"]
    return load_spec(ROOT / "experiments" / "quickstart.yaml", words)


def _done(storage: str, seed: int) -> Experiment:
    experiment = plan(_spec(storage, seed))
    run_experiment(experiment, lambda line: None)
    return experiment


def _mirror(experiment: Experiment) -> Mirror:
    found = mirror_of(experiment.folder)
    assert found is not None
    return found

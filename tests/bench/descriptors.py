"""Descriptors: two actors against a plain loop, the cost of openSMILE, memory over a long clip, and a finished store found again.

Start-up (Ray's, an actor's imports, MediaPipe's models) is left out: rates are those between the first and the last clip.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ray.data import DataContext

from hba_ray.cluster.session import ray_session
from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.toy import film, speak
from hba_ray.descriptors.acoustic import AcousticExtractor
from hba_ray.descriptors.environments import build, default_folder, runtime_env
from hba_ray.descriptors.extract import extract
from hba_ray.descriptors.keys import Wanted
from hba_ray.descriptors.pools import Work, describe_here, describe_on_ray
from hba_ray.descriptors.tables import maker, table_of
from hba_ray.specs import AtlasSpec, ComputeSpec
from hba_ray.specs.sections.descriptors import FUNCTIONALS, DescriptorsSpec, Stream
from tests.bench._side_by_side import seconds
from tests.descriptors.conftest import movie, row, wav, write_rows

ROOT = Path(__file__).parents[2]
CLIPS = {"pose": 60, "acoustic": 300}
ROWS, LONG_SECONDS, SHORT_SECONDS = 10_000, 600, 10
COLUMNS = {"pose": "mean_std", "acoustic": "functionals"}
SPEC = DescriptorsSpec(streams=("pose", "acoustic"), use_released=False)

PLAIN_LOOP = """
import json, pickle, resource, sys, time
from pathlib import Path
import numpy as np
make, column, vectors_file, *clips = sys.argv[1:]
extractor, vectors, first = pickle.loads(bytes.fromhex(make))(), [], 0.0
for clip in clips:
    vectors.append(extractor.describe(Path(clip), where=clip)[column])
    first = first or time.perf_counter()
np.save(vectors_file, np.stack(vectors))
print(json.dumps({"seconds": time.perf_counter() - first, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def measure() -> Iterator[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as folder:
        python = str(build("pose", default_folder("local", Path(folder))))
        yield measure_actors(Path(folder), python)
        yield measure_opensmile()
        yield measure_memory(Path(folder), python)
        yield measure_finished_store(Path(folder) / "store")


def measure_actors(folder: Path, python: str) -> dict[str, float | str]:
    """Both streams, on clips of the toy atlas."""
    facts: dict[str, float | str] = {}
    rng = np.random.default_rng(0)
    motions, tones = ("nod", "shake", "still"), ("anger", "happy", "sad")
    media = {
        "pose": [film(motions[number % 3], rng) for number in range(CLIPS["pose"])],
        "acoustic": [speak(tones[number % 3], rng) for number in range(CLIPS["acoustic"])],
    }
    streams: tuple[tuple[Stream, str, str], ...] = (("pose", python, "videos"), ("acoustic", sys.executable, "audios"))
    with ray_session(ComputeSpec(cpus=4, fork=True), folder / "logs"):
        DataContext.get_current().wait_for_min_actors_s = 600  # both are up before the first clip
        for stream, interpreter, column in streams:
            index = _atlas(folder / stream, column, media[stream])
            loop_seconds, expected = _plain_loop(stream, interpreter, folder / stream, len(index.table))
            table = table_of(folder / "tables", SPEC, stream)
            wanted = [Wanted(line, column.rstrip("s"), f"{line:064x}") for line in range(len(index.table))]
            work = Work(index, wanted, table, maker(SPEC, stream))
            environment = runtime_env(stream, default_folder("local", folder))
            actor_seconds = _first_to_last(work, environment)
            table.fold()
            made = np.stack(table.read([one.clip for one in wanted], COLUMNS[stream]))
            rate = (len(wanted) - 1) / actor_seconds
            facts[f"{stream} clips a second, one process"] = (len(wanted) - 1) / loop_seconds
            facts[f"{stream} clips a second, two actors"] = rate
            facts[f"{stream} speed-up (goal >= 1.7)"] = loop_seconds / actor_seconds
            facts[f"{stream} vectors bit-equal"] = str(np.array_equal(made, expected))
    return facts


def _atlas(folder: Path, column: str, clips: list[bytes]) -> AtlasIndex:
    """A jsonl atlas of these clips, one a row."""
    folder.mkdir()
    rows = []
    for number, clip in enumerate(clips):
        (folder / f"{number}.bin").write_bytes(clip)
        rows.append(row(str(number), **{column: [f"{number}.bin"]}))
    write_rows(folder, rows)
    return build_index(AtlasSpec(root=str(folder)), folder)


def _plain_loop(stream: Stream, python: str, folder: Path, clips: int) -> tuple[float, np.ndarray]:
    files = [str(folder / f"{number}.bin") for number in range(clips)]
    facts = _run_loop(stream, python, files, SPEC, folder / "vectors.npy")
    return facts["seconds"], np.load(folder / "vectors.npy")


def _run_loop(stream: Stream, python: str, files: list[str], spec: DescriptorsSpec, vectors: Path) -> dict[str, float]:
    """One process, one extractor, one clip after the other. What makes the extractor travels, for its environment cannot read a spec."""
    command = [python, "-c", PLAIN_LOOP, pickle.dumps(maker(spec, stream)).hex(), COLUMNS[stream], str(vectors), *files]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _first_to_last(work: Work, environment: dict[str, Any]) -> float:
    """Seconds from the first clip that is done to the last."""
    times = [time.perf_counter() for _ in describe_on_ray(work, actors=2, runtime_env=environment)]
    assert len(times) == len(work.wanted)
    return times[-1] - times[0]


def measure_opensmile(clips: int = 12) -> dict[str, float | str]:
    """CPU seconds on one core for each second of sound, decoding included."""
    extractor, clip = AcousticExtractor("functionals"), wav(SHORT_SECONDS)
    extractor.describe(clip, where="warm-up")
    ratios = []
    for _ in range(clips):
        started = time.process_time()
        extractor.describe(clip, where="clip")
        ratios.append((time.process_time() - started) / SHORT_SECONDS)
    return {"openSMILE's real-time factor, 10 s clips (goal <= 0.02)": median(ratios)}


def measure_memory(folder: Path, python: str) -> dict[str, float | str]:
    """The most that a process takes for a short clip and for a long one, two frames a second of each looked at."""
    spec = DescriptorsSpec.model_validate({"pose": {"fps": 2}})
    facts: dict[str, float | str] = {}
    for length in (SHORT_SECONDS, LONG_SECONDS):
        file = folder / f"{length}.mp4"
        file.write_bytes(movie(10 * length, side=256))
        facts[f"pose, MiB at the peak, {length} s clip"] = _run_loop("pose", python, [str(file)], spec, folder / "long.npy")["peak_mib"]
    return facts


class Noise:
    """Stands in for openSMILE: what a finished store holds does not matter to finding it."""

    def describe(self, clip: bytes | Path, *, where: str, keep: Path | None = None) -> dict[str, Any]:
        seed = int(hashlib.sha256(str(clip).encode()).hexdigest()[:8], 16)
        return {"frames": 1, "functionals": np.random.default_rng(seed).random(FUNCTIONALS, np.float32)}


def measure_finished_store(folder: Path) -> dict[str, float | str]:
    """Until an extraction of 10,000 described rows knows that nothing is missing."""
    folder.mkdir()
    index = _atlas(folder / "atlas", "audios", [f"clip {number}".encode() for number in range(ROWS)])
    spec = DescriptorsSpec(streams=("acoustic",), use_released=False)
    table = table_of(folder, spec, "acoustic")
    wanted = [Wanted(line, "audio", hashlib.sha256(f"clip {line}".encode()).hexdigest()) for line in range(ROWS)]
    for _ in describe_here(Work(index, wanted, table, Noise)):
        pass
    run = partial(extract, spec, index, ("train",), folder, compute=ComputeSpec(workers=0))
    run()  # keeps the keys of the clips
    summaries = []
    taken = median(seconds(lambda: summaries.append(run())) for _ in range(3))
    assert all(one.streams["acoustic"].extracted == 0 and one.streams["acoustic"].described == ROWS for one in summaries)
    return {"seconds to find 10,000 rows finished (goal <= 5)": taken}

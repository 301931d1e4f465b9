"""What people wait for before anything is done: the plan of a spec, and the preflight of a run, at the size of the whole benchmark.

Times are CPU seconds, which other work on the machine changes least. The plan is a command, from its start to its end.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hba_ray.runs.preflight import capacity_of, judged, needs_of, starting
from hba_ray.runs.sweep_plan import planned_trials
from hba_ray.specs import load_spec
from hba_ray.specs.paper import experiments_folder

ROWS = {"train": 80_000, "validation": 10_000, "test": 11_964}
TRIALS = {1_000: 3, 10_000: 30}
"""Trials of a sweep -> seconds that its plan may take."""
SAID = "<video>\n<audio>\nWhat does the person feel who says line {} of a talk about many things, said with a pause in between?"


def measure() -> Iterator[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from preflight(folder)
        for split, rows in ROWS.items():
            write_jsonl(folder / "atlas", split, rows)
        spec = folder / "spec.yaml"
        spec.write_text(
            f"name: large\natlas: {{source: released, root: {folder}/atlas}}\nmodel: {{backbone: tiny}}\nstages: [sft]\n"
            f"compute: {{storage: {folder}/runs, workers: 0}}\n"
        )
        words = [sys.executable, "-m", "hba_ray", "plan", str(spec)]
        yield {f"CPU-seconds of hba plan, a jsonl of {sum(ROWS.values())} rows (goal <= 5)": _cpu_seconds(words)}
        yield {"the same again, its digests known (goal <= 5)": _cpu_seconds(words)}
        for trials, goal in TRIALS.items():
            spec.write_text(
                f"name: wide\natlas: {{source: toy}}\nmodel: {{backbone: tiny}}\nstages: [sft]\nsweep: {{seeds: {list(range(trials))}}}\n"
                f"compute: {{storage: {folder}/runs, workers: 0}}\n"
            )
            yield {f"CPU-seconds of hba plan, {trials:,} trials (goal <= {goal})": _cpu_seconds(words)}
        yield {"MiB of memory at the peak of the last (goal <= 1024)": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def preflight(folder: Path) -> Iterator[dict[str, float | str]]:
    """All that the sweep of a table needs, held against this machine, beyond imports; services are not asked."""
    spec = load_spec(experiments_folder(None) / "paper" / "T4_multitask.yaml", [f"compute.storage={folder}", "atlas.root=-"])
    began = time.process_time()
    trials = planned_trials(spec)
    needs = [*needs_of(trials), capacity_of(trials)]
    judged(needs, [starting(spec, needs)])
    yield {f"CPU-seconds of planning and preflight, {len(trials)} trials and {len(needs)} needs (goal <= 5)": time.process_time() - began}


def write_jsonl(folder: Path, split: str, rows: int) -> None:
    """Lines as the released ones are; the clips that they name are not there, which a plan finds out for each."""
    folder.mkdir(exist_ok=True)
    shared = {"answer": "sad", "images": [], "texts": [], "dataset": "cremad", "task": "EMO", "class_label": "sad"}
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
        for row in range(rows):
            clips = {"videos": [f"clips/{split}{row}.mp4"], "audios": [f"clips/{split}{row}.wav"]}
            named = {"problem": SAID.format(row), "modality_signature": "text_video_audio", **shared, **clips}
            lines.write(json.dumps(named) + "\n")


def _cpu_seconds(words: list[str]) -> float:
    before = _of_children()
    subprocess.run(words, check=True, capture_output=True, env=os.environ)
    return _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

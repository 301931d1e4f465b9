"""A real model learns from real words: the spec of MUStARD, with pretrained weights, on invented lines in the corpus's own layout."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from hba_ray.report.tables import read_json
from hba_ray.runs.plan import plan
from hba_ray.runs.run import run_experiment
from hba_ray.specs import load_spec

SPEC = Path(__file__).parents[1] / "experiments" / "small" / "mustard.yaml"
THINGS = (
    "the bus",
    "my sister",
    "the kettle",
    "our neighbour",
    "the lift",
    "the printer",
    "this chair",
    "the landlord",
    "my tooth",
    "the dog",
)
MISHAPS = ("broke again", "was late once more", "woke me at four", "fell on my foot")
SARCASTIC = ("Oh wonderful, {} {}. Just what I needed.", "Great, {} {}. My day is complete.")
SINCERE = ("Sorry that I am late, {} {}.", "Could you help me? I think {} {}.")


def write_lines(folder: Path) -> None:
    """160 lines of five speakers; how a line is put tells whether it is meant."""
    lines = {}
    for number, (thing, mishap, (sarcasm, form)) in enumerate(
        product(THINGS, MISHAPS, [(True, one) for one in SARCASTIC] + [(False, one) for one in SINCERE])
    ):
        lines[f"1_{number}"] = {
            "utterance": form.format(thing, mishap),
            "speaker": f"SPEAKER{number % 5}",
            "context": ["How are you?"],
            "context_speakers": ["SOMEONE"],
            "show": "SHOW",
            "sarcasm": sarcasm,
        }
    (folder / "sarcasm_data.json").write_text(json.dumps(lines), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_pretrained_weights_learn_what_is_meant_and_beat_the_majority(smollm2: Path, whisper_tiny: Path, tmp_path: Path):
    write_lines(tmp_path)
    sources = [f"model.small.language={smollm2}", f"model.small.speech={whisper_tiny}"]
    where = [f"atlas.root={tmp_path}", f"compute.storage={tmp_path / 'runs'}", "compute.cpus_per_worker=1"]
    fewer = ["atlas.sample={train: 48, validation: 8, test: 24}", "sft.epochs=2", "sft.batch=8", "sft.warmup_steps=2"]
    experiment = plan(load_spec(SPEC, [*sources, *where, *fewer]))
    run_experiment(experiment, print)
    report = read_json((experiment.folder / "report.json").read_bytes())
    (learnt,) = report.scores["sft"].datasets
    assert (learnt.dataset, learnt.rows) == ("mmsd", 24)
    assert learnt.interval is not None and learnt.majority is not None and learnt.interval[0] > learnt.majority
    assert "probe words" in report.scores

"""Every shipped spec planned, as it stands and (the paper's tables) at toy scale; each step by its fingerprint.

`python -m tests.helpers.golden_plans` writes `tests/golden/fingerprints.json` again. Do so only where results change and the VERSION
of a step says so: a new name is hours of work that every user does again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from hba_ray.runs.plan import plan
from hba_ray.runs.reproduce import read_table
from hba_ray.specs import ExperimentSpec, load_spec, trials
from hba_ray.specs.paper import TOY
from hba_ray.store.folders import Storage
from tests.convert.conftest import write_cremad, write_meld, write_mustard
from tests.helpers.corpora import write_intentqa

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
GOLDEN = Path(__file__).parents[1] / "golden" / "fingerprints.json"
Names = dict[str, str]
"""Name of a step -> its fingerprint."""


def write_atlas(folder: Path) -> Path:
    """A released atlas of one row a split, the same bytes wherever it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        row = {"problem": "<text>\nIs this sarcasm?", "answer": "yes", "texts": ["So kind of you."], "dataset": "mmsd", "task": "sarcasm"}
        (folder / f"{split}.jsonl").write_text(json.dumps({**row, "id": split, "modality_signature": "text"}) + "\n")
    return folder


def all_plans(folder: Path) -> dict[str, dict[str, Names]]:
    """Spec -> trial -> its steps.

    Args:
        folder: for atlases that the specs ask for.
    """
    atlas = write_atlas(folder / "atlas")
    meld, mustard, cremad, intentqa = (folder / name for name in ("meld", "mustard", "cremad", "intentqa"))
    for place, write in ((meld, write_meld), (mustard, write_mustard), (cremad, write_cremad), (intentqa, write_intentqa)):
        place.mkdir()
        write(place)
    shutil.rmtree(intentqa / "Videos")  # clips count by the time at which they were written
    made: dict[str, dict[str, Names]] = {}
    for file in sorted(EXPERIMENTS.rglob("*.yaml")):
        name, is_paper = file.relative_to(EXPERIMENTS).as_posix(), file.parent.name == "paper"
        roots = {"meld_text": meld, "meld": meld, "grpo_meld": meld, "scaling": meld, "mustard": mustard, "bam_cremad": cremad}
        roots |= {"omnisapiens_7b": atlas} | ({file.stem: atlas} if is_paper else {})
        hub = ["model.small.language=HuggingFaceTB/SmolLM2-135M-Instruct", "model.small.speech=openai/whisper-tiny.en"]
        where = [f"compute.storage={folder / 'runs'}", *hub]  # ids on the hub, since the packages need not be installed
        rooted = [f"atlas.root={roots[file.stem]}"] if file.stem in roots else []
        if other := {"meld_mustard_transfer": mustard, "retention": intentqa}.get(file.stem):
            rooted = [f"atlas.sources=[{{source: meld, root: {meld}}}, {{source: {other.name}, root: {other}}}]"]
        made[name] = _plans(load_spec(file, [*where, *rooted]))
        if is_paper:
            made[f"{name} --scale toy"] = _plans(read_table(file, where, toy=EXPERIMENTS / TOY))
    return made


def _plans(spec: ExperimentSpec) -> dict[str, Names]:
    storage = Storage(spec.compute.storage)
    every = [(trial.name, trial.spec) for trial in trials(spec)] or [(spec.name, spec)]
    return {name: {step.name: step.fingerprint for step in plan(one, storage).steps} for name, one in every}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(all_plans(Path(scratch)), indent=1) + "\n")

"""Every shipped spec, run from its first step to its table: those of the paper's tables at toy scale, the others as they stand.

Hours on two cores, so this is no part of `make test`: `make nightly-specs` runs it. All share one storage, as a user's do, so what tables
have in common is done once. HBA_NIGHTLY names the storage; one that is there goes on where it was.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hba_ray.evaluation.scores import DatasetScore
from hba_ray.report.tables import read_json
from hba_ray.specs import load_spec
from tests.convert.conftest import write_meld
from tests.helpers.stub_judge import KEY, StubJudge

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "experiments").rglob("*.yaml"))
PATIENCE_SECONDS = 3600
NEEDS_WEIGHTS = ROOT / "experiments" / "base" / "omnisapiens_7b.yaml"
"""What the tables extend; by itself it has nothing small to run."""


DATA_OF = {
    "mustard": ["MUSTARD_ROOT"],
    "meld": ["MELD_ROOT"],
    "grpo_meld": ["MELD_ROOT"],
    "scaling": ["MELD_ROOT"],
    "meld_mustard_transfer": ["MELD_ROOT", "MUSTARD_ROOT"],
    "bam_cremad": ["CREMAD_ROOT"],
    "retention": ["MELD_ROOT", "INTENTQA_ROOT"],
}
"""Spec of the small model -> variables that name the folders of its public data. It also needs the weights of `make small`."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("HBA_NIGHTLY") or tmp_path_factory.mktemp("nightly")).absolute()


@pytest.fixture(scope="module")
def judge() -> Iterator[StubJudge]:
    with StubJudge(right="nods", others=("gpt-5-nano-2025-08-07", "Qwen/Qwen3-30B-A3B")) as stub:
        yield stub


def words_of(spec: Path, storage: Path, judge: StubJudge, folder: Path) -> list[str]:
    """The command that runs a spec."""
    where = f"compute.storage={storage}"
    if spec.parent.name == "small":
        for name in DATA_OF[spec.stem]:
            if name not in os.environ:
                pytest.skip(f"{name} names no folder of its public data")
        return ["run", str(spec), where]
    if spec.parent.name != "paper":
        more = [f"atlas.root={write_meld(folder)}", "sft.batch=4", "compute.micro_batch=4"] if spec.stem == "meld_text" else []
        return ["run", str(spec), where, *more]
    words = ["reproduce", spec.stem.partition("_")[0], "--scale", "toy", where]
    if spec.stem in ("T17_retention", "T18_judges"):  # the tables that are about what judges say
        words.append(f"evaluate.judge={{base_url: '{judge.address}/v1'}}")
    return words


def trained_scores(storage: Path, name: str) -> list[DatasetScore]:
    """The scores of the arm `sft` in the newest report of a spec."""
    newest = max(storage.glob(f"{name}-*/report.json"), key=lambda file: file.stat().st_mtime)
    return list(read_json(newest.read_bytes()).scores["sft"].datasets)


@pytest.mark.shipped
@pytest.mark.timeout(PATIENCE_SECONDS)
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != NEEDS_WEIGHTS], ids=lambda spec: spec.stem)
def test_a_shipped_spec_runs_to_its_table(spec: Path, storage: Path, judge: StubJudge, tmp_path: Path):
    words = words_of(spec, storage, judge, tmp_path)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY}
    environ |= {"HBA_QWEN3_URL": f"{judge.address}/v1", "HBA_QWEN3_KEY_ENV": "OPENAI_API_KEY"}
    done = subprocess.run([sys.executable, "-m", "hba_ray", *words], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10_000:]
    assert "Measured" in done.stdout if words[0] == "reproduce" else "Score" in done.stdout
    if spec.parent.name == "small" and spec.stem in ("mustard", "meld"):
        for scored in trained_scores(storage, load_spec(spec).name):
            assert scored.interval is not None and scored.majority is not None
            assert scored.interval[0] > scored.majority, f"{scored.dataset}: {scored.interval} is not clear of {scored.majority}"
    if spec.stem in ("grpo_toy", "grpo_meld"):
        said = re.search(r"in the last; the difference is (\S+) \((\S+) to \S+\)", " ".join(done.stdout.split()))
        assert said and float(said[1]) > 0.1 and float(said[2]) > 0, done.stdout[-5000:]

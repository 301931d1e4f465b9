"""Whatever stands in the folder of a checkpoint: it is loaded, or refused with a CheckpointError; nothing is executed, time is bounded."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hba_ray.data.tasks import CLASSES
from hba_ray.models.bam import Bam, Head
from hba_ray.models.checkpoints import load_adapters, load_class_heads, model_identity, save_adapters
from hba_ray.models.released import load_released_adapters, load_released_head, read_released
from hba_ray.models.settings import read_settings, write_settings
from hba_ray.specs import fingerprint
from hba_ray.specs.sections.bam import AUTHORS_BAM, BamSpec
from tests.helpers.experiments import small_experiment
from tests.helpers.hostile import Outcome, hostile, outcome
from tests.helpers.hostile_checkpoints import damage

WIDTHS, HIDDEN = {"pose": 6, "acoustic": 5}, 8
MOST_SECONDS = 5.0


def make_bam() -> Bam:
    torch.manual_seed(0)
    return Bam(BamSpec.model_validate({"hidden": 4}), WIDTHS, HIDDEN, Head(HIDDEN, 7)).eval()


def released_bam() -> Bam:
    return Bam(BamSpec.model_validate(AUTHORS_BAM | {"hidden": 4}), WIDTHS, HIDDEN, Head(HIDDEN, 7))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each layout: a model of ours with its settings, adapters of ours, released ones in both kinds of file."""
    root = tmp_path_factory.mktemp("whole")
    heads = {
        f"heads.{slot}.{part}": torch.ones((k, HIDDEN) if part == "weight" else k)
        for slot, k in enumerate((7, 8, 2, 2, 2, 2, 2))
        for part in ("weight", "bias")
    }
    (root / "model").mkdir()
    save_file(heads, root / "model" / "model.safetensors")
    (root / "model" / "model.json").write_text(json.dumps({"format": 1, "hidden": HIDDEN, "classes": fingerprint(CLASSES), "meta": {}}))
    write_settings(root / "model", small_experiment(root))
    save_adapters(make_bam(), root / "adapters", base="abc", dataset="toy_tone", meta={})
    for name, save in (("released", torch.save), ("safetensors", save_file)):
        (root / name).mkdir()
        (root / name / "meta.json").write_text(json.dumps({"model_order": ["base", "video", "audio"]}))
        for number, state in enumerate((heads, *(dict(released_bam().adapters[stream].state_dict()) for stream in WIDTHS))):
            suffix = f"_{number}" if number else ""
            save(state, root / name / (f"pytorch_model_fsdp{suffix}.bin" if name == "released" else f"model{suffix}.safetensors"))
    return root


def read_model(folder: Path) -> None:
    load_class_heads(folder)
    model_identity("owner/name", folder)
    read_settings(folder, "sft.checkpoint")


def read_adapters(folder: Path) -> None:
    load_adapters(folder, base="abc", hidden=HIDDEN)


def read_released_folder(folder: Path) -> None:
    read_released(folder)
    bam = released_bam()
    load_released_adapters(bam, folder)
    load_released_head(bam, folder, "meld_senti", {"lora": torch.ones(3)})


READERS: dict[str, Callable[[Path], None]] = {
    "model": read_model,
    "adapters": read_adapters,
    "released": read_released_folder,
    "safetensors": read_released_folder,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_whole_checkpoint_is_read(whole: Path, kind: str):
    READERS[kind](whole / kind)


@pytest.mark.hostile("checkpoints")
@pytest.mark.parametrize("kind", READERS)
def test_any_checkpoint_is_loaded_or_refused(whole: Path, tmp_path: Path, kind: str):
    marker, outcomes = tmp_path / "executed", Counter[Outcome]()

    @hostile("checkpoints", 150)
    @given(st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / kind, folder)
        damage(folder, Random(seed), marker)
        outcomes[outcome(lambda: READERS[kind](folder), seconds=MOST_SECONDS)] += 1
        assert not marker.exists()

    check()
    assert outcomes[Outcome.REFUSED] > outcomes[Outcome.ACCEPTED], "most of what is done to a checkpoint makes it unreadable"

"""A toy atlas, a tiny model and the folder that a GRPO run starts from, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.toy import build_toy
from hba_ray.models.tiny import build_tiny
from hba_ray.rl.dataset import RowSettings
from hba_ray.specs import ExperimentSpec

SPEC = {
    "name": "rl",
    "stages": ["grpo"],
    "atlas": {"source": "toy", "toy": {"rows": 96}, "media": {"audio_seconds": 2, "video_frames": 4, "video_pixels": 3136}},
    "model": {"backbone": "tiny"},
    "compute": {"fork": True},
}


@dataclass(frozen=True)
class Toy:
    """Attributes:
    atlas: folder of the index.
    start: folder of the model in full layout.
    """

    spec: ExperimentSpec
    atlas: Path
    index: AtlasIndex
    tiny: Path
    start: Path

    @property
    def settings(self) -> RowSettings:
        media = self.spec.atlas.media.model_dump(mode="json")
        return RowSettings(media, ("audio", "video"), "{problem} <think> </think> \\boxed{}", 0, True, "", False, 0)

    def line(self, signature: str, split: str = "train") -> int:
        """The first row of a split with these modalities."""
        signatures = self.index.table.column("modality_signature").to_pylist()
        return next(int(line) for line in self.index.rows_of(split) if signatures[line] == signature)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    import torch

    from hba_ray.rl.checkpoints import write_start

    folder, spec = tmp_path_factory.mktemp("rl"), ExperimentSpec.model_validate(SPEC)
    (folder / "atlas").mkdir()
    build_toy(spec.atlas.toy, folder / "atlas" / "rows", "jsonl")
    index = build_index(spec.atlas, folder / "atlas" / "rows", "jsonl")
    index.save(folder / "atlas")
    build_tiny(spec.model.tiny, folder / "tiny", index.texts("train"), audio_seconds=2)
    write_start(spec, str(folder / "tiny"), None, folder / "start", dtype=torch.float32)
    return Toy(spec, folder / "atlas", index, folder / "tiny", folder / "start")


@pytest.fixture(scope="session")
def omni(toy: Toy) -> Any:
    """(actor, processor) as verl gets them."""
    from hba_ray.rl.parity import load_actor

    return load_actor(str(toy.start))

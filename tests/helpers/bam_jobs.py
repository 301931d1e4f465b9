"""An SFT checkpoint, stores of its states, and descriptors made up for the rows: what BAM's tests start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.data.tasks import SPLITS
from hba_ray.models.bam import DescriptorBatch
from hba_ray.models.checkpoints import save_model
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.training.bam_job import BamJob
from hba_ray.training.sft import build_model
from hba_ray.training.states import compute_states
from tests.helpers.sft_jobs import small_spec

WIDTHS = {"pose": 12, "acoustic": 20}


def noise(name: str, width: int) -> torch.Tensor:
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(width).astype(np.float32))


def describe_by_noise(split: str, sample_ids: Sequence[str]) -> dict[str, DescriptorBatch]:
    """Both streams; a third of the rows lack the acoustic one, and hold no number there. A micro-batch of fillers has no rows."""
    given = {}
    for stream, width in WIDTHS.items():
        vectors = torch.stack([torch.zeros(width), *(noise(f"{stream} {sample_id}", width) for sample_id in sample_ids)])[1:]
        present = torch.tensor([stream == "pose" or float(noise(sample_id, 1)) < 0.5 for sample_id in sample_ids], dtype=torch.bool)
        vectors[~present] = torch.nan
        given[stream] = DescriptorBatch(vectors, present)
    return given


def describe_by_label(label_of: Mapping[str, str], shuffled: bool = False) -> Callable[[str, Sequence[str]], dict[str, DescriptorBatch]]:
    """Pose vectors that differ by label in their first features; shuffled, they belong to other rows."""
    directions = {label: 2 * noise(label, WIDTHS["pose"]) for label in sorted(set(label_of.values()))}

    def describe(split: str, sample_ids: Sequence[str]) -> dict[str, DescriptorBatch]:
        order = np.random.default_rng(7).permutation(len(sample_ids)) if shuffled else range(len(sample_ids))
        vectors = torch.stack([noise(sample_ids[i], WIDTHS["pose"]) + directions[label_of[sample_ids[i]]] for i in order])
        return {"pose": DescriptorBatch(vectors, torch.ones(len(sample_ids), dtype=torch.bool))}

    return describe


@dataclass(frozen=True)
class BamShop:
    """Makes jobs on one SFT checkpoint, and computes the states they need."""

    index: AtlasIndex
    backbone: Path
    model: Path
    folder: Path

    @cached_property
    def names(self) -> dict[int, str]:
        rows = enumerate(read_rows(self.index, range(len(self.index.table))))
        return {line: row.sample_id for line, row in rows if isinstance(row, Row)}

    def job(self, spec_sections: dict | None = None, **bam: object) -> BamJob:
        spec = small_spec(**({"model": {"train": "lora", "lora": {"rank": 4, "dropout": 0.3}}} | (spec_sections or {})))
        fields = {"cache_precision": "fp32", "batch": 4} | bam
        return BamJob(spec, BamSpec.model_validate(fields), str(self.backbone), str(self.model), self.index, self.states, self.names)

    @property
    def states(self) -> dict[str, str]:
        return {split: str(self.folder / "states" / split) for split in SPLITS}

    def with_states(self, job: BamJob, *splits: str, open_answers: bool = False) -> BamJob:
        for split in splits or ("train", "validation"):
            compute_states(job.states_job(split, open_answers=open_answers), job.states_folder(split, open_answers=open_answers))
        return job

    def with_folder(self, folder: Path) -> BamShop:
        return replace(self, folder=folder)


def make_shop(index: AtlasIndex, backbone: Path, folder: Path, seed: int = 1) -> BamShop:
    """An untrained SFT checkpoint whose LoRA does something."""
    shop = BamShop(index, backbone, folder / f"sft-{seed}", folder)
    torch.manual_seed(seed)
    model = build_model(shop.job().spec, str(backbone), bf16=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    save_model(model, shop.model, {})
    return shop


def words_atlas(folder: Path, rows: Mapping[str, int]) -> tuple[AtlasIndex, dict[str, str]]:
    """Text rows whose text says nothing about their label; and sample id -> label."""
    folder.mkdir()
    generator = np.random.default_rng(3)
    labels = {}
    for split, count in rows.items():
        lines = []
        for number in range(count):
            label = ("sarcasm", "not sarcasm")[int(generator.integers(2))]
            labels[f"{split}-{number}"] = label
            problem = f"remark {generator.integers(100)}: sarcasm?"
            record = {"problem": problem, "answer": label, "dataset": "toy_words", "sample_id": f"{split}-{number}"}
            lines.append(json.dumps(record))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return build_index(AtlasSpec(root=str(folder)), folder), labels

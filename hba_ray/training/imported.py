"""Turns released models and adapters, which others trained, into the checkpoints that our own training writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from hba_ray.errors import CheckpointError
from hba_ray.models.bam import Bam
from hba_ray.models.checkpoints import load_model, save_adapters, save_model
from hba_ray.models.released import load_released, load_released_adapters, load_released_head, read_released
from hba_ray.specs import ExperimentSpec
from hba_ray.training.bam_job import BamJob, Supply
from hba_ray.training.sft import build_model


def take_model(spec: ExperimentSpec, backbone: str, given: Path, folder: Path) -> None:
    """Writes a released model, or one of our own, as a checkpoint of the spec's model.

    Args:
        given: folder of the model, in the released layout or in ours.
        folder: of the checkpoint.

    Raises:
        CheckpointError: it is damaged, of another model, or holds changed weights that a checkpoint of this spec does not store.
    """
    torch.manual_seed(spec.seed)
    model = build_model(spec, backbone, bf16=spec.uses_bf16)
    if (given / "model.json").is_file():
        load_model(model, given)
    else:
        report = load_released(model, read_released(given), where=str(given))
        if report.changed:
            what = f"holds {len(report.changed)} weights that differ from the backbone's although this spec does not train them, first: "
            way_out = "set sft.mode=staged where it is lm_head alone, or name the backbone that it was trained from as model.backbone"
            raise CheckpointError(str(given), what + report.changed[0], way_out)
    save_model(model, folder, {"taken_from": given.name})


def take_adapters(job: BamJob, dataset: str, widths: Mapping[str, int], given: Path, folder: Path) -> None:
    """Writes a dataset's released adapters, and the head that they were trained with, as a checkpoint of adapters.

    Args:
        widths: stream -> D, of the dataset's streams.

    Raises:
        CheckpointError: they are damaged, of other streams or sizes, or were trained on another SFT model.
    """
    supply = Supply(job)
    bam = Bam(job.bam, widths, supply.hidden, supply.head(dataset))
    load_released_adapters(bam, given)
    load_released_head(bam, given, dataset, load_file(Path(job.model) / "model.safetensors"))
    save_adapters(bam, folder, base=job.base, dataset=dataset, meta={"taken_from": given.name}, spec=job.spec)

"""The states steps, one for each split: the frozen SFT model is run over its rows once, for all trials of BAM.

What a trial of BAM changes (streams, widths, learning rates, epochs, seed) is no part of their names.
"""

from __future__ import annotations

from typing import Any

from hba_ray.data.tasks import DATASETS, find_dataset
from hba_ray.progress import progress
from hba_ray.specs.bam import BamSpec
from hba_ray.steps.base import Context, Draft, Step, training_resources


def plan(draft: Draft, split: str) -> Step:
    spec, bam = draft.spec, draft.spec.bam
    identity = {
        "sft": draft["sft"].fingerprint,
        "split": split,
        "raw_media": bam.raw_media,
        "answers": bam.decoder_injection if _holds_answers(bam, split) else None,
        "stored": bam.cache_precision,
        "computed": "bf16" if spec.uses_bf16 else "fp32",
    }
    what = f"run the SFT model over the {split} split once" + ("" if bam.raw_media else ", without audio and video")
    return draft.add("states", identity, what, part=split, resources=training_resources(spec), uses_ray=True)


def make(context: Context) -> dict[str, Any]:
    from hba_ray.steps.bam import job_of
    from hba_ray.training.states import compute_states

    split = context.part
    assert split is not None
    job, index = job_of(context), context.index
    datasets = index.table.column("dataset").take(index.rows_of(split)).to_pylist()
    answers = sum(DATASETS[dataset].task.is_open for dataset in datasets)
    rows = {False: len(datasets) - answers, True: answers if _holds_answers(context.spec.bam, split) else 0}
    with progress(f"states {split}", total=sum(rows.values())) as bar:
        for is_open in (is_open for is_open, count in rows.items() if count):
            compute_states(job.states_job(split, open_answers=is_open), context.folder / job.kind(open_answers=is_open), bar.advance)
    return {"rows": {job.kind(open_answers=is_open): count for is_open, count in rows.items()}}


def _holds_answers(bam: BamSpec, split: str) -> bool:
    """Whether it holds what open answers need: only to train on, since they are scored by generation."""
    named = [find_dataset(name, where="bam.datasets") for name in bam.datasets or ()]
    return split in ("train", "validation") and (not named or any(dataset.task.is_open for dataset in named))

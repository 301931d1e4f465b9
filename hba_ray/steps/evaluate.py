"""The evaluate step, one for each arm: predicts the split and scores it.

An arm is named by its stages joined by "+", and by what is withheld from it: "sft+bam without audio".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import bam, generation, transfer
from hba_ray.steps.base import Context, Draft, Step, check_rows, check_some_left, held_out, losses, training_resources
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import write_text

if TYPE_CHECKING:
    from hba_ray.data.atlas import Drop
    from hba_ray.evaluation.published import PublishedModel

PREDICTIONS, SCORES = "predictions.parquet", "scores.json"
WITHOUT = " without "


def plan(draft: Draft, arm: str) -> Step:
    """
    Args:
        arm: its last stage's model is predicted with, or it is a baseline.
    """
    spec = draft.spec
    whole, hidden = whole_and_hidden(arm)
    if transfer.is_arm(arm):
        identity = {"models": transfer.models(draft), "evaluate": spec.evaluate.identity()}
    elif generation.is_generative(spec, arm):
        identity = generation.identity(draft, arm)
    else:
        identity = {"model": draft[whole.split("+")[-1]].fingerprint, "evaluate": spec.evaluate.identity()}
        if hidden:
            identity["hidden"] = list(hidden)
    what = f"predict and score the {spec.evaluate.split} split" + (f" without {' and '.join(hidden)}" if hidden else "")
    return draft.add("evaluate", identity, what, arm=arm, resources=training_resources(spec), uses_ray=True)


def whole_and_hidden(arm: str) -> tuple[str, tuple[str, ...]]:
    """An arm without what is withheld from it, and that.

    >>> whole_and_hidden("sft+bam without audio")
    ('sft+bam', ('audio',))
    """
    whole, _, hidden = arm.partition(WITHOUT)
    return whole, bam.HIDDEN if arm == bam.WITHOUT_MEDIA else ((hidden,) if hidden else ())


def seeing(spec: ExperimentSpec, arms: Sequence[str]) -> list[str]:
    """Those of the arms with heads that are shown media, and so can be robust against losing it."""
    return [arm for arm in arms if arm == "sft" or (arm == bam.ARM and spec.bam.raw_media)]


def predictions_of(folders: Mapping[str, Path], arm: str | None) -> Path:
    """The folder of the step that has predicted for an arm.

    Args:
        folders: name of a step -> its folder.
    """
    return folders[f"evaluate {arm}"]


def make(context: Context) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hba_ray.data.predictions import SCHEMA
    from hba_ray.evaluation.scores import score_predictions

    spec, index, arm = context.spec, context.index, context.arm or ""
    check_rows(context.whole_index, spec.evaluate.split)
    whole, hidden = whole_and_hidden(arm)
    with progress(f"evaluate {arm}", total=len(index.rows_of(spec.evaluate.split))) as bar:
        if whole == bam.ARM:
            reference = arm.replace(bam.ARM, "sft") if hidden else bam.reference(spec)
            before = read_parquet(predictions_of(context.folders, reference) / PREDICTIONS)
            records, drops = bam.predictions(context, before.to_pylist(), bar, hidden), []
        elif transfer.is_arm(arm):
            records, drops = transfer.predictions(context, bar)
        else:
            records, drops = _predict(context, hidden, bar)
    check_some_left(spec.evaluate.split, len(records) + len(drops), drops)
    table = pa.Table.from_pylist(sorted(records, key=lambda record: (record["dataset"], record["sample_id"])), schema=SCHEMA)
    pq.write_table(table, context.folder / PREDICTIONS)
    listed = held_out(spec) if transfer.is_arm(arm) else list(index.counts())
    counts, published = context.whole_index.label_counts("train"), published_model(spec, arm)
    scores = score_predictions(table, counts, datasets=listed, published_model=published)
    write_text(context.folder / SCORES, scores.to_json())
    facts = {"arm": arm, **generation.facts_of(records)} if generation.is_generative(spec, arm) else {}
    return {"rows": len(records), "lost": losses(drops), **facts}


def _predict(context: Context, hidden: tuple[str, ...], bar: Bar) -> tuple[list[dict[str, Any]], list[Drop]]:
    from hba_ray.predict.generate import generate_rows
    from hba_ray.predict.heads import predict
    from hba_ray.predict.jobs import PredictJob

    if generation.is_generative(context.spec, context.arm):
        predictions = generate_rows(generation.job_of(context))
    else:
        predictions = predict(PredictJob(context.spec, context.backbone, str(context.folders["sft"] / "model"), context.index, hidden))
    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    for made, dropped in predictions:
        records += made
        drops += dropped
        bar.advance(len(made) + len(dropped))
    return records, drops


def published_model(spec: ExperimentSpec, arm: str) -> PublishedModel:
    """Whose published scores stand beside an arm's."""
    if generation.is_generative(spec, arm):
        return generation.published_model(spec, arm)
    return "OmniSapiens-7B BAM" if arm.startswith(bam.ARM) else "OmniSapiens-7B SFT"


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    said = generation.notes(facts) if "withheld" in facts else []
    if spec.evaluate.split != "test":
        said.append(f"Scores are on the {spec.evaluate.split} split; published numbers are on the test split.")
    return said

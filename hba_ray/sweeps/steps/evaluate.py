"""The evaluate step, one for each arm: predicts the split and scores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hba_ray.runtime.progress import Bar, progress
from hba_ray.runtime.storage import write_text
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.steps import bam, generation
from hba_ray.sweeps.steps.base import Context, Draft, Step, count_drops, training_resources

if TYPE_CHECKING:
    from hba_ray.data.atlas import Drop
    from hba_ray.evaluation.published import PublishedModel

PREDICTIONS, SCORES = "predictions.parquet", "scores.json"


def plan(draft: Draft, arm: str) -> Step:
    """
    Args:
        arm: stages joined by "+", the last one's model is predicted with; or the SFT model without media.
    """
    spec = draft.spec
    if generation.is_generative(spec, arm):
        identity = generation.identity(draft, arm)
    else:
        model = draft["sft" if arm == bam.WITHOUT_MEDIA else arm.split("+")[-1]]
        identity = {"model": model.fingerprint, "evaluate": spec.evaluate.identity()}
        if arm == bam.WITHOUT_MEDIA:
            identity["hidden"] = list(bam.HIDDEN)
    what = f"predict and score the {spec.evaluate.split} split"
    return draft.add("evaluate", identity, what, arm=arm, resources=training_resources(spec), uses_ray=True)


def make(context: Context) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hba_ray.evaluation.predict import SCHEMA
    from hba_ray.evaluation.scores import score_predictions

    spec, index, arm = context.spec, context.index, context.arm or ""
    with progress(f"evaluate {arm}", total=len(index.rows_of(spec.evaluate.split))) as bar:
        if arm == bam.ARM:
            before = pq.read_table(context.folders[f"evaluate {bam.reference(spec)}"] / PREDICTIONS)
            records, drops = bam.predictions(context, before.to_pylist(), bar), []
        else:
            records, drops = _predict(context, bar)
    table = pa.Table.from_pylist(sorted(records, key=lambda record: (record["dataset"], record["sample_id"])), schema=SCHEMA)
    pq.write_table(table, context.folder / PREDICTIONS)
    scores = score_predictions(table, index.label_counts("train"), datasets=index.counts(), published_model=_published_model(spec, arm))
    write_text(context.folder / SCORES, scores.to_json())
    facts = {"arm": arm, **generation.facts_of(records)} if generation.is_generative(spec, arm) else {}
    return {"rows": len(records), "drops": count_drops(drops), **facts}


def _predict(context: Context, bar: Bar) -> tuple[list[dict[str, Any]], list[Drop]]:
    from hba_ray.evaluation.generative import generate_rows
    from hba_ray.evaluation.predict import PredictJob, predict

    if generation.is_generative(context.spec, context.arm):
        predictions = generate_rows(generation.job_of(context))
    else:
        hidden = bam.HIDDEN if context.arm == bam.WITHOUT_MEDIA else ()
        predictions = predict(PredictJob(context.spec, context.backbone, str(context.folders["sft"] / "model"), context.index, hidden))
    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    for made, dropped in predictions:
        records += made
        drops += dropped
        bar.advance(len(made) + len(dropped))
    return records, drops


def _published_model(spec: ExperimentSpec, arm: str) -> PublishedModel:
    if generation.is_generative(spec, arm):
        return generation.published_model(spec, arm)
    return "OmniSapiens-7B BAM" if arm == bam.ARM else "OmniSapiens-7B SFT"


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    said = generation.notes(facts) if "withheld" in facts else []
    if spec.evaluate.split != "test":
        said.append(f"Scores are on the {spec.evaluate.split} split; published numbers are on the test split.")
    return said

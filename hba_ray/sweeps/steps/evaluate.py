"""The evaluate step, one for each arm: predicts the split and scores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hba_ray.runtime.progress import Bar, progress
from hba_ray.runtime.storage import write_text
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.steps import bam
from hba_ray.sweeps.steps.base import Context, Draft, Step, count_drops, training_resources

if TYPE_CHECKING:
    from hba_ray.data.atlas import Drop

PREDICTIONS, SCORES = "predictions.parquet", "scores.json"


def plan(draft: Draft, arm: str) -> Step:
    """
    Args:
        arm: stages joined by "+", the last one's model is predicted with; or the SFT model without media.
    """
    spec = draft.spec
    model = draft["sft" if arm == bam.WITHOUT_MEDIA else arm.split("+")[-1]]
    identity: dict[str, Any] = {"model": model.fingerprint, "evaluate": spec.evaluate.identity()}
    if arm == bam.WITHOUT_MEDIA:
        identity["hidden"] = list(bam.HIDDEN)
    what = f"predict and score the {spec.evaluate.split} split"
    return draft.add("evaluate", identity, what, arm=arm, resources=training_resources(spec), uses_ray=True)


def make(context: Context) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hba_ray.evaluation.predict import SCHEMA
    from hba_ray.evaluation.scores import score_predictions

    spec, index = context.spec, context.index
    with progress(f"evaluate {context.arm}", total=len(index.rows_of(spec.evaluate.split))) as bar:
        if context.arm == bam.ARM:
            before = pq.read_table(context.folders[f"evaluate {bam.reference(spec)}"] / PREDICTIONS)
            records, drops = bam.predictions(context, before.to_pylist(), bar), []
        else:
            records, drops = _predict(context, bar)
    table = pa.Table.from_pylist(sorted(records, key=lambda record: (record["dataset"], record["sample_id"])), schema=SCHEMA)
    pq.write_table(table, context.folder / PREDICTIONS)
    published = "OmniSapiens-7B BAM" if context.arm == bam.ARM else "OmniSapiens-7B SFT"
    scores = score_predictions(table, index.label_counts("train"), datasets=index.counts(), published_model=published)
    write_text(context.folder / SCORES, scores.to_json())
    return {"rows": len(records), "drops": count_drops(drops)}


def _predict(context: Context, bar: Bar) -> tuple[list[dict[str, Any]], list[Drop]]:
    from hba_ray.evaluation.predict import PredictJob, predict

    hidden = bam.HIDDEN if context.arm == bam.WITHOUT_MEDIA else ()
    job = PredictJob(context.spec, context.backbone, str(context.folders["sft"] / "model"), context.index, hidden)
    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    for made, dropped in predict(job):
        records += made
        drops += dropped
        bar.advance(len(made) + len(dropped))
    return records, drops


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    if spec.evaluate.split == "test":
        return []
    return [f"Scores are on the {spec.evaluate.split} split; published numbers are on the test split."]

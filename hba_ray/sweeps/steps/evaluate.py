"""The evaluate step, one for each arm: predicts the split and scores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hba_ray.runtime.progress import progress
from hba_ray.runtime.storage import write_text
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.steps.base import Context, Draft, Step, count_drops, training_resources

PREDICTIONS, SCORES = "predictions.parquet", "scores.json"


def plan(draft: Draft, arm: str) -> Step:
    """
    Args:
        arm: stages joined by "+"; the last one's model is predicted with.
    """
    spec = draft.spec
    identity = {"model": draft[arm.split("+")[-1]].fingerprint, "evaluate": spec.evaluate.identity()}
    what = f"predict and score the {spec.evaluate.split} split"
    return draft.add("evaluate", identity, what, arm=arm, resources=training_resources(spec), uses_ray=True)


def make(context: Context) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hba_ray.data.atlas import Drop
    from hba_ray.evaluation.predict import SCHEMA, PredictJob, predict_here, predict_on_ray
    from hba_ray.evaluation.scores import score_predictions

    spec, index = context.spec, context.index
    job = PredictJob(spec, context.backbone, str(context.folders["sft"] / "model"), index)
    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    with progress(f"evaluate {context.arm}", total=len(index.rows_of(spec.evaluate.split))) as bar:
        for made, dropped in predict_here(job) if spec.compute.workers == 0 else predict_on_ray(job):
            records += made
            drops += dropped
            bar.advance(len(made) + len(dropped))
    table = pa.Table.from_pylist(sorted(records, key=lambda record: (record["dataset"], record["sample_id"])), schema=SCHEMA)
    pq.write_table(table, context.folder / PREDICTIONS)
    scores = score_predictions(table, index.label_counts("train"), datasets=index.counts())
    write_text(context.folder / SCORES, scores.to_json())
    return {"rows": len(records), "drops": count_drops(drops)}


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    if spec.evaluate.split == "test":
        return []
    return [f"Scores are on the {spec.evaluate.split} split; published numbers are on the test split."]

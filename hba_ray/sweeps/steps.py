"""How each step is done: from its inputs' folders to its own.

The only place that wires the floors together; what a step makes is read back from its folder, so a
step done yesterday and one done now look the same to the next.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hba_ray.data.atlas import AtlasIndex, Drop
from hba_ray.runtime.progress import Bar, progress
from hba_ray.runtime.storage import write_text
from hba_ray.specs import ExperimentSpec
from hba_ray.sweeps.follow import Metrics, followed

STEP_LOG = "metrics.jsonl"


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        folders: kind of an earlier step -> its folder.
        folder: the step's own.
        log: takes a step's metrics as they come: (values, optimiser step).
    """

    spec: ExperimentSpec
    folders: dict[str, Path]
    folder: Path
    log: Callable[[Metrics, int], None]

    @property
    def index(self) -> AtlasIndex:
        return AtlasIndex.load(self.folders["atlas"])

    @property
    def backbone(self) -> str:
        """Folder or hub id of the backbone."""
        return str(self.folders["backbone"] / "model") if "backbone" in self.folders else self.spec.model.backbone


def make_atlas(context: Context) -> dict[str, Any]:
    """Generates, converts or finds the rows, checks them, and indexes them."""
    from hba_ray.curation.convert import convert
    from hba_ray.data.atlas import build_index
    from hba_ray.data.toy import build_toy

    spec, root = context.spec.atlas, context.folder / "rows"
    facts: dict[str, Any] = {}
    layout = None
    drops: list[Drop] = []
    with progress("atlas", total=None):
        if spec.source == "toy":
            layout = "jsonl" if spec.format == "jsonl" else "parquet"
            build_toy(spec.toy, root, layout)
        elif spec.source == "released":
            root = Path(spec.root or "").absolute()
        else:
            card = convert(spec, root, context.spec.seed)
            facts["card"], drops = card.to_json(), list(card.drops)
        index = build_index(spec, root, layout)
    index.save(context.folder)
    return {**facts, "counts": index.counts(), "drops": count_drops([*drops, *index.drops])}


def make_backbone(context: Context) -> dict[str, Any]:
    """Builds the tiny model; its vocabulary comes from the training text."""
    from hba_ray.models.tiny import build_tiny

    spec = context.spec
    with progress("backbone", total=None):
        build_tiny(spec.model.tiny, context.folder / "model", context.index.texts("train"), audio_seconds=spec.atlas.media.audio_seconds)
    return {}


def make_sft(context: Context) -> dict[str, Any]:
    """Trains; follows the step log into the bar and the tracker."""
    from hba_ray.data.windows import micro_batches_per_epoch
    from hba_ray.training.launch import launch_sft
    from hba_ray.training.sft import SftJob

    spec, log = context.spec, context.folder / STEP_LOG
    job = SftJob(spec, context.backbone, context.index, str(log))
    per_epoch = -(-micro_batches_per_epoch(job.index, job.order(0, max(1, spec.compute.workers))) // spec.accumulation)
    with progress("sft", total=per_epoch * spec.sft.epochs) as bar, followed(log, lambda metrics: _show(metrics, bar, context)):
        trained = launch_sft(job, context.folder)
    state = trained.state
    return {
        "optimizer_steps": state.step,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "best_validation_loss": state.best_loss,
        "drops": count_drops(state.drops),
    }


def _show(metrics: Metrics, bar: Bar, context: Context) -> None:
    step = int(metrics["step"])
    if "epochs_done" not in metrics:
        bar.reach(step)
        bar.show(**{name: metrics[name] for name in ("loss", "class_accuracy", "rows_per_second") if name in metrics})
    context.log({f"sft/{name}": float(value) for name, value in metrics.items() if name not in ("step", "improved")}, step)


def make_evaluate(context: Context) -> dict[str, Any]:
    """Predicts the split and scores it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hba_ray.evaluation.predict import SCHEMA, PredictJob, predict_here, predict_on_ray
    from hba_ray.evaluation.scores import score_predictions

    spec, index = context.spec, context.index
    job = PredictJob(spec, context.backbone, str(context.folders[spec.stages[-1]] / "model"), index)
    records: list[dict[str, Any]] = []
    drops: list[Drop] = []
    with progress("evaluate", total=len(index.rows_of(spec.evaluate.split))) as bar:
        for made, dropped in predict_here(job) if spec.compute.workers == 0 else predict_on_ray(job):
            records += made
            drops += dropped
            bar.advance(len(made) + len(dropped))
    table = pa.Table.from_pylist(sorted(records, key=lambda record: (record["dataset"], record["sample_id"])), schema=SCHEMA)
    pq.write_table(table, context.folder / "predictions.parquet")
    scores = score_predictions(table, index.label_counts("train"), datasets=index.counts())
    write_text(context.folder / "scores.json", scores.to_json())
    return {"rows": len(records), "drops": count_drops(drops)}


def count_drops(drops: list[Drop]) -> dict[str, dict[str, int]]:
    """dataset -> reason -> rows."""
    counts: dict[str, dict[str, int]] = {}
    for (dataset, reason), rows in sorted(Counter((drop.dataset, drop.reason) for drop in set(drops)).items()):
        counts.setdefault(dataset, {})[reason] = rows
    return counts


def add_drops(parts: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of several counts."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for dataset, reasons in part.items():
            totals.setdefault(dataset, Counter()).update(reasons)
    return json.loads(json.dumps(totals))


MAKERS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "atlas": make_atlas,
    "backbone": make_backbone,
    "sft": make_sft,
    "evaluate": make_evaluate,
}
"""Kind of a step -> what does it; returns what `done.json` says of it."""

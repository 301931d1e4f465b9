"""The retention step, one for each arm where there may be open answers: how well they are written (Table 17)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hba_ray.cluster.session import ANYWHERE
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.steps import backbone
from hba_ray.steps.base import Context, Draft, Step, training_resources
from hba_ray.steps.evaluate import PREDICTIONS, predictions_of
from hba_ray.steps.judge import has_open_answers, open_items
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import Storage

WRITTEN = "retention.parquet"


def plan(draft: Draft, predicted: Step) -> Step | None:
    """None where the spec does not ask for it, or its datasets have no open answers."""
    spec = draft.spec
    if not spec.evaluate.retention or not has_open_answers(spec.atlas):
        return None
    judge = {**spec.evaluate.judge.identity(), "prompts": None} if spec.evaluate.judge else None  # ratings have a prompt of their own
    identity = {"predictions": predicted.fingerprint, "backbone": backbone.identity(draft), "judge": judge}
    what = "perplexity of open answers" + (", and their ratings" if judge else "")
    return draft.add("retention", identity, what, arm=predicted.arm, resources=training_resources(spec), uses_ray=True)


def make(context: Context) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hba_ray.evaluation.retention import DIMENSIONS, AnswerQuality, mean_rating, perplexity, rate_answers
    from hba_ray.evaluation.scores import clips_of

    spec, judge = context.spec, context.spec.evaluate.judge
    records = read_parquet(predictions_of(context.folders, context.arm) / PREDICTIONS).to_pylist()
    items = open_items(records)
    clips = {(record["dataset"], record["sample_id"]): clip for record, clip in zip(records, clips_of(records), strict=True)}
    with progress(f"perplexity {context.arm}", total=len(items)) as bar:
        losses = _losses(context, [item.answer for item in items], bar) if items else []
    with progress(f"ratings {context.arm}", total=len(items)) as bar:
        ratings = rate_answers(items, judge, Storage(spec.compute.storage).judge_cache, bar) if judge and items else [None] * len(items)
    rows = [
        AnswerQuality(item.sample_id, item.dataset, clips[item.dataset, item.sample_id], loss, tokens, **(rated or {}))
        for item, (loss, tokens), rated in zip(items, losses, ratings, strict=True)
    ]
    table = [{name: getattr(row, name) for name in AnswerQuality.__dataclass_fields__} for row in rows]
    kinds = [*((name, pa.string()) for name in ("sample_id", "dataset", "clip_id")), ("log_loss", pa.float64()), ("tokens", pa.int64())]
    pq.write_table(pa.Table.from_pylist(table, pa.schema([*kinds, *((name, pa.int64()) for name in DIMENSIONS)])), context.folder / WRITTEN)
    found = {"perplexity": perplexity(rows), **{name: mean_rating(rows, name) for name in DIMENSIONS}}
    unreadable = sum(rated is None for rated in ratings) if judge else 0
    values = {name: one.value for name, one in found.items()}
    intervals = {name: None if one.low is None else [one.low, one.high] for name, one in found.items()}
    clip_count = found["perplexity"].clips
    return {"arm": context.arm, "rows": len(rows), "clips": clip_count, **values, "intervals": intervals, "unreadable": unreadable}


def _losses(context: Context, texts: list[str], bar: Bar) -> list[tuple[float, int]]:
    """In this process, or on a worker of its size, where a GPU may be."""
    from hba_ray.evaluation.retention import backbone_log_losses

    compute = context.spec.compute
    if not compute.workers:
        return backbone_log_losses(texts, context.backbone, gpu=False, bar=bar)
    import ray

    gpus = cast(Any, compute.gpus_per_worker or None)  # Ray takes None, though its stub does not say so
    sized = ray.remote(num_cpus=compute.cpus_per_worker, num_gpus=gpus, **ANYWHERE)(_losses_there)
    found = ray.get(sized.remote(texts, context.backbone, compute.gpus_per_worker > 0))
    bar.advance(len(texts))
    return found


def _losses_there(texts: list[str], backbone: str, gpu: bool) -> list[tuple[float, int]]:
    from hba_ray.evaluation.retention import backbone_log_losses

    with progress("perplexity", total=len(texts)) as bar:
        return backbone_log_losses(texts, backbone, gpu=gpu, bar=bar)


def notes(spec: ExperimentSpec, facts: Mapping[str, Any]) -> list[str]:
    if not facts["rows"]:
        return []
    rated = [_shown(facts, name, 3) for name in ("fluency", "coherence", "relevance") if facts[name] is not None]
    ratings = f", rated {', '.join(rated)} of 5 ({facts['unreadable']} unreadable)" if rated else ""
    confusion = "perplexity –" if facts["perplexity"] is None else _shown(facts, "perplexity", 1)
    return [
        f"Retention: {facts['rows']} open answers of {facts['arm']} have {confusion} under the untrained backbone{ratings}. "
        "In brackets the 95% interval: percentiles of 2000 resamples of whole clips."
    ]


def _shown(facts: Mapping[str, Any], name: str, digits: int) -> str:
    """A mean under its name, with its interval in brackets."""
    between = facts["intervals"][name]
    interval = "" if between is None else f" ({between[0]:.{digits}f} to {between[1]:.{digits}f})"
    return f"{name} {facts[name]:.{digits}f}{interval}"

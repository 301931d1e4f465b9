"""The retention step, one for each arm where there may be open answers: how well they are written (Table 17)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from hba_ray.cluster.session import ANYWHERE
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import SpecError
from hba_ray.models.size.estimates import Effort
from hba_ray.progress import Bar, progress
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import Context, Draft, Result, Step, StepKind
from hba_ray.steps.inputs import backbone
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.model import Rows
from hba_ray.steps.needs.work import forward_work
from hba_ray.steps.results.evaluate import PREDICTIONS
from hba_ray.steps.results.judge import check_endpoint, has_open_answers, needs_key, open_items
from hba_ray.store.files import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

WRITTEN = "retention.parquet"


@dataclass(frozen=True, kw_only=True)
class RetentionResult(Result):
    """What a retention step says of an arm's open answers.

    Attributes:
        rows: open answers; of `clips` distinct clips.
        perplexity: under the untrained backbone; None where no answer has a token.
        fluency, coherence, relevance: mean ratings of 1 to 5; None where no judge rated.
        intervals: name of such a mean -> its 95% interval.
        unreadable: ratings that could not be read.
    """

    arm: str
    rows: int
    clips: int
    unreadable: int
    perplexity: float | None = None
    fluency: float | None = None
    coherence: float | None = None
    relevance: float | None = None
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)


class RetentionSteps(StepKind[RetentionResult]):
    """Measures how well an arm's open answers are written: perplexity, and ratings by the judge."""

    name = "retention"
    version = 2
    unversioned = 2
    result_type = RetentionResult
    check = staticmethod(check_endpoint)

    def plan(self, draft: Draft) -> None:
        spec = draft.spec
        if not spec.evaluate.retention:
            return
        if not has_open_answers(spec.atlas):
            known = ", ".join(dataset.id for dataset in DATASETS.values() if dataset.task.is_open and not dataset.is_toy)
            raise SpecError(
                "evaluate.retention", "is about open answers, and no dataset of the spec has them", f"add one of {known}, or leave it out"
            )
        judge = {**spec.evaluate.judge.identity(), "prompts": None} if spec.evaluate.judge else None  # ratings have a prompt of their own
        for predicted in draft.of_kind("evaluate"):
            identity = {"predictions": predicted.fingerprint, "backbone": backbone.identity(draft), "judge": judge}
            what = "perplexity of open answers" + (", and their ratings" if judge else "")
            draft.add(self, identity, what, arm=predicted.arm, holds_workers=True)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        return [*backbone.needs_weights(spec), *needs_key(spec)]

    def work(self, step: Step, rows: Rows) -> Effort | None:
        assert step.spec is not None
        return forward_work(step.spec, rows.of(step.spec.evaluate.split, open_answers=True))

    def make(self, context: Context) -> RetentionResult:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from hba_ray.evaluation.retention import DIMENSIONS, AnswerQuality, mean_rating, perplexity, rate_answers
        from hba_ray.evaluation.scores import clips_of

        judge = context.spec.evaluate.judge
        records = read_parquet(context.folder_of(f"evaluate {context.arm}") / PREDICTIONS).to_pylist()
        items = open_items(records)
        clips = {(record["dataset"], record["sample_id"]): clip for record, clip in zip(records, clips_of(records), strict=True)}
        with progress(f"perplexity {context.arm}", total=len(items)) as bar:
            log_losses = _losses(context, [item.answer for item in items], bar) if items else []
        with progress(f"ratings {context.arm}", total=len(items)) as bar:
            ratings = rate_answers(items, judge, context.storage.judge_cache, bar) if judge and items else [None] * len(items)
        rows = [
            AnswerQuality(item.sample_id, item.dataset, clips[item.dataset, item.sample_id], loss, tokens, **(rated or {}))
            for item, (loss, tokens), rated in zip(items, log_losses, ratings, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist([vars(row) for row in rows], _schema()), context.folder / WRITTEN)
        found = {name: mean_rating(rows, name) for name in DIMENSIONS}
        written = perplexity(rows)
        return RetentionResult(
            arm=str(context.arm),
            rows=len(rows),
            clips=written.clips,
            unreadable=sum(rated is None for rated in ratings) if judge else 0,
            perplexity=written.value,
            fluency=found["fluency"].value,
            coherence=found["coherence"].value,
            relevance=found["relevance"].value,
            intervals={name: one.bounds for name, one in {"perplexity": written, **found}.items()},
        )

    def notes(self, spec: ExperimentSpec, result: RetentionResult) -> list[str]:
        if not result.rows:
            return []
        rated = [_shown(result, name, 3) for name in ("fluency", "coherence", "relevance") if getattr(result, name) is not None]
        ratings = f", rated {', '.join(rated)} of 5 ({result.unreadable} unreadable)" if rated else ""
        perplexity = "perplexity –" if result.perplexity is None else _shown(result, "perplexity", 1)
        return [
            f"Retention: {result.rows} open answers of {result.arm} have {perplexity} under the untrained backbone{ratings}. "
            "In brackets the 95% interval: percentiles of 2000 resamples of whole clips."
        ]


def _schema() -> pa.Schema:
    """The columns of `AnswerQuality`."""
    import pyarrow as pa

    from hba_ray.evaluation.retention import DIMENSIONS

    texts = ((name, pa.string()) for name in ("sample_id", "dataset", "clip_id"))
    ratings = ((name, pa.int64()) for name in DIMENSIONS)
    return pa.schema([*texts, ("log_loss", pa.float64()), ("tokens", pa.int64()), *ratings])


def _losses(context: Context, texts: list[str], bar: Bar) -> list[tuple[float, int]]:
    """(summed log loss, tokens) of each text, computed in this process or, where the spec has workers, on one of their size."""
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


def _shown(result: RetentionResult, name: str, digits: int) -> str:
    """A mean under its name, with its interval in brackets."""
    between = result.intervals[name]
    interval = "" if between is None else f" ({between[0]:.{digits}f} to {between[1]:.{digits}f})"
    return f"{name} {getattr(result, name):.{digits}f}{interval}"

"""The GRPO step: reinforcement learning by verl, its log followed into the bar and the tracker, its model written for all to load."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import find_dataset
from hba_ray.errors import SpecError, TrainingError
from hba_ray.models.size.estimates import Effort
from hba_ray.progress import Bar, progress
from hba_ray.rl import CUT_SHARE, EQUAL_GROUPS
from hba_ray.specs import ExperimentSpec
from hba_ray.steps.base import STEP_LOG, Context, Draft, Result, Step, StepKind
from hba_ray.steps.held_out import TRAINED_ON, held_out
from hba_ray.steps.inputs import backbone, describe
from hba_ray.steps.inputs.drops import losses
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.model import Rows, reinforcement_needs
from hba_ray.steps.needs.software import Packages, Verl
from hba_ray.steps.needs.work import grpo_work
from hba_ray.steps.stages.resume import always_zero, begins, mention
from hba_ray.store.folders import append_line, keep_lines, read_lines
from hba_ray.store.follow import Metrics, followed

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex

ROLLOUTS = "rollouts.parquet"
"""Sampled responses with their prompts, truths and parts of the reward."""
REWARD = "reward/score"
"""The mean reward of a step, by its name in the step log."""
_SHOWN = {"reward": REWARD, "length": "response_length/mean", "seconds": "timing_s/step"}
_TRACKED = (
    "reward/", "val-core/", "val-aux/", "actor/pg_", "actor/ppo_kl", "actor/entropy", "actor/grad_norm", "actor/lr", "actor/kl",
    "response_length/mean", "prompt_length/mean", "timing_s/", "training/rollout_",
)  # fmt: skip
"""What of verl's some 150 metrics of a step goes to the tracker, by the start of their names; the step's log has them all."""
_MUST_BE_FINITE = (REWARD, "actor/pg_loss", "actor/grad_norm")


@dataclass(frozen=True, kw_only=True)
class GrpoResult(Result):
    """What the GRPO step says of the training.

    Attributes:
        reward_first_quarter, reward_last_quarter: mean reward of these quarters of the steps.
        reward_rise: 95 % interval of the difference between the two, over the steps; None where they are too few, and where a former
            version, which did not say it, did the step.
        cut: share of the sampled responses that ended at the limit of tokens and not by themselves.
        equal_groups: share of the prompts whose responses all earned the same reward.
        without_gradients: every gradient was 0.
        step_seconds: mean wall time of a step, without the first; None where there was one step.
        start_seconds: wall time until the first step began.
    """

    optimizer_steps: int
    reward_first_quarter: float
    reward_last_quarter: float
    reward_rise: tuple[float, float] | None = None
    cut: float | None = None
    equal_groups: float | None = None
    without_gradients: bool = False
    step_seconds: float | None = None
    start_seconds: float = 0.0


class GrpoSteps(StepKind[GrpoResult]):
    """Trains the decoder by reinforcement learning (paper appendix B.2)."""

    name = "grpo"
    version = 5
    unversioned = 2
    raised = "every sampled response has a seed of its own, so that a run repeats itself"
    result_type = GrpoResult
    working = ("start", "rows", "checkpoints", "rollouts")
    check = staticmethod(backbone.check_window)

    def plan(self, draft: Draft) -> None:
        """
        Raises:
            SpecError: the file of the prompts' wording is not there or not in order.
        """
        from hba_ray.data.prompts import load_reasoning

        spec = draft.spec
        grpo = spec.grpo
        start: dict[str, Any] = {"sft": draft["sft"].fingerprint} if grpo.init == "sft" else {"backbone": backbone.identity(draft)}
        identity = {
            "atlas": draft["atlas"].fingerprint,
            **start,
            "media": spec.atlas.media.identity(),
            "modalities": sorted(spec.atlas.modalities),
            **describe.prompt_identity(spec),
            "precision": spec.precision,
            "seed": spec.seed,
            "grpo": grpo.identity() | {"prompts": load_reasoning(grpo.prompts).identity()},  # by what they say, not by their file's name
        }
        length = f"{grpo.steps} steps" if grpo.steps else f"{grpo.epochs} epochs"
        each = f"{grpo.batch} prompts a step, {grpo.rollouts} rollouts a prompt"
        what = f"{grpo.algorithm} from the {grpo.init}, {length}, {each}, lr {grpo.lr:g}"
        workers = max(1, spec.compute.workers)
        needs = f"{workers} GPUs" if spec.compute.gpus_per_worker else f"{workers} CPU worker{'s' if workers > 1 else ''}, vLLM's CPU build"
        draft.add(self, identity, what, resources=needs, holds_workers=True)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        extra = "rl-gpu" if spec.compute.gpus_per_worker else "rl-cpu"
        yield Verl("grpo", extra)
        yield Packages("grpo", extra, place="worker")
        yield from backbone.needs_weights(spec)
        yield from reinforcement_needs(spec)

    def work(self, step: Step, rows: Rows) -> Effort | None:
        assert step.spec is not None
        return grpo_work(step.spec, rows)

    def progress(self, spec: ExperimentSpec, folder: Path) -> str:
        reached = folder / "checkpoints" / "latest_checkpointed_iteration.txt"  # verl writes it last
        if not reached.is_file():
            return ""
        whole = f"{spec.grpo.steps} steps" if spec.grpo.steps else f"{spec.grpo.epochs} epochs"
        return f"step {reached.read_text(errors='replace').strip()[:20]} of {whole}"

    def make(self, context: Context) -> GrpoResult:
        from hba_ray.rl.checkpoints import check_workers, latest_step
        from hba_ray.rl.launch import GrpoJob, clear_checkpoints, collect, prepare, run_grpo
        from hba_ray.rl.records import dropped_rows
        from hba_ray.rl.settings import steps_per_epoch

        spec, folder = context.spec, context.folder
        job = GrpoJob(spec, folder / "start", _read_rows(spec, context.index), folder)
        job.config()  # refuses what verl would, before anything is written
        prepare(job, context.backbone, context.folder_of("sft") / "model" if spec.grpo.init == "sft" else None)
        reached = latest_step(job.checkpoints)
        if reached:
            check_workers(job.checkpoints / f"global_step_{reached}", max(1, spec.compute.workers))
        total = steps_per_epoch(spec, len(job.index.rows_of("train"))) * spec.grpo.epochs
        total = min(total, spec.grpo.steps or total)
        first_words = list(_first_words(context, reached, total))
        log = _Log(folder / STEP_LOG, context, reached)
        job.metrics.unlink(missing_ok=True)
        with progress("grpo", total=total) as bar:
            for line in first_words:
                bar.say(line)
            bar.reach(log.last)
            log.bar = bar
            with followed(job.metrics, log.take):
                if log.last < total:
                    run_grpo(job, lambda line: bar.show(waiting=line))
        reached = latest_step(job.checkpoints)
        if reached < total:
            raise TrainingError(str(folder), f"verl ended at step {reached} of {total}", "run the same command to go on")
        collect(job, reached, folder / "model")
        _join_rollouts(job.rollouts, folder / ROLLOUTS)
        clear_checkpoints(job)
        lost = losses(dropped_rows(job.failures))
        return GrpoResult(optimizer_steps=reached, **_series(folder / STEP_LOG), start_seconds=log.start_seconds, lost=lost)

    def notes(self, spec: ExperimentSpec, result: GrpoResult) -> list[str]:
        first, last = result.reward_first_quarter, result.reward_last_quarter
        said = f"{spec.grpo.algorithm.upper()} took {result.optimizer_steps} steps; mean reward {first:.3f} in the first quarter of them"
        asked = spec.grpo.datasets
        on = [f"GRPO asks about {', '.join(asked)} alone (grpo.datasets), so 'grpo' has no score on other datasets."] if asked else []
        low, high = result.reward_rise or (None, None)
        rise = "" if low is None else f"; the difference is {last - first:.3f} ({low:.3f} to {high:.3f})"
        return [f"{said}, {last:.3f} in the last{rise}.", *on, *_no_effect(spec, result)]


def _no_effect(spec: ExperimentSpec, result: GrpoResult) -> list[str]:
    """Sentences on what kept the training from learning."""
    name, said = spec.grpo.algorithm.upper(), []
    if result.without_gradients:
        said.append(f"{name} learnt nothing: the gradient of every step was 0, so the model is the one that it started from.")
    if result.equal_groups == 1:
        why = "so no response was better than another of its prompt and nothing could be learnt"
        way_out = "look at the sampled responses in rollouts.parquet, at grpo.reward, and at grpo.temperature"
        said.append(f"{name}: the responses to each prompt all earned the same reward, {why}; {way_out}.")
    if result.cut is not None and result.cut > 0:
        share = "all" if result.cut == 1 else f"{result.cut:.1%}"
        limit = f"grpo.response_tokens={spec.grpo.response_tokens}"
        said.append(f"{name}: {share} of the sampled responses ended at {limit} and not by themselves.")
    return said


def asked_rows(spec: ExperimentSpec, index: AtlasIndex) -> AtlasIndex:
    """The rows that the stage `grpo` trains on and its model is scored on: those of `grpo.datasets` and, to be scored, held-out ones.

    Raises:
        SpecError: the atlas has no row of a dataset that is named.
    """
    if spec.grpo.datasets is None:
        return index
    named = [find_dataset(name, where="grpo.datasets").id for name in spec.grpo.datasets]
    held = index.counts()
    if missing := [name for name in named if name not in held]:
        raise SpecError("grpo.datasets", f"the atlas has no row of '{missing[0]}'", f"it holds {', '.join(held)}")
    return index.without([name for name in held if name not in (*named, *held_out(spec))], (*TRAINED_ON, spec.evaluate.split))


def _read_rows(spec: ExperimentSpec, index: AtlasIndex) -> AtlasIndex:
    """`asked_rows`, of which those of the validation split are a sample where `grpo.validation_rows` says so."""
    from hba_ray.data.sampling import thinned_lines

    asked = asked_rows(spec, index)
    if spec.grpo.validation_rows is None:
        return asked
    return asked.take(thinned_lines(asked.table, "validation", spec.grpo.validation_rows, spec.seed))


def _first_words(context: Context, reached: int, total: int) -> Iterator[str]:
    """What is said before training: where it goes on from, or that a shorter run is finished."""
    if said := begins("grpo", reached, total, context.folder / STEP_LOG, "grpo.save_every=N writes them earlier"):
        yield said
    key = "grpo.steps" if context.spec.grpo.steps else "grpo.epochs"
    why_not = "the state of its optimiser is not kept, so its steps cannot become the first ones of this run"
    if not reached and (said := mention(context, key, why_not)):
        yield said


class _Log:
    """Turns verl's lines (`{"step": 3, "data": {...}}`, where null is not a number) into the step's log, the bar and the tracker.

    Args:
        last: step of the checkpoint that the run goes on from; later lines of an earlier attempt are taken back.
    """

    def __init__(self, path: Path, context: Context, last: int):
        from hba_ray.rl.advantages import OWN

        self.path, self.context, self.last = path, context, last
        self.bar: Bar | None = None
        self.tracked = (*_TRACKED, *(f"{name}/" for name in OWN))
        self.begun, self.start_seconds = time.monotonic(), 0.0
        self.known = {line["step"] for line in keep_lines(path, lambda line: line["step"] <= last)}

    def take(self, line: Metrics) -> None:
        step = int(line["step"])
        data: dict[str, Any] = dict(line["data"])  # type: ignore[call-overload]
        values = {name.replace("@", "_at_"): math.nan if value is None else float(value) for name, value in data.items()}
        bad = [name for name in _MUST_BE_FINITE if not math.isfinite(values.get(name, 0.0))]
        if bad:
            raise TrainingError(f"metric '{bad[0]}'", f"is {values[bad[0]]} at step {step}", "lower grpo.lr")
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if not self.start_seconds and "timing_s/step" in values:
            self.start_seconds = round(time.monotonic() - self.begun - values["timing_s/step"], 1)
        if step in self.known:
            return
        append_line(self.path, {"step": step, **values}, durable=False)
        if self.bar is not None and REWARD in values:
            self.bar.reach(step)
            self.bar.show(**{name: values[key] for name, key in _SHOWN.items() if key in values})
        self.context.log({f"grpo/{name}": value for name, value in values.items() if name.startswith(self.tracked)}, step)
        self.known.add(step)


def _series(log: Path) -> dict[str, Any]:
    """The fields of `GrpoResult` that come from the step's log. Those of metrics that an earlier version did not log are None."""
    from hba_ray.evaluation.statistics import welch_interval

    lines = [line for line in read_lines(log) if REWARD in line]
    rewards = [line[REWARD] for line in lines]
    quarter = max(1, len(rewards) // 4)
    seconds = _mean(lines[1:], "timing_s/step")
    return {
        "reward_first_quarter": sum(rewards[:quarter]) / quarter,
        "reward_last_quarter": sum(rewards[-quarter:]) / quarter,
        "reward_rise": welch_interval(rewards[:quarter], rewards[-quarter:]),
        "cut": _mean(lines, CUT_SHARE),
        "equal_groups": _mean(lines, EQUAL_GROUPS),
        "without_gradients": always_zero(lines, "actor/grad_norm"),
        "step_seconds": None if seconds is None else round(seconds, 2),
    }


def _mean(lines: Iterable[Mapping[str, float]], name: str) -> float | None:
    values = [line[name] for line in lines if name in line]
    return fmean(values) if values else None


def _join_rollouts(folder: Path, file: Path) -> None:
    """Writes one table of the sampled responses of all steps, and removes the parts that it was made of."""
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("step-*.parquet"))
    if parts:
        pq.write_table(pa.concat_tables([pq.read_table(part) for part in parts], promote_options="default"), file)
        shutil.rmtree(folder)

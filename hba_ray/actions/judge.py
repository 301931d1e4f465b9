"""Grades a finished run again, with another judge or other prompts, and says how far graders agree. Nothing is generated.

What was predicted is found by the run's ledger. A grading is the same step that `hba run` would do with this
judge, so neither does it again after the other.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import find_dataset
from hba_ray.errors import DataError, SpecError
from hba_ray.escaping import csv_cell
from hba_ray.report.formats import markdown
from hba_ray.report.sheets import MISSING, Sheet, between, number
from hba_ray.runs.opened import ledger_steps
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.steps.base import Context, Draft, Result, Step
from hba_ray.steps.results import compare
from hba_ray.steps.results.evaluate import PREDICTIONS, EvaluateSteps
from hba_ray.steps.results.judge import JudgeResult, JudgeSteps, open_items
from hba_ray.steps.run import do_step
from hba_ray.store.files import read_parquet
from hba_ray.store.folders import RESOLVED, Storage, file_of_run, note, write_text
from hba_ray.store.scratch import stated

if TYPE_CHECKING:
    from hba_ray.evaluation.agreement import Agreement

TITLE = "Graders of open answers"
PERSON = "person"
LABEL_HEADER = ("dataset", "sample_id", "question", "reference", "answer", "label")
UNANSWERED = "no reply"
"""The defect of an item that the endpoint gave no reply to; it is asked again."""
SCORE_NOTE = (
    "Judge: share of answers called TRUE; an answer without a readable verdict is not TRUE. Persons: of the rows that they labelled."
)
KAPPA_NOTE = (
    "Kappa: Cohen's, on the rows for which both have a readable verdict, with the interval from resampling whole clips "
    "(paper appendix D.10, Table 18). Equal: share of equal verdicts. Left out: rows that lack a readable verdict of one of them."
)


@dataclass(frozen=True)
class Grader:
    """A judge or a person who graded an arm's open answers, with the verdicts.

    Attributes:
        labels: "dataset sample_id" -> verdict; None where there is no readable one.
    """

    arm: str
    name: str
    prompts: str
    labels: Mapping[str, bool | None]


@dataclass(frozen=True)
class Gradings:
    """The verdicts of all graders of a run, and how far they agree.

    Attributes:
        folder: in the run's own; holds each grader's verdicts, `graders.md` and `graders.json`.
        sheets: scores by each grader, and their agreement.
    """

    folder: Path
    sheets: tuple[Sheet, ...]


def judge_run(
    run: Path, overrides: Sequence[str], say: Callable[[str], None], *, labels: Path | None = None, only: str | None = None
) -> Gradings:
    """Grades the open answers of a run's arms.

    Args:
        run: folder of a run.
        overrides: `key=value` words of the judge's own section.
        labels: CSV of a person's labels for one arm.
        only: the arm to grade; all by default.

    Raises:
        SpecError: the folder is no run, an arm or a setting is unknown.
        DataError: the run has no open answers, or the labels are not in order.
        EnvironmentMissing: as `judge.check`.
    """
    spec = _spec_of(run, overrides)
    steps = _steps_of(run)
    arms = _predicted(run, only, alone="--labels" if labels else "")
    _grade(run, spec, steps, arms, say)
    from hba_ray.runs.measured import clips_in

    graders = [grader for step in arms for grader in _graders(_steps_of(run), step)]
    if not any(grader.labels for grader in graders):
        raise DataError(str(run), "has no open answers", "only free-text tasks are judged: SOC, INT, NVC", reason="no open answers")
    if labels is not None:
        graders.append(_person(labels, graders, str(arms[0].arm)))
    return _write(run / "judge", graders, {str(step.arm): clips_in(step.file(PREDICTIONS)) for step in arms})


def write_label_sheet(run: Path, arm: str | None, rows: int, seed: int = 0) -> Path:
    """A CSV for a person to fill: an arm's open answers, drawn at random, without verdicts (500 of them in appendix D.10). Those of
    sensitive datasets are left out, unless the run's spec has `report.show_sensitive`.

    Raises:
        SpecError: no such arm, or the file is there already.
    """

    (step,) = _predicted(run, arm, alone="--sample")
    answers = open_items(read_parquet(step.file(PREDICTIONS)).to_pylist())
    shows_all = load_spec(file_of_run(run, RESOLVED)).report.show_sensitive
    items = [item for item in answers if shows_all or not find_dataset(item.dataset).sensitive]
    drawn = random.Random(seed).sample(items, min(rows, len(items)))
    file = run / f"labels-{step.arm}.csv".replace(" ", "-")
    if file.exists():
        raise SpecError(str(file), "is there already, perhaps with labels in it", "move it away")
    with file.open("x", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(LABEL_HEADER)
        writer.writerows(map(csv_cell, (item.dataset, item.sample_id, item.question, item.reference, item.answer, "")) for item in drawn)
    return file


def _predicted(run: Path, only: str | None, alone: str = "") -> list[Step]:
    """The steps that hold the predictions of a run's arms; probes are none, they answer no open question.

    Args:
        only: the one arm that is wanted.
        alone: the option that is about one arm.
    """
    found = [step for step in _steps_of(run) if step.kind == EvaluateSteps()]
    wanted = [step for step in found if only is None or str(step.arm) == only]
    names = ", ".join(str(step.arm) for step in found) or "none"
    if not wanted:
        raise SpecError(str(run), f"has no predictions of {only or 'any arm'}", f"arms with predictions: {names}")
    if alone and len(wanted) > 1:
        raise SpecError(alone, "is about one arm", f"say which with --arm: {names}")
    return wanted


def _spec_of(run: Path, overrides: Sequence[str]) -> ExperimentSpec:
    """The run's spec with the judge that is asked for, and with the storage that the run lies in now."""
    file = file_of_run(run, RESOLVED)
    spec = load_spec(file, [f"evaluate.judge.{word.removeprefix('evaluate.judge.')}" for word in overrides])
    if spec.evaluate.judge is None:
        spec = load_spec(file, ["evaluate.judge={}"])
    return spec.model_copy(update={"compute": spec.compute.model_copy(update={"storage": stated(run.absolute().parent)})})


def _steps_of(run: Path) -> list[Step]:
    """The finished steps that the run's ledger names, in its order; judge steps of all judges."""
    found = ledger_steps(run)
    newest = {step.name: step for step in found if step.kind != JudgeSteps()}
    return [step for step in [*newest.values(), *(step for step in found if step.kind == JudgeSteps())] if step.is_done]


def _grade(run: Path, spec: ExperimentSpec, steps: Sequence[Step], arms: Sequence[Step], say: Callable[[str], None]) -> None:
    """Does the judge step of each arm that is not done, or whose endpoint left items without a reply."""
    earlier = {step.name: step for step in steps if step.kind != JudgeSteps()}
    storage = Storage(spec.compute.storage)
    draft = Draft(spec, storage)
    for predicted in arms:
        JudgeSteps().plan_for(draft, predicted)
    if any(not step.is_done or _has_unanswered(step.result()) for step in draft.steps):
        JudgeSteps.check(spec)
    for step in draft.steps:
        if step.is_done and _has_unanswered(step.result()):
            say("verdicts may change, so the next `hba run` compares the arms again")
            compare.reopen_those_with(step.folder, storage)
        do_step(Context(spec, step, earlier), say, again=_has_unanswered)
        note(run, event="judged", step=step.name, fingerprint=step.fingerprint)


def _has_unanswered(result: Result) -> bool:
    return isinstance(result, JudgeResult) and UNANSWERED in result.unreadable


def _graders(steps: Sequence[Step], predicted: Step) -> list[Grader]:
    """All judges that have graded an arm."""
    from hba_ray.runs.measured import labels_in

    made = []
    for step in steps:
        if step.kind == JudgeSteps() and step.arm == predicted.arm:
            result = step.result()
            made.append(Grader(str(step.arm), f"{result.judge} {step.fingerprint[:4]}", result.prompts, labels_in(step.whole())))
    return made


def _person(file: Path, graders: Sequence[Grader], arm: str) -> Grader:
    from hba_ray.evaluation.agreement import labels_of

    return Grader(arm, PERSON, MISSING, labels_of(file, graders[0].labels))


def _write(folder: Path, graders: Sequence[Grader], clips: Mapping[str, Mapping[str, str]]) -> Gradings:
    from hba_ray.evaluation.agreement import agree

    pairs = [(one, other) for one, other in combinations(graders, 2) if one.arm == other.arm]
    found = [(one, other, agree(one.labels, other.labels, clips=clips[one.arm])) for one, other in pairs]
    scores = Sheet("Scores by grader", SCORE_HEADER, tuple(_score_row(grader, clips[grader.arm]) for grader in graders), 3, (SCORE_NOTE,))
    kappas = Sheet("Agreement", KAPPA_HEADER, tuple(_kappa_row(*one) for one in found), 4, (KAPPA_NOTE,))
    folder.mkdir(exist_ok=True)
    for grader in graders:
        _write_labels(folder / f"{grader.arm}-{grader.name}.csv".replace(" ", "-").replace("/", "-"), grader)
    sheets = (scores, kappas) if found else (scores,)
    write_text(folder / "graders.md", "\n\n".join([f"# {TITLE}", *map(markdown, sheets)]) + "\n")
    write_text(
        folder / "graders.json", json.dumps([dict(zip(sheet.header, row, strict=True)) for sheet in sheets for row in sheet.rows], indent=1)
    )
    return Gradings(folder, sheets)


SCORE_HEADER = ("Arm", "Grader", "Prompts", "Rows", "Judge", "95% interval", "Unreadable")
KAPPA_HEADER = ("Arm", "Grader", "Against", "Prompts", "Rows", "Left out", "Equal", "Kappa", "95% interval")


def _score_row(grader: Grader, clips: Mapping[str, str]) -> tuple[str, ...]:
    from hba_ray.evaluation.statistics import bootstrap_interval

    said = [None if label is None else str(label).upper() for label in grader.labels.values()]
    found = bootstrap_interval("judge_accuracy", ["" for _ in said], said, [clips[name] for name in grader.labels])
    span = None if found.low is None or found.high is None else (found.low, found.high)
    return (grader.arm, grader.name, grader.prompts, str(len(said)), number(found.value), between(span), str(said.count(None)))


def _kappa_row(one: Grader, other: Grader, found: Agreement) -> tuple[str, ...]:
    kappa = found.kappa
    span = None if kappa.low is None or kappa.high is None else (kappa.low, kappa.high)
    prompts = " / ".join(dict.fromkeys(name for name in (one.prompts, other.prompts) if name != MISSING))
    counts = (str(found.rows), str(found.unreadable), number(found.share), number(kappa.value), between(span))
    return (one.arm, one.name, other.name, prompts, *counts)


def _write_labels(file: Path, grader: Grader) -> None:
    """Writes a grader's verdicts as a CSV of the form that `--labels` reads."""
    draft = file.with_suffix(".draft")
    with draft.open("w", newline="", encoding="utf-8") as text:
        writer: Any = csv.writer(text)
        writer.writerow(("dataset", "sample_id", "label"))
        writer.writerows(
            (*map(csv_cell, name.split(" ", 1)), "" if label is None else str(label).upper()) for name, label in grader.labels.items()
        )
    shutil.move(draft, file)

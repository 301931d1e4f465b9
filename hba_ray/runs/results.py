"""What the finished steps of an experiment, or of a sweep's trials side by side, say together: the report, and the page to look at."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from hba_ray.data.atlas import AtlasIndex
from hba_ray.errors import DataError
from hba_ray.evaluation.pairs import ArmRows, PairScore, pairs_from_json, with_holm
from hba_ray.evaluation.scores import DatasetScore, Scores
from hba_ray.models.settings import sources_of
from hba_ray.report.curves import Curves, confusions, curves
from hba_ray.report.model import Report, RunFacts
from hba_ray.report.page import Evidence, JudgedTable, render_html
from hba_ray.report.samples import Clip, Key, clips_note, sampled_clips, samples
from hba_ray.report.tables import render_json, render_markdown
from hba_ray.runs.plan import Experiment
from hba_ray.steps.base import STEP_LOG, Step
from hba_ray.steps.inputs.drops import rows_dropped, rows_used
from hba_ray.steps.results.compare import COMPARISON
from hba_ray.steps.results.evaluate import PREDICTIONS, SCORES
from hba_ray.steps.results.judge import VERDICTS, verdicts_in
from hba_ray.store.files import from_json, read_parquet
from hba_ray.store.folders import REPORT, read_lines, write_text
from hba_ray.store.provenance import environment
from hba_ray.store.roots import stated_roots
from hba_ray.store.spending import Spent

TABLE, PAGE, VERDICT = "table.md", "report.html", "verdict.json"
"""In a run's folder: the report in Markdown, the page, and the judged table of the paper, where `hba reproduce` has made one."""
_JUDGED = TypeAdapter(JudgedTable)
SCORING = ("evaluate", "judge", "probe")
"""Kinds of step that an arm's scores rest on."""
PREDICTING = ("evaluate", "probe")
"""Kinds of step that predict the rows of an arm."""
EPOCHS = ("bam",)
"""Kinds of step whose log has a line an epoch, not one an optimiser step."""


Named = tuple[Experiment, Mapping[str, str]]
"""A finished experiment, and the name on the page of each arm of its report."""


def make_report(experiment: Experiment, spent: Spent | None = None) -> Report:
    """The report of finished steps, from what they left on disk.

    Args:
        spent: what they have cost, where that is known.

    Raises:
        HbaError: a step is not finished.
    """
    spec, steps = experiment.spec, tuple(experiment.finished_steps().values())
    return Report(
        title=spec.name,
        scores={str(step.arm): read_scores(step) for step in steps if step.arm and step.kind.name in SCORING},
        facts=RunFacts(
            model=spec.model.backbone,
            seed=spec.seed,
            fingerprint=experiment.fingerprint,
            versions={"python": platform.python_version(), **environment()["packages"]},
            rows_used=rows_used(steps),
            rows_dropped=rows_dropped(steps),
            spent=spent or None,
        ),
        notes=_notes(experiment),
        comparisons=with_holm(pair for step in steps if step.kind.name == "compare" for pair in read_comparison(step)),
    )


def read_scores(step: Step) -> Scores:
    """The scores that an evaluate, a judge or a probe step left; where an arm has two, a report takes the judge's."""
    file = step.file(SCORES)
    return Scores.from_json(file.read_bytes(), where=str(file))


def read_comparison(step: Step) -> tuple[PairScore, ...]:
    """The paired tests that a compare step left."""
    file = step.file(COMPARISON)
    return pairs_from_json(file.read_bytes(), where=str(file))


def _notes(experiment: Experiment) -> tuple[str, ...]:
    """The notes of all steps for a reader of the table, each sentence once."""
    spec = experiment.spec
    notes = [note for step in experiment.steps for note in step.kind.notes(spec, step.result())]
    notes += [f"{source.key} is run as it was trained: {source.in_words(spec)}." for source in sources_of(spec)]
    if spec.compat == "authors":
        notes.append("compat: authors, the released code's behaviour where it differs from the paper.")
    return tuple(dict.fromkeys(notes))


def score_metrics(report: Report) -> dict[str, float]:
    """Scores under the names that MLflow shows: `score/<arm>/<dataset>` and `score/<arm>/task/<task>`, with `_ci_lo`, `_ci_hi`
    and `_n`; MLflow takes no "+" in them."""
    metrics: dict[str, float] = {}
    for arm, scores in ((arm.replace("+", " "), scores) for arm, scores in report.scores.items()):
        for score in (*scores.datasets, *scores.tasks):
            if score.value is None:
                continue
            name = f"score/{arm}/" + (score.dataset if isinstance(score, DatasetScore) else f"task/{score.task}")
            metrics[name] = score.value
            if score.interval is not None:
                metrics[f"{name}_ci_lo"], metrics[f"{name}_ci_hi"] = score.interval
            if isinstance(score, DatasetScore):
                metrics[f"{name}_n"] = score.counted
    return metrics


def labels(reports: Mapping[str, Report], steps: Mapping[str, Sequence[Step]]) -> dict[str, dict[str, str]]:
    """Trial -> arm of its report -> name of this arm in the report of the sweep.

    Arms shared by all trials keep their name; those shared by some are named by the common settings of these; those of one
    trial by the trial.

    Args:
        reports, steps: of each trial, by its name.
    """
    users: dict[tuple[str, ...], list[str]] = {}
    made: dict[str, dict[str, tuple[str, ...]]] = {}
    for trial, report in reports.items():
        for arm in report.scores:
            scored = (step.fingerprint for step in steps[trial] if str(step.arm) == arm and step.kind.name in SCORING)
            made.setdefault(trial, {})[arm] = (arm, *scored)
            users.setdefault(made[trial][arm], []).append(trial)
    names = {what: _label(what[0], trials, reports) for what, trials in users.items()}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    return {
        trial: {arm: f"{' and '.join(users[what])}: {arm}" if names[what] in twice else names[what] for arm, what in arms.items()}
        for trial, arms in made.items()
    }


def _label(arm: str, trials: Sequence[str], reports: Mapping[str, Report]) -> str:
    if len(trials) == 1:
        return trials[0] if len(reports[trials[0]].scores) == 1 else f"{trials[0]}: {arm}"
    if len(trials) == len(reports):
        return arm
    shared = [word for word in trials[0].split(" ") if all(word in other.split(" ") for other in trials)]
    return f"{' '.join(shared) or ' and '.join(trials)}: {arm}"


def write_report(folder: Path, report: Report, experiments: Sequence[Named], split: str) -> list[str]:
    """Writes a report into its run's folder: for programs, as a table in Markdown, and as a page. Returns file names.

    Raises:
        DataError: as `write_page`.
    """
    write_text(folder / REPORT, render_json(report))
    write_text(folder / TABLE, render_markdown(report))
    write_page(folder, report, experiments, split)
    return [TABLE, REPORT, PAGE]


def write_page(folder: Path, report: Report, experiments: Sequence[Named], split: str) -> Path:
    """Writes a run's page into its folder, with the judged table that lies there.

    Raises:
        DataError: predictions or the judged table are damaged.
    """
    file = folder / PAGE
    write_text(file, render_html(report, gather(experiments, split), read_verdict(folder)))
    return file


def write_verdict(folder: Path, judged: JudgedTable) -> None:
    write_text(folder / VERDICT, _JUDGED.dump_json(judged, indent=1).decode() + "\n")


def read_verdict(folder: Path) -> JudgedTable | None:
    """The table with verdicts that `write_verdict` wrote; None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / VERDICT
    if not file.exists():
        return None
    way_out = "delete it and run `hba reproduce` again"
    return from_json(_JUDGED, file.read_bytes(), where=str(file), what="no judged table", way_out=way_out)


def gather(experiments: Sequence[Named], split: str) -> Evidence:
    """What a page shows beside the scores: learning curves, confusions, rows with their clips.

    Args:
        split: whose rows were predicted.

    Raises:
        DataError: predictions are damaged, or of other datasets than this version knows.
    """
    arms = list({arm.name: arm for experiment, labels in experiments for arm in _arms(experiment, labels)}.values())
    show_sensitive = all(experiment.spec.report.show_sensitive for experiment, _ in experiments)
    clips, notes = _clips([experiment for experiment, _ in experiments], split, show_sensitive)
    return Evidence(tuple(_curves(experiments)), confusions(arms), samples(arms, clips, notes, show_sensitive=show_sensitive))


def _arms(experiment: Experiment, labels: Mapping[str, str]) -> Iterable[ArmRows]:
    judged = {step.arm: step for step in experiment.steps if step.kind.name == "judge"}
    for step in experiment.steps:
        if str(step.arm) in labels and step.kind.name in PREDICTING:
            verdicts = verdicts_in(judged[step.arm].file(VERDICTS).parent) if step.arm in judged else None
            yield ArmRows(labels[str(step.arm)], read_parquet(step.file(PREDICTIONS)), verdicts)


def _curves(experiments: Sequence[Named]) -> Iterable[Curves]:
    """The learning curves of all training steps; one that several trials share is shown once and names them."""
    users: dict[Path, list[str]] = {}
    known: dict[Path, Step] = {}
    for experiment, _ in experiments:
        for step in experiment.steps:
            if step.has(STEP_LOG):
                users.setdefault(step.folder, []).append(experiment.name)
                known[step.folder] = step
    for folder, step in known.items():
        names = "" if len(users[folder]) == len(experiments) else f" of {', '.join(users[folder])}"
        unit = "epoch" if step.kind.name in EPOCHS else "optimiser step"
        yield curves(f"{step.name}{names}", read_lines(step.file(STEP_LOG)), unit=unit)


def _clips(experiments: Sequence[Experiment], split: str, show_sensitive: bool) -> tuple[dict[Key, tuple[Clip, ...]], list[str]]:
    """Clips of the first experiment's atlas, and a note on them; where the atlas is gone, the note says so."""
    made = [(step, one.spec.atlas) for one in experiments for step in one.steps if step.kind.name == "atlas"]
    if not made:
        return {}, ["No clips: the run has no atlas step."]
    step, spec = made[0]
    try:
        found = sampled_clips(AtlasIndex.load(step.whole(), stated=stated_roots(spec)), split, show_sensitive=show_sensitive)
    except (DataError, FileNotFoundError) as cause:
        return {}, [f"No clips: the atlas cannot be read any more ({cause})."]
    return found, [clips_note(found)] if found else []

"""What a page shows beside the scores, gathered from the folders of finished steps: of a run, or of a sweep's trials side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from hba_ray.data.atlas import AtlasIndex
from hba_ray.errors import DataError
from hba_ray.evaluation.comparisons import ArmRows
from hba_ray.report.base import Report
from hba_ray.report.clips import Clip, Key, clips_note, sampled_clips
from hba_ray.report.confusions import confusions
from hba_ray.report.curves import Curves, curves
from hba_ray.report.html.page import Evidence, Judged, render_html
from hba_ray.report.samples import samples
from hba_ray.runtime.read_back import from_json, read_parquet
from hba_ray.runtime.storage import read_lines, write_text
from hba_ray.sweeps.steps.base import STEP_LOG, Step
from hba_ray.sweeps.steps.evaluate import PREDICTIONS
from hba_ray.sweeps.steps.judge import VERDICTS, verdicts_in

PAGE, VERDICT = "report.html", "verdict.json"
"""In a run's folder: the page, and the judged table of the paper, where `hba reproduce` has made one."""
_JUDGED = TypeAdapter(Judged)
SCORING = ("evaluate", "judge", "probe")
"""Kinds of step that an arm's scores rest on."""
EPOCHS = ("bam",)
"""Kinds of step whose log has a line an epoch, not one an optimiser step."""


@dataclass(frozen=True)
class Trained:
    """The finished steps of one experiment.

    Attributes:
        name: of the trial; empty where there is one experiment.
        labels: arm -> its name on the page.
    """

    name: str
    steps: Sequence[Step]
    labels: Mapping[str, str]


def labels(reports: Mapping[str, Report], steps: Mapping[str, Sequence[Step]]) -> dict[str, dict[str, str]]:
    """Trial -> arm of its report -> the arm that it is in the sweep's.

    What all trials share has the name that it has in each. What some share is named by the settings that those have in
    common, and what is a trial's own by the trial.

    Args:
        reports, steps: of each trial, by its name.
    """
    users: dict[tuple[str, ...], list[str]] = {}
    made: dict[str, dict[str, tuple[str, ...]]] = {}
    for trial, report in reports.items():
        for arm in report.scores:
            scored = (step.fingerprint for step in steps[trial] if step.arm == arm and step.kind in SCORING)
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


def write_page(folder: Path, report: Report, experiments: Sequence[Trained], split: str) -> Path:
    """Writes a run's page into its folder, with the judged table that lies there.

    Raises:
        DataError: predictions or the judged table are damaged.
    """
    file = folder / PAGE
    write_text(file, render_html(report, gather(experiments, split), read_verdict(folder)))
    return file


def write_verdict(folder: Path, judged: Judged) -> None:
    write_text(folder / VERDICT, _JUDGED.dump_json(judged, indent=1).decode() + "\n")


def read_verdict(folder: Path) -> Judged | None:
    """What `write_verdict` wrote; None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / VERDICT
    if not file.exists():
        return None
    way_out = "delete it and run `hba reproduce` again"
    return from_json(_JUDGED, file.read_text(encoding="utf-8"), where=str(file), what="no judged table", way_out=way_out)


def gather(experiments: Sequence[Trained], split: str) -> Evidence:
    """
    Args:
        split: whose rows were predicted.

    Raises:
        DataError: predictions are damaged, or of other datasets than this version knows.
    """
    arms = list({arm.name: arm for experiment in experiments for arm in _arms(experiment)}.values())
    clips, notes = _clips([step for experiment in experiments for step in experiment.steps], split)
    return Evidence(tuple(_curves(experiments)), confusions(arms), samples(arms, clips, notes))


def _arms(experiment: Trained) -> Iterable[ArmRows]:
    judged = {step.arm: step.folder for step in experiment.steps if step.kind == "judge" and (step.folder / VERDICTS).exists()}
    for step in experiment.steps:
        if step.arm in experiment.labels and (step.folder / PREDICTIONS).exists():
            verdicts = verdicts_in(judged[step.arm]) if step.arm in judged else None
            yield ArmRows(experiment.labels[step.arm or ""], read_parquet(step.folder / PREDICTIONS), verdicts)


def _curves(experiments: Sequence[Trained]) -> Iterable[Curves]:
    """A step that trials share is shown once, under the names of those that have it."""
    users: dict[Path, list[str]] = {}
    known: dict[Path, Step] = {}
    for experiment in experiments:
        for step in experiment.steps:
            if (step.folder / STEP_LOG).exists():
                users.setdefault(step.folder, []).append(experiment.name)
                known[step.folder] = step
    for folder, step in known.items():
        names = "" if len(users[folder]) == len(experiments) else f" of {', '.join(users[folder])}"
        unit = "epoch" if step.kind in EPOCHS else "optimiser step"
        yield curves(f"{step.name}{names}", read_lines(folder / STEP_LOG), unit=unit)


def _clips(steps: Sequence[Step], split: str) -> tuple[dict[Key, tuple[Clip, ...]], list[str]]:
    """Clips of the first experiment's atlas, and what is to be said of them; where the atlas is gone, that is said."""
    atlas = next((step.folder for step in steps if step.kind == "atlas"), None)
    if atlas is None:
        return {}, ["No clips: the run has no atlas step."]
    try:
        found = sampled_clips(AtlasIndex.load(atlas), split)
    except (DataError, FileNotFoundError) as cause:
        return {}, [f"No clips: the atlas cannot be read any more ({cause})."]
    return found, [clips_note(found)] if found else []

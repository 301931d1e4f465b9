"""A run's folder, opened again: what it was asked to do, and the steps that did it.

What a page shows beside the scores, gathered from the folders of finished steps: of a run, or of a sweep's trials side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from hba_ray.data.atlas import AtlasIndex
from hba_ray.errors import DataError, HbaError, SpecError
from hba_ray.evaluation.pairs import ArmRows
from hba_ray.report.curves import Curves, confusions, curves
from hba_ray.report.page import Evidence, JudgedTable, render_html
from hba_ray.report.samples import Clip, Key, clips_note, sampled_clips, samples
from hba_ray.report.tables import Report, read_json
from hba_ray.runs.plan import plan, run_fingerprint
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.steps.base import STEP_LOG, Step
from hba_ray.steps.evaluate import PREDICTIONS
from hba_ray.steps.judge import VERDICTS, verdicts_in
from hba_ray.store.files import from_json, read_parquet
from hba_ray.store.folders import Storage, ledger, read_lines, write_text


@dataclass(frozen=True)
class OpenedRun:
    """
    Attributes:
        folder: of the run; the steps lie beside it.
    """

    folder: Path
    spec: ExperimentSpec
    steps: list[Step]

    def folders(self) -> dict[str, Path]:
        """Name of a step -> its folder.

        Raises:
            HbaError: a step is not finished.
        """
        for step in self.steps:
            if not step.is_done:
                raise HbaError(str(self.folder), f"its step '{step.name}' is not finished", "run the spec again, which goes on with it")
        return {step.name: step.folder for step in self.steps}


def open_run(folder: Path) -> OpenedRun:
    """The run of a folder, wherever the storage has been moved to.

    Raises:
        SpecError: the folder is no run.
        HbaError: its spec now comes to other steps: files that it names have changed, or it is of another version of hba_ray.
    """
    folder = folder.expanduser().absolute()
    file = folder / "resolved.yaml"
    if not file.is_file():
        raise SpecError(str(folder), "is no run: it holds no resolved.yaml", "give a run folder, as `hba run` prints it")
    spec = load_spec(file, [f"compute.storage={folder.parent}"])
    steps = plan(spec, Storage(folder.parent))
    if folder.name != f"{spec.name}-{run_fingerprint(steps)}":
        what = "what its spec names now comes to another result: files have changed, or it was made by another version"
        raise HbaError(str(folder), what, "run the spec again")
    return OpenedRun(folder, spec, steps)


def ledger_steps(run: Path, *, own: bool = False) -> list[Step]:
    """The steps that a run's ledger names, in its order, each once; without a look at the files that its spec names.

    Args:
        own: leaves out what `hba judge` has added since.

    Raises:
        SpecError: the folder is no run.
    """
    if not (run / "ledger.jsonl").is_file():
        raise SpecError(str(run), "is no run: it holds no ledger.jsonl", "give a run folder, as `hba run` prints it")
    storage, found = Storage(run.absolute().parent), {}
    for entry in ledger(run):
        if "step" in entry and not (own and entry["event"] == "judged"):
            kind, _, rest = entry["step"].partition(" ")
            arm = entry["step"] if kind == "probe" else rest
            folder = storage.step(kind, entry["fingerprint"])
            found[folder] = Step(kind, entry["step"], entry["fingerprint"], folder, "", arm=arm or None)
    return list(found.values())


def rebuild_page(run: Path) -> Path:
    """Writes the page of a finished run or sweep again, from what its steps left.

    Raises:
        SpecError: the folder is no run.
        HbaError: a sweep's trials are not known.
        DataError: what the page shows is damaged.
    """
    report = _report_of(run)
    spec = load_spec(run / "resolved.yaml", [])
    if spec.sweep is None:
        experiments = [Trained("", _newest(run), {arm: arm for arm in report.scores})]
    else:
        trials = _trials(run)
        steps = {name: _newest(folder) for name, folder in trials.items()}
        named = labels({name: _report_of(folder) for name, folder in trials.items()}, steps)
        experiments = [Trained(name, steps[name], named[name]) for name in trials]
    return write_page(run, report, experiments, spec.evaluate.split)


def _report_of(run: Path) -> Report:
    file = run / "report.json"
    if not file.is_file():
        raise SpecError(str(run), "is no finished run: it holds no report.json", "give a run folder, as `hba run` prints it")
    return read_json(file.read_text(encoding="utf-8"), where=str(file))


def _newest(run: Path) -> list[Step]:
    return [step for step in {step.name: step for step in ledger_steps(run, own=True)}.values() if step.is_done]


def _trials(run: Path) -> dict[str, Path]:
    """Name of a finished trial -> its folder, as the sweep's last end says."""
    ends = [line["trials"] for line in ledger(run) if line.get("event") == "finished" and "trials" in line]
    if not ends:
        raise HbaError(str(run / "ledger.jsonl"), "does not say which trials the sweep has", "run the spec again, which does nothing twice")
    return {
        name: run.absolute().parent / f"{run.absolute().name.rpartition('-')[0]}-{fingerprint}" for name, fingerprint in ends[-1].items()
    }


PAGE, VERDICT = "report.html", "verdict.json"
"""In a run's folder: the page, and the judged table of the paper, where `hba reproduce` has made one."""
_JUDGED = TypeAdapter(JudgedTable)
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


def write_verdict(folder: Path, judged: JudgedTable) -> None:
    write_text(folder / VERDICT, _JUDGED.dump_json(judged, indent=1).decode() + "\n")


def read_verdict(folder: Path) -> JudgedTable | None:
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

"""A run's folder, opened again: what it was asked to do, and the steps that did it."""

from __future__ import annotations

from pathlib import Path

from hba_ray.errors import HbaError
from hba_ray.evaluation.arms import Arm
from hba_ray.report.tables import Report, read_json
from hba_ray.runs.plan import Experiment, plan
from hba_ray.runs.results import labels, write_page
from hba_ray.specs import load_spec
from hba_ray.steps import AFTER, KINDS
from hba_ray.steps.base import Step
from hba_ray.store.folders import LEDGER, REPORT, RESOLVED, Storage, done, file_of_run, ledger
from hba_ray.store.scratch import stated


def open_run(folder: Path) -> Experiment:
    """The experiment of a run's folder, also where the storage has been moved since.

    Raises:
        SpecError: the folder is no run.
        HbaError: its spec now comes to other steps: files that it names have changed, or it is of another version of hba_ray.
    """
    folder = folder.expanduser().absolute()
    spec = load_spec(file_of_run(folder, RESOLVED), [f"compute.storage={stated(folder.parent)}"])
    experiment = plan(spec, Storage(folder.parent))
    if folder.name != experiment.folder.name:
        what = "its spec would now give another result: a file that it names has changed, or another version of hba_ray made the run"
        raise HbaError(str(folder), what, "run the spec again")
    return experiment


def ledger_steps(run: Path, *, own: bool = False) -> list[Step]:
    """The steps that a run's ledger names, each once and in its order. The files that the spec names are not looked at.

    Args:
        own: leaves out what `hba judge` has added since.

    Raises:
        SpecError: the folder is no run.
    """
    file_of_run(run, LEDGER)
    storage, found = Storage(run.absolute().parent), {}
    for entry in ledger(run):
        if "step" in entry and not (own and entry["event"] == "judged"):
            kind, _, rest = entry["step"].partition(" ")
            arm = Arm.parse(entry["step"] if kind == "probe" else rest) if KINDS[kind] in AFTER else None
            folder = storage.step(kind, entry["fingerprint"])
            found[folder] = Step(KINDS[kind], entry["step"], entry["fingerprint"], folder, "", arm=arm, part=rest or None)
    return list(found.values())


def rebuild_page(run: Path) -> Path:
    """Writes the page of a finished run or sweep again, from what its steps left.

    Raises:
        SpecError: the folder is no run.
        HbaError: a sweep's trials are not known.
        DataError: what the page shows is damaged.
    """
    report = _report_of(run)
    spec = load_spec(run / RESOLVED, [])
    if spec.sweep is None:
        return write_page(run, report, [(_as_done("", run), {arm: arm for arm in report.scores})], spec.evaluate.split)
    trials = {name: _as_done(name, folder) for name, folder in _trials(run).items()}
    named = labels({name: _report_of(trial.folder) for name, trial in trials.items()}, {name: one.steps for name, one in trials.items()})
    return write_page(run, report, [(trials[name], named[name]) for name in trials], spec.evaluate.split)


def _report_of(run: Path) -> Report:
    file = file_of_run(run, REPORT)
    return read_json(file.read_bytes(), where=str(file))


def _as_done(name: str, run: Path) -> Experiment:
    """The experiment of a run, with the finished steps that its ledger names; of several with one name, the newest."""
    steps = [step for step in {step.name: step for step in ledger_steps(run, own=True)}.values() if done(step.folder) is not None]
    spec = load_spec(run / RESOLVED, [])
    return Experiment(name, spec, tuple(steps), run, run.absolute().name.rpartition("-")[2])


def _trials(run: Path) -> dict[str, Path]:
    """Name of a finished trial -> its folder, as the sweep's last end says."""
    ends = [line["trials"] for line in ledger(run) if line.get("event") == "finished" and "trials" in line]
    if not ends:
        raise HbaError(str(run / LEDGER), "does not say which trials the sweep has", "run the spec again, which does nothing twice")
    return {
        name: run.absolute().parent / f"{run.absolute().name.rpartition('-')[0]}-{fingerprint}" for name, fingerprint in ends[-1].items()
    }

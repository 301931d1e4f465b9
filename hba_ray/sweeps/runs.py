"""A run's folder, opened again: what it was asked to do, and the steps that did it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hba_ray.errors import HbaError, SpecError
from hba_ray.report.tables import Report, read_json
from hba_ray.runtime.storage import Storage, ledger
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.sweeps.evidence import Trained, labels, write_page
from hba_ray.sweeps.plan import plan, run_fingerprint
from hba_ray.sweeps.steps.base import Step


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

"""A run's folder, opened again: what it was asked to do, and the steps that did it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hba_ray.errors import HbaError, SpecError
from hba_ray.runtime.storage import Storage
from hba_ray.specs import ExperimentSpec, load_spec
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

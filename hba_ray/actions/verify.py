"""`hba runs verify`: reads every file of finished steps again, and says which are not what they were when their step was finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hba_ray.errors import DataError, SpecError
from hba_ray.runs.opened import ledger_steps
from hba_ray.steps import KINDS
from hba_ray.store.finished import damages, known_files
from hba_ray.store.folders import LEDGER, Storage, done


@dataclass(frozen=True)
class Verified:
    """What became of the files of finished steps.

    Attributes:
        steps, files: that were looked at.
        unlisted: steps that list no files, since a former version of hba_ray finished them.
        found: a line for each file that is not what it was, as (file, what is wrong).
    """

    steps: int
    files: int
    unlisted: int
    found: tuple[tuple[Path, str], ...]


def verify(folder: Path, on_step: Callable[[int, int], None] = lambda number, total: None) -> Verified:
    """Reads the files of all finished steps of a storage, or of those that a run's ledger names; digests are not remembered.

    Args:
        on_step: called with the number of steps that were looked at, and of all.

    Raises:
        SpecError: the folder is neither a storage nor a run.
    """
    folders = _steps_in(folder)
    steps = files = unlisted = 0
    found: list[tuple[Path, str]] = []
    for number, place in enumerate(folders, 1):
        try:
            facts = done(place)
            if facts is None:
                continue
            steps += 1
            KINDS[place.name.rpartition("-")[0]].said(place, facts)
            known = known_files(place, facts)
        except DataError as damaged:
            found.append((Path(damaged.where), damaged.what))
            continue
        files, unlisted = files + len(known or ()), unlisted + (known is None)
        found += [(place / damage.file, damage.what) for damage in damages(place, known or {}, content=True)]
        on_step(number, len(folders))
    return Verified(steps, files, unlisted, tuple(found))


def _steps_in(folder: Path) -> Sequence[Path]:
    if (folder / LEDGER).is_file():
        return [step.folder for step in ledger_steps(folder)]
    if not (folder / "steps").is_dir():
        raise SpecError(str(folder), "is neither a storage nor a run", "give the folder of `compute.storage`, or of a run in it")
    storage = Storage(folder)
    return [place for kind in KINDS for place in storage.steps_of(kind)]

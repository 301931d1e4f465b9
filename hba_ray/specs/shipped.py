"""The specs that ship with the package: their folder, and those of the paper's tables by number."""

from __future__ import annotations

from pathlib import Path

import hba_ray
from hba_ray.errors import SpecError

TOY = Path("base") / "toy.yaml"
"""What `hba reproduce --scale toy` lays over a spec, in the folder of shipped experiments."""


def experiments_folder(given: Path | None = None) -> Path:
    """The folder of shipped specs: the one given, or beside the package, or below the working folder.

    Raises:
        SpecError: there is none.
    """
    for folder in [given] if given else [Path(hba_ray.__file__).parents[1] / "experiments", Path("experiments")]:
        if (folder / "paper").is_dir():
            return folder
    where = str(given or "experiments")
    raise SpecError(where, "no folder with the paper's specs: it has no `paper` in it", "give the repository's as --experiments FOLDER")


def find_table(table: str, folder: Path) -> Path:
    """The spec of a table, by its number: `T11`, in any case, or `11`.

    Raises:
        SpecError: there is none; names those that are there.
    """
    known = {file.name.partition("_")[0]: file for file in sorted((folder / "paper").glob("T*_*.yaml"))}
    name = table.strip().upper().removeprefix("TABLE").strip()
    name = name if name.startswith("T") else f"T{name}"
    if name in known:
        return known[name]
    there = ", ".join(sorted(known, key=lambda one: int(one[1:])))
    raise SpecError(str(folder / "paper"), f"no spec for a table '{table}'", f"there are: {there}")

"""The `paper` section: a published table, where our numbers for it come from, and what must hold of them.

A cell is published[column][row]. A column is a model or a setting of the paper's; `arms` says which arm
of which trials measures it. A row names what is measured: a dataset or a task, and behind a slash
another measure than the benchmark's (`mosei_senti/weighted_f1`, `all/spearman`), or a fact of the
arm that is no score (`cost/peak_mb`, `answers/perplexity`, `agreement/kappa`).

The specs that ship with the package: their folder, and those of the paper's tables by number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import hba_ray
from hba_ray.errors import SpecError
from hba_ray.specs.base import Spec

TableId = Literal[
    "T4", "T5", "T6", "T8", "T9", "T10", "T11", "T12", "T13", "T14", "T15", "T16", "T17", "T18", "T19", "T20"
]  # fmt: skip


class MeasuredBy(Spec):
    """What measures a column: an arm, of the trials with these settings, whatever their seeds."""

    arm: str = Field(pattern=r"^\S(.*\S)?$")
    """The arm as reports name it, for example `sft+bam`."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trial, by dotted key; none where all trials are meant."""
    against: dict[str, Any] | Literal["person"] | None = None
    """Of `agreement` rows: whom the trial's judge is held against, the judge of the trial with these settings, or a person."""


class Contrast(Spec):
    """Two columns set against each other, row by row."""

    of: str
    over: str
    published: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Row -> the change that the paper prints: per cent, and absolute. Rows where it prints a dash are left out."""


class Gate(Spec):
    """A claim that must hold. Either a column is better than others, or it is near what is published."""

    says: str = Field(min_length=1)
    """The claim in words."""
    of: str
    """The column it is about."""
    over: tuple[str, ...] = ()
    """Columns that it is better than, each of them, row by row."""
    significant: bool = True
    """Whether better means a paired test at 5 %, corrected over the gate's rows; otherwise the scores are just compared."""
    within: float | None = Field(default=None, gt=0)
    """Largest distance from the published value."""
    rows: tuple[str, ...] = ()
    """Rows it is about; all published rows of the column by default. A task where the table has datasets is their mean."""
    at_least: int | None = Field(default=None, ge=1)
    """Rows on which it must hold; all of them by default."""

    @model_validator(mode="after")
    def _one_kind(self) -> Gate:
        if bool(self.over) == (self.within is not None):
            raise ValueError("a gate says `over` (better than these columns) or `within` (this near to the published value), one of them")
        if self.at_least is not None and self.rows and self.at_least > len(self.rows):
            raise ValueError(f"at_least is {self.at_least}, but the gate has only {len(self.rows)} rows")
        return self


class PaperSpec(Spec):
    """One table of the paper."""

    table: TableId
    title: str = Field(min_length=1)
    """What the table shows, in words."""
    digits: int = Field(default=3, ge=0, le=12)
    """Decimals that the paper prints; a published value is known to half a unit of the last one."""
    published: dict[str, dict[str, float]] = Field(min_length=1)
    """Column -> row -> value: shares in 0..1, or what the row's measure says. Cells that the paper leaves empty are left out."""
    arms: dict[str, MeasuredBy | None]
    """Column -> what measures it; null where nothing here can."""
    labels: str | None = Field(default=None, min_length=1)
    """CSV of a person's labels for the answers that are judged, as `hba judge RUN --sample` writes it; null: there are none."""
    contrasts: tuple[Contrast, ...] = ()
    gates: tuple[Gate, ...] = ()
    differs: tuple[str, ...] = ()
    """What this spec, or the paper itself, does otherwise than the printed table suggests: footnotes."""

    @model_validator(mode="after")
    def _columns_are_known(self) -> PaperSpec:
        for what, names in (("arms", self.arms), ("published", self.published)):
            other = self.published if what == "arms" else self.arms
            stray = [name for name in names if name not in other]
            if stray:
                raise ValueError(f"{what} names the column '{stray[0]}', which is not in {'published' if what == 'arms' else 'arms'}")
        for kind, items in (("contrasts", self.contrasts), ("gates", self.gates)):
            for place, item in enumerate(items):
                over = item.over if isinstance(item, Gate) else (item.over,)
                stray = [name for name in (item.of, *over) if name not in self.published]
                if stray:
                    raise ValueError(f"{kind}.{place}: no column '{stray[0]}'; columns: {', '.join(self.published)}")
        for place, contrast in enumerate(self.contrasts):
            both = self.published[contrast.of].keys() & self.published[contrast.over].keys()
            stray = [row for row in contrast.published if row not in both]
            if stray:
                raise ValueError(f"contrasts.{place}: row '{stray[0]}' is not published for both columns")
        return self


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

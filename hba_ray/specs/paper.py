"""The `paper` section: a published table, where our numbers for it come from, and which of the paper's claims are tested.

A cell is `published[column][row]`. A column is a model or a setting of the paper; `arms` says which arm of which trials
measures it. A row names what is measured: a dataset or a task; behind a slash, another measure than the benchmark's
(`mosei_senti/weighted_f1`, `all/spearman`); or a fact about the arm which is no score (`cost/peak_mb`,
`answers/perplexity`, `agreement/kappa`).

`find_table` finds the shipped spec of a table by its number. The tables that describe the atlas, `DESCRIPTIVE`, have no spec of their
own: they are measured from the rows of any atlas, and need no trials.
"""

from __future__ import annotations

import re
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
    """Where our numbers for a column come from: one arm of all trials with some settings, whatever their seeds."""

    arm: str = Field(pattern=r"^\S(.*\S)?$")
    """Name of the arm in reports, for example `sft+bam`."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Dotted key -> value that the trials have; empty means all trials."""
    against: dict[str, Any] | Literal["person"] | None = None
    """For `agreement` rows, whom the judge of these trials is compared with: the judge of the trials with these settings, or a
    person."""


class Contrast(Spec):
    """A comparison of two columns, row by row."""

    of: str
    """Column whose gain is shown."""
    over: str
    """Column that it is compared with."""
    published: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Row -> the change that the paper prints, in per cent and absolute. Rows in which it prints a dash are left out."""


class Gate(Spec):
    """A claim that is tested: either that a column is better than others, or that it is near its published values."""

    says: str = Field(min_length=1)
    """The claim in words."""
    of: str
    """Column that the claim is about."""
    over: tuple[str, ...] = ()
    """Columns than each of which it is better, row by row."""
    significant: bool = True
    """Whether better means a paired test at 5 %, Holm-corrected over the rows of the gate; otherwise scores are just compared."""
    within: float | None = Field(default=None, gt=0)
    """Largest distance from the published value."""
    rows: tuple[str, ...] = ()
    """Rows that the claim is about; an empty list means all published rows of the column. A task stands for the mean of its
    datasets where the table has those."""
    at_least: int | None = Field(default=None, ge=1)
    """On how many of the rows it must hold; null means on all."""

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
    """Number of the table."""
    title: str = Field(min_length=1)
    """What the table shows, in words."""
    digits: int = Field(default=3, ge=0, le=12)
    """Decimals that the paper prints. A published value is exact to half a unit of the last one."""
    published: dict[str, dict[str, float]] = Field(min_length=1)
    """Column -> row -> published value: a share from 0 to 1, or in the unit of the row's measure. Cells that the paper leaves
    empty are left out."""
    arms: dict[str, MeasuredBy | None]
    """Column -> what measures it here; null where nothing does."""
    labels: str | None = Field(default=None, min_length=1)
    """CSV file with a person's labels of judged answers, as `hba judge RUN --sample` writes it; null where there are none."""
    contrasts: tuple[Contrast, ...] = ()
    """Comparisons that the table prints."""
    gates: tuple[Gate, ...] = ()
    """Claims that are tested."""
    differs: tuple[str, ...] = ()
    """Footnotes: where this spec, or the paper itself, differs from what the printed table suggests."""

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
"""The spec that `hba reproduce --scale toy` merges into a table's, from the folder of shipped specs."""


def experiments_folder(given: Path | None = None) -> Path:
    """The folder of shipped specs: the one given; otherwise `experiments` beside the package, or in the working folder.

    Raises:
        SpecError: none of them holds the paper's specs.
    """
    for folder in [given] if given else [Path(hba_ray.__file__).parents[1] / "experiments", Path("experiments")]:
        if (folder / "paper").is_dir():
            return folder
    where = str(given or "experiments")
    raise SpecError(where, "no folder with the paper's specs: it has no `paper` in it", "give the repository's as --experiments FOLDER")


DESCRIPTIVE = {
    "T1": "benchmarks of behaviour, and what each has",
    "T2": "corpora, with their dimensions, tasks, modalities, samples and metrics",
    "T3": "how MELD's sentiment is asked for",
    "T7": "rows of each split",
    "T21": "where corpora come from",
    "T22": "how the other datasets are asked for",
    "F1": "tasks, modalities, lengths of clips and regions",
}
"""Tables and the figure that describe the atlas -> what they show, in words."""
ATLAS_SPEC = Path("base") / "omnisapiens_7b.yaml"
"""The spec, from the folder of shipped specs, whose atlas they describe where no other is named."""
_NAME = re.compile(r"(?:(t|table)|(f|fig|figure))?[ .]*(\d+)", re.IGNORECASE)


def table_id(name: str) -> str | None:
    """The id of a table or figure as people write it; None where the word names none.

    >>> table_id("t11"), table_id("Table 11"), table_id("11"), table_id("figure 1"), table_id("sft.lr=1")
    ('T11', 'T11', 'T11', 'F1', None)
    """
    found = _NAME.fullmatch(name.strip())
    return f"{'F' if found[2] else 'T'}{int(found[3])}" if found else None


def find_table(table: str, folder: Path) -> Path:
    """The file of a table's spec.

    Args:
        table: its number, as `table_id` takes it.
        folder: of the shipped specs.

    Raises:
        SpecError: no spec for this table is there; names those that are.
    """
    known = {file.name.partition("_")[0]: file for file in sorted((folder / "paper").glob("T*_*.yaml"))}
    name = table_id(table)
    if name in known:
        return known[name]
    there = ", ".join(sorted(known, key=lambda one: int(one[1:])))
    way_out = f"there are: {there}; and of the atlas itself {', '.join(DESCRIPTIVE)}"
    raise SpecError(str(folder / "paper"), f"no spec for a table '{table}'", way_out)

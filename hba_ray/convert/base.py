"""What a converter is asked and what it returns, and what becomes of a bad row.

A defect of a file (missing, not UTF-8, no such column, cut off inside a quote) always stops the conversion; a defect of a row
stops it or leaves the row out, as `atlas.on_bad_row` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hba_ray.convert.wording import DatasetPrompts
from hba_ray.data.atlas import Drop
from hba_ray.data.rows import Row
from hba_ray.data.tasks import Dataset
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.atlas import OnBadRow


@dataclass(frozen=True)
class Difference:
    """One reason why a split has more rows (positive) or fewer (negative) than published."""

    rows: int
    reason: str


@dataclass(frozen=True)
class ConversionRequest:
    """What is asked of a converter.

    Attributes:
        folder: of the public files.
        datasets: ids of those of its datasets that are wanted.
        seed: of the split, where the corpus publishes none.
        spec: the other settings of `atlas`.
        scratch: folder for clips that are cut out of recordings; it is gone when the rows are written.
        prompts: what rows are asked; our own words by default.
    """

    folder: Path
    datasets: list[str]
    seed: int
    spec: AtlasSpec
    scratch: Path
    prompts: DatasetPrompts | None = None


@dataclass(frozen=True)
class Converted:
    """A corpus, read from its public files.

    Attributes:
        rows: split -> rows.
        drops: rows left out; `split` is empty where a row was left out before the split was made.
        differences: split -> the reasons that the converter knows for a count other than the published one.
            A key may also be `dataset/split`, for a reason that concerns one dataset of several.
        rules: sentences for the card that say by which rules the rows were made, where another rule would have given others.
        findings: sentences about what the public files hold that a reader of results should know.
    """

    rows: dict[str, list[Row]]
    drops: list[Drop] = field(default_factory=list)
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


class Sieve:
    """Raises the error of a bad row, or leaves the row out and notes it in `drops`."""

    def __init__(self, source: str, on_bad_row: OnBadRow):
        self.source, self.on_bad_row = source, on_bad_row
        self.drops: list[Drop] = []

    @contextmanager
    def row(self, split: str = "") -> Iterator[None]:
        """Runs a block that makes one row. A bad row ends the block early, so only the block's last line may keep anything of it."""
        try:
            yield
        except DataError as bad:
            if self.on_bad_row == "fail":
                raise bad.of_a_row() from None
            self.leave_out(bad.where, bad.reason, split)

    def leave_out(self, row: str, reason: str, split: str = "") -> None:
        self.drops.append(Drop(split, self.source, row, reason))


def labelled_row(dataset: Dataset, *, sample_id: str, clip_id: str, problem: str, label: str, media: dict[str, tuple[Path, ...]]) -> Row:
    """A row of a task with classes, whose answer is its label."""
    return Row(sample_id=sample_id, clip_id=clip_id, dataset=dataset, problem=problem, answer=label, label=label, media=media)


def open_row(dataset: Dataset, *, sample_id: str, clip_id: str, problem: str, answer: str, media: dict[str, tuple[Path, ...]]) -> Row:
    """A row of a task that is answered in free text."""
    return Row(sample_id=sample_id, clip_id=clip_id, dataset=dataset, problem=problem, answer=answer, label=None, media=media)


def left_out(drops: Iterable[Drop], splits: Iterable[str], *, but: Collection[str] = ()) -> dict[str, list[Difference]]:
    """Split -> one difference for each reason for which rows of it were left out.

    Args:
        but: reasons for which the publication left the same rows out.
    """
    counted = Counter((drop.split, drop.reason) for drop in drops if drop.reason not in but)
    return {split: [Difference(-rows, f"left out: {why}") for (its, why), rows in counted.items() if its == split] for split in splits}

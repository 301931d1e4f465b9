"""What an atlas holds, counted: rows by dataset, split and label, modalities, lengths of clips; and what the paper counts.

An entry is a line of the paper's Table 7: a dataset, but for MMPsy, whose two tasks share their rows and are counted once there.
A corpus is a line of its Table 2: the entries that come from one source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from hba_ray.convert.origins import corpora_of, corpus_title
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset

LONG_SECONDS = 20.0
"""A clip that is longer is a long one (Figure 1d)."""
BINS = (0.0, 5.0, 10.0, LONG_SECONDS, 60.0, 300.0)
"""Seconds at which the classes of length begin."""
COUNTED_ONCE = ("mmpsy",)
"""Corpora whose rows stand in the atlas once for each of several tasks, and in Tables 2 and 7 once."""
LETTERS = {"T": "text", "A": "audio", "V": "video"}
"""Table 2's letters."""


@dataclass(frozen=True)
class DatasetSurvey:
    """What an atlas holds of one dataset.

    Attributes:
        rows: split -> rows.
        labels: split -> label -> rows; empty for open answers.
        signatures: modalities of a row, as `text_audio` -> rows.
        has_descriptors: whether its first row brings descriptors along.
        prompt: the lines that the prompts of all rows with the commonest modalities share, `…` where each has its own; empty where
            nobody has looked.
    """

    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    signatures: Mapping[str, int] = field(default_factory=dict)
    has_descriptors: bool = False
    prompt: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def with_modality(self, name: str) -> int:
        """Rows that have a modality."""
        return sum(rows for signature, rows in self.signatures.items() if name in signature.split("_"))


@dataclass(frozen=True)
class Lengths:
    """The clips of one corpus, each counted once: a video where there is one, else a sound.

    Attributes:
        seconds: of each clip that can be read.
        unreadable: reason -> clips or rows.
    """

    videos: int = 0
    sounds: int = 0
    seconds: tuple[float, ...] = ()
    unreadable: Mapping[str, int] = field(default_factory=dict)

    @property
    def minutes(self) -> float:
        return sum(self.seconds) / 60

    @property
    def ends(self) -> tuple[float, float, float] | None:
        """Seconds of the shortest, the middle and the longest clip; None where there is none."""
        return (min(self.seconds), median(self.seconds), max(self.seconds)) if self.seconds else None

    @property
    def long(self) -> int:
        """Clips of more than 20 seconds."""
        return sum(one > LONG_SECONDS for one in self.seconds)

    @property
    def bins(self) -> tuple[int, ...]:
        """Clips in each class of `BINS`, of which a clip at the boundary is in the lower one."""
        found = Counter(max(place for place, start in enumerate(BINS) if one > start or not place) for one in self.seconds)
        return tuple(found[place] for place in range(len(BINS)))

    @staticmethod
    def together(several: Iterable[Lengths]) -> Lengths:
        """All of them as one."""
        parts: list[Lengths] = list(several)
        unreadable: Counter[str] = Counter()
        for part in parts:
            unreadable.update(part.unreadable)
        seconds = tuple(one for part in parts for one in part.seconds)
        return Lengths(sum(part.videos for part in parts), sum(part.sounds for part in parts), seconds, dict(unreadable))


@dataclass(frozen=True)
class Entry:
    """A line of Table 7, or of a dataset that the paper does not count."""

    datasets: tuple[Dataset, ...]

    @property
    def title(self) -> str:
        return self.datasets[0].title if len(self.datasets) == 1 else corpus_title(list(self.datasets))

    def published(self, split: str | None = None) -> int | None:
        """Rows of a split, or of all, by Table 7; None where it has none."""
        counts = self.datasets[0].counts
        return None if counts is None else sum(counts) if split is None else counts[SPLITS.index(split)]


@dataclass(frozen=True)
class Survey:
    """What an atlas holds.

    Attributes:
        name: of the spec.
        fingerprint: of the atlas step.
        is_toy: whether rows are generated, so that nothing is said about the paper.
        datasets: id -> what it holds of that dataset.
        lengths: corpus -> its clips; None where nobody has looked at clips.
    """

    name: str
    fingerprint: str
    is_toy: bool
    datasets: Mapping[str, DatasetSurvey]
    lengths: Mapping[str, Lengths] | None = None

    def entries(self) -> list[Entry]:
        """The lines of Table 7, then those of datasets that the atlas has beside them, in the benchmark's order."""
        known = [name for name, dataset in DATASETS.items() if dataset.is_benchmark]
        return _entries([*known, *(name for name in DATASETS if name in self.datasets and name not in known)])

    def corpora(self) -> list[tuple[str, list[Entry]]]:
        """(title, entries) of the lines of Table 2, then of corpora that the atlas has beside them."""
        by_corpus: dict[str, list[Entry]] = {}
        for entry in self.entries():
            by_corpus.setdefault(entry.datasets[0].source, []).append(entry)
        return [(corpus_title([one for entry in several for one in entry.datasets]), several) for several in by_corpus.values()]

    def is_counted(self, entry: Entry) -> bool:
        """Whether its rows enter sums: the benchmark's, or those of the toy atlas where there are such."""
        return entry.datasets[0].is_toy if self.is_toy else entry.datasets[0].is_benchmark

    def rows(self, entry: Entry, split: str | None = None) -> int | None:
        """Rows of an entry in a split, or in all, which is the sum of its splits; None where the atlas does not hold it."""
        held = [self.datasets[one.id] for one in entry.datasets if one.id in self.datasets]
        splits = SPLITS if split is None else (split,)
        return sum(max(one.rows.get(name, 0) for one in held) for name in splits) if held else None

    def total(self, split: str | None = None) -> int:
        """Rows of all entries that are counted."""
        return sum(self.rows(entry, split) or 0 for entry in self.entries() if self.is_counted(entry))

    def with_modalities(self, entry: Entry, name: str) -> int:
        """Rows of an entry that have a modality."""
        return max((self.datasets[one.id].with_modality(name) for one in entry.datasets if one.id in self.datasets), default=0)

    def letters(self, entries: Sequence[Entry]) -> str:
        """Table 2's letters of the modalities that some row has, such as `T A`."""
        return " ".join(letter for letter, name in LETTERS.items() if any(self.with_modalities(entry, name) for entry in entries))

    def clips(self) -> Lengths | None:
        """The clips of all corpora that are counted, as one; None where nobody has looked at clips."""
        if self.lengths is None:
            return None
        counted = {entry.datasets[0].source for entry in self.entries() if self.is_counted(entry)}
        return Lengths.together(one for corpus, one in self.lengths.items() if corpus in counted)


def _entries(names: Sequence[str]) -> list[Entry]:
    """Datasets as lines of Table 7."""
    shared = corpora_of(names)
    found: list[Entry] = []
    for dataset in map(DATASETS.__getitem__, names):
        its = tuple(shared[dataset.source]) if dataset.source in COUNTED_ONCE else (dataset,)
        if dataset == its[0]:
            found.append(Entry(its))
    return found


def shared_lines(prompts: Sequence[str]) -> tuple[str, ...]:
    """The lines at the start and at the end that all prompts have, and `…` for what lies between.

    >>> shared_lines(["<audio>\\nOh.\\nHow is it?", "<audio>\\nWell,\\nno.\\nHow is it?"])
    ('<audio>', '…', 'How is it?')
    """
    each: list[list[str]] = [prompt.split("\n") for prompt in prompts]
    shortest = min(map(len, each), default=0)
    first = next((place for place in range(shortest) if len({lines[place] for lines in each}) > 1), shortest)
    last = next((place for place in range(shortest - first) if len({lines[-1 - place] for lines in each}) > 1), shortest - first)
    between = ("…",) if any(len(lines) > first + last for lines in each) else ()
    return (*each[0][:first], *between, *each[0][len(each[0]) - last :]) if each else ()

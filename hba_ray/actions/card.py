"""The card of an atlas: where its rows come from, by which rules, how many there are beside Table 7 and why, and what is wrong with them.

It has two forms with one content: JSON, from which an atlas that was built is described again, and Markdown with the header that the
Hugging Face hub reads. It holds counts, names and sentences of ours, and no text of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from hba_ray import __version__
from hba_ray.actions.atlas_health import SEVERITIES, Finding, row_findings
from hba_ray.actions.describe import MadeAtlas
from hba_ray.actions.survey import survey_of
from hba_ray.convert.base import Difference
from hba_ray.convert.conversion import Conversion
from hba_ray.convert.origins import RELEASED, corpora_of, corpus_title, origin_of
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.evaluation.survey import BINS, LETTERS, LONG_SECONDS, DatasetSurvey, Lengths
from hba_ray.report.formats import Document, to_markdown
from hba_ray.report.sheets import MISSING, Sheet
from hba_ray.specs import ExperimentSpec, identity_values
from hba_ray.store.files import from_json
from hba_ray.store.roots import CARD, stated_roots

if TYPE_CHECKING:
    from hba_ray.data.build import Written

README = "README.md"
"""Name of the card as a page; `store.roots.CARD` is the other form."""
SENSITIVE = (
    "Their texts are those of patients or minors: by default hba_ray shows none of them in logs, errors, pages or MLflow, and neither "
    "should you. Do not pass them on."
)
NO_RULES = {"media", "modalities", "toy", "root", "source", "format", "held_out", "train_also", "own", "sources"}
"""Settings of the `atlas` section that do not decide which rows there are, or that stand elsewhere in the card."""
NOT_KNOWN = "the files hold so many; why is not known"


@dataclass(frozen=True)
class CardCount:
    """Rows of one dataset in one split.

    Attributes:
        published: rows by Table 7; None where it has no count.
        labels: label -> rows.
        reasons: for a count other than the published one; their rows add up to the difference.
    """

    dataset: str
    split: str
    rows: int
    published: int | None
    labels: dict[str, int]
    reasons: list[Difference] = field(default_factory=list)


@dataclass(frozen=True)
class CardLengths:
    """The clips of a corpus, each counted once.

    Attributes:
        shortest, middle, longest: seconds; None where no clip can be read.
        bins: clips in each class of length, see `evaluation.survey.BINS`.
        long: clips of more than 20 seconds.
    """

    videos: int
    sounds: int
    minutes: float
    shortest: float | None
    middle: float | None
    longest: float | None
    bins: list[int]
    long: int
    unreadable: dict[str, int]

    @staticmethod
    def of(lengths: Lengths) -> CardLengths:
        low, middle, high = (None if end is None else round(end, 2) for end in lengths.ends or (None,) * 3)
        minutes, bins, unreadable = round(lengths.minutes, 1), list(lengths.bins), dict(lengths.unreadable)
        return CardLengths(lengths.videos, lengths.sounds, minutes, low, middle, high, bins, lengths.long, unreadable)


@dataclass(frozen=True)
class CardFinding:
    """How often something is wrong, as `hba atlas check` finds it."""

    severity: str
    finding: str
    dataset: str
    split: str
    rows: int


@dataclass(frozen=True)
class Card:
    """What is said of an atlas.

    Attributes:
        name: of the spec.
        made_by: this package and its version.
        fingerprint: of the atlas step, which names the rows.
        layout: of an atlas that was built: parquet or jsonl.
        rules: settings of the spec's `atlas` section that decide which rows there are.
        sources: of each corpus that is joined, its settings without its folder.
        signatures: dataset -> modalities -> rows.
        lengths: corpus -> its clips.
        conversions: cards of the converters.
        dropped: dataset -> reason -> rows that were left out when the rows were made, read or written.
        put_right: dataset -> what was changed in rows -> rows.
        sensitive: datasets whose texts are those of patients or minors.
        files: of an atlas that was built: name, rows, bytes.
    """

    name: str
    made_by: str
    fingerprint: str
    seed: int
    rules: dict[str, Any]
    sources: list[dict[str, Any]]
    counts: list[CardCount]
    signatures: dict[str, dict[str, int]]
    lengths: dict[str, CardLengths]
    conversions: list[Conversion]
    dropped: dict[str, dict[str, int]]
    put_right: dict[str, dict[str, int]]
    findings: list[CardFinding]
    sensitive: list[str]
    layout: str | None = None
    files: list[dict[str, Any]] = field(default_factory=list)

    @property
    def datasets(self) -> list[str]:
        """Ids, in the benchmark's order."""
        return list(dict.fromkeys(count.dataset for count in self.counts))

    def rows(self, dataset: str | None = None) -> int:
        """Rows of a dataset, or all."""
        return sum(count.rows for count in self.counts if dataset in (None, count.dataset))


_CARD = TypeAdapter(Card)


def make_card(spec: ExperimentSpec, made: MadeAtlas, *, layout: str | None = None, written: Sequence[Written] = ()) -> Card:
    """The card of a spec's atlas.

    Args:
        layout, written: of an atlas that was built of it; its rows are then those that were written.

    Raises:
        DataError: the card of a released atlas that hba_ray has built is damaged.
    """
    from hba_ray.progress import progress

    with progress("lengths of clips", total=len(made.index.table)) as bar:
        survey = survey_of(spec, made, lengths=True, progress=bar.reach)
    result = made.result
    conversions = [*_conversions(card for card in (result.card, *result.cards) if card is not None), *_former(spec)]
    dropped = {name: Counter(reasons) for name, reasons in result.drops.items()}
    for name, reasons in ((name, reasons) for part in written for name, reasons in part.dropped.items()):
        dropped.setdefault(name, Counter()).update(reasons)
    held = _written(written) if written else survey.datasets
    return Card(
        name=spec.name,
        made_by=f"hba_ray {__version__}",
        fingerprint=survey.fingerprint,
        seed=spec.seed,
        rules=identity_values(spec.atlas, exclude=NO_RULES),
        sources=[part.model_dump(mode="json", exclude={"root"}, exclude_none=True) for part in spec.atlas.parts],
        counts=list(_counts(spec, held, conversions)),
        signatures={name: dict(one.signatures) for name, one in held.items()},
        lengths={corpus: CardLengths.of(lengths) for corpus, lengths in (survey.lengths or {}).items()},
        conversions=conversions,
        dropped={name: dict(reasons) for name, reasons in sorted(dropped.items())},
        put_right={name: dict(changes) for name, changes in result.changes.items()},
        findings=_findings(row_findings(made.index)),
        sensitive=[name for name in held if DATASETS[name].sensitive],
        layout=layout,
        files=[{"name": part.name, "rows": sum(part.rows.values()), "bytes": part.bytes} for part in written],
    )


def as_json(card: Card) -> str:
    return _CARD.dump_json(card, indent=1).decode() + "\n"


def _conversions(cards: Iterator[Mapping[str, Any]]) -> list[Conversion]:
    return [TypeAdapter(Conversion).validate_python(card) for card in cards]


def _former(spec: ExperimentSpec) -> list[Conversion]:
    """Cards of the converters of released atlases that hba_ray has built, which lie beside their rows."""
    found: list[Conversion] = []
    for file in (root / CARD for root in stated_roots(spec.atlas) if root is not None):
        if file.is_file():
            way_out = "take it away, and the card says nothing of how the rows were made; or build the atlas again"
            found += from_json(_CARD, file.read_bytes(), where=str(file), what="no card of an atlas", way_out=way_out).conversions
    return found


def _written(written: Sequence[Written]) -> dict[str, DatasetSurvey]:
    """Dataset -> its rows and labels by split, and their modalities, as they were written."""
    rows: dict[str, Counter[str]] = {}
    signatures: dict[str, Counter[str]] = {}
    labels: dict[str, dict[str, Counter[str]]] = {}
    for part in written:
        for dataset, number in part.rows.items():
            rows.setdefault(dataset, Counter())[part.split] += number
            labels.setdefault(dataset, {}).setdefault(part.split, Counter()).update(part.labels.get(dataset, {}))
            signatures.setdefault(dataset, Counter()).update(part.signatures.get(dataset, {}))
    return {name: DatasetSurvey(rows[name], labels[name], signatures[name]) for name in DATASETS if name in rows}


def _counts(spec: ExperimentSpec, held: Mapping[str, DatasetSurvey], conversions: Sequence[Conversion]) -> Iterator[CardCount]:
    for name, one in held.items():
        published = DATASETS[name].counts or (None, None, None)
        for split, expected in zip(SPLITS, published, strict=True):
            rows = one.rows.get(split, 0)
            order = {label: place for place, label in enumerate(DATASETS[name].labels)}
            labels = dict(sorted(one.labels.get(split, {}).items(), key=lambda pair: order.get(pair[0], len(order))))
            reasons = [] if expected is None else _reasons(spec, name, split, rows - expected, conversions)
            yield CardCount(name, split, rows, expected, labels, reasons)


def _reasons(spec: ExperimentSpec, dataset: str, split: str, difference: int, conversions: Sequence[Conversion]) -> list[Difference]:
    """Reasons that add up to a difference: those of the converter, and one for what they leave."""
    said = [count for one in conversions for count in one.counts if (count.dataset, count.split) == (dataset, split)]
    known = [reason for count in said for reason in count.differences]
    rest = difference - sum(reason.rows for reason in known)
    if not rest:
        return known
    taken = [key for key in ("limit", "sample") if getattr(spec.atlas, key) is not None]
    left_out = "left out when the rows were read or written" if said else NOT_KNOWN
    return [*known, Difference(rest, f"by {' and '.join(f'atlas.{key}' for key in taken)}" if taken else left_out)]


def _findings(findings: Sequence[Finding]) -> list[CardFinding]:
    counts = Counter((SEVERITIES.index(one.severity), one.kind, one.dataset, one.split) for one in findings)
    return [CardFinding(SEVERITIES[key[0]], *key[1:], rows) for key, rows in sorted(counts.items())]


def as_markdown(card: Card) -> str:
    """The card as a README of the Hugging Face hub: a YAML header, then Markdown."""
    from huggingface_hub import DatasetCard, DatasetCardData

    header = DatasetCardData(pretty_name=card.name, ignore_metadata_errors=True, **_metadata(card))
    return str(DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{to_markdown(_document(card))}", ignore_metadata_errors=True))


SIZES = (1_000, 10_000, 100_000, 1_000_000)
_SIZE_NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
HUB_TASKS = {"video": "video-classification", "audio": "audio-classification", "text": "text-classification"}
"""Modality -> the hub's name for a task with labels on it; rows with open answers are `visual-question-answering`."""


def _metadata(card: Card) -> dict[str, Any]:
    """What the hub reads of a card."""
    known = [origin_of(DATASETS[name]) for name in card.datasets]
    origins = [origin for origin in known if origin is not None]
    licences = list(dict.fromkeys(None if origin is None else origin.hub for origin in known))  # of a user's own data none is known
    labelled = [signature for one, signatures in card.signatures.items() if not DATASETS[one].task.is_open for signature in signatures]
    present = {part for signature in labelled for part in signature.split("_")}
    tasks = [hub for name, hub in HUB_TASKS.items() if name in present]
    tasks += ["visual-question-answering"] if any(DATASETS[one].task.is_open for one in card.datasets) else []
    splits = {split: sum(count.rows for count in card.counts if count.split == split) for split in SPLITS}
    found: dict[str, Any] = {
        "language": list(dict.fromkeys(origin.language for origin in origins)) or None,
        "license": (licences[0] if len(licences) == 1 else None) or "other",
        "size_categories": [_SIZE_NAMES[sum(card.rows() >= size for size in SIZES)]],
        "task_categories": tasks or None,
        "tags": ["human-behavior", *dict.fromkeys("-".join(DATASETS[one].task.name.split()) for one in card.datasets)],
        "dataset_info": {"splits": [{"name": split, "num_examples": rows} for split, rows in splits.items()]},
    }
    if card.layout:
        files = [{"split": split, "path": f"{split}-*.{card.layout}"} for split, rows in splits.items() if rows]
        found["configs"] = [{"config_name": "default", "data_files": files}]
    return found


def _document(card: Card) -> Document:
    """The content of a card as sheets."""
    sheets = (
        _origins(card),
        _rules(card),
        count_sheet(card),
        _labels(card),
        _modalities(card),
        *_lengths(card),
        problem_sheet(card),
        *_findings_sheet(card),
        *_files(card),
    )
    facts = (
        ("Rows", f"{card.rows():,} of {len(card.datasets)} datasets"),
        ("Fingerprint", card.fingerprint),
        ("Seed", str(card.seed)),
        ("Layout", card.layout or "not built"),
        ("Made by", card.made_by),
        ("Sensitive", f"{', '.join(card.sensitive)}. {SENSITIVE}" if card.sensitive else "no corpus of patients or minors"),
    )
    return Document(card.name, sheets, as_json(card), facts)


def _origins(card: Card) -> Sheet:
    rows = []
    for datasets in corpora_of(card.datasets).values():
        origin = origin_of(datasets[0])
        facts = (origin.material, origin.publishers, origin.language, origin.licence, origin.obtain) if origin else (MISSING,) * 5
        rows.append((corpus_title(datasets), ", ".join(one.id for one in datasets), *facts))
    header = ("Corpus", "Datasets", "Recordings", "Publishers", "Language", "Licence", "How to get it")
    notes = ["Licences are those of the corpora, as their publishers state them, and hold for their rows here too."]
    notes += [RELEASED] if any(source["source"] == "released" for source in card.sources) and not card.conversions else []
    return Sheet("Sources", header, tuple(rows), len(header), tuple(notes))


def _rules(card: Card) -> Sheet:
    """Rules of converters and settings of the spec that decide which rows there are; most are ours, since no source decides."""
    rows = [(conversion.source, rule) for conversion in card.conversions for rule in conversion.rules]
    rows += [(f"atlas.{key}", str(value)) for key, value in card.rules.items() if value is not None]
    rows += [("atlas.sources", ", ".join(f"{key}={value}" for key, value in source.items())) for source in card.sources]
    return Sheet("Rules", ("Of", "Rule"), tuple(rows), 2)


def count_sheet(card: Card) -> Sheet:
    """Rows of each split beside Table 7, with the reasons for each difference."""
    rows = []
    for count in card.counts:
        difference = MISSING if count.published is None else f"{count.rows - count.published:+d}" if count.rows != count.published else "0"
        reasons = "; ".join(f"{reason.rows:+d} {reason.reason}" for reason in count.reasons)
        published = MISSING if count.published is None else str(count.published)
        rows.append((count.dataset, count.split, reasons, str(count.rows), published, difference))
    return Sheet("Rows", ("Dataset", "Split", "Reasons", "Rows", "Table 7", "Difference"), tuple(rows), 3)


def _labels(card: Card) -> Sheet:
    counts = {(count.dataset, count.split): count.labels for count in card.counts}
    rows = []
    for name in card.datasets:
        labels = dict.fromkeys(label for split in SPLITS for label in counts.get((name, split), {}))
        rows += [(name, label, *(str(counts[name, split].get(label, 0)) for split in SPLITS)) for label in labels]
    return Sheet("Labels", ("Dataset", "Label", *SPLITS), tuple(rows), 2)


def _modalities(card: Card) -> Sheet:
    names = tuple(LETTERS.values())
    rows = []
    for name, signatures in card.signatures.items():
        found = DatasetSurvey({}, signatures=signatures)
        rows.append(
            (name, ", ".join(LETTERS[letter] for letter in DATASETS[name].modalities), *(str(found.with_modality(one)) for one in names))
        )
    return Sheet("Modalities", ("Dataset", "Table 2", *names), tuple(rows), 2)


def _lengths(card: Card) -> Iterator[Sheet]:
    if not card.lengths:
        return
    rows = []
    for corpus, one in card.lengths.items():
        ends = (MISSING if end is None else f"{end:.2f}" for end in (one.shortest, one.middle, one.longest))
        rows.append((corpus, str(one.videos), str(one.sounds), f"{one.minutes:.1f}", *ends, *map(str, one.bins), str(one.long)))
    classes = [*(f"{low:g}–{high:g} s" for low, high in pairwise(BINS)), f"> {BINS[-1]:g} s"]
    header = ("Corpus", "Videos", "Sounds", "Minutes", "Shortest, s", "Median, s", "Longest, s", *classes, f"> {LONG_SECONDS:g} s in all")
    yield Sheet(
        "Lengths of clips", header, tuple(rows), 1, ("A clip is counted once, whichever rows share it, and a video's own sound with it.",)
    )


def problem_sheet(card: Card) -> Sheet:
    """What a user should know before trusting the rows."""
    said = [(conversion.source, finding) for conversion in card.conversions for finding in conversion.findings]
    said += [(name, f"left out: {reason} (rows: {rows})") for name, reasons in card.dropped.items() for reason, rows in reasons.items()]
    said += [(name, f"put right: {what} (rows: {rows})") for name, changes in card.put_right.items() for what, rows in changes.items()]
    unreadable = ((corpus, one.unreadable) for corpus, one in card.lengths.items())
    said += [(corpus, f"cannot be read: {reason} (clips: {clips})") for corpus, bad in unreadable for reason, clips in bad.items()]
    return Sheet("Known problems", ("Of", "Problem"), tuple(said), 2)


def _findings_sheet(card: Card) -> Iterator[Sheet]:
    if card.findings:
        rows = [(one.severity, one.finding, one.dataset, one.split, str(one.rows)) for one in card.findings]
        note = "As `hba atlas check` finds them without decoding clips; it names the rows."
        yield Sheet("Findings", ("Severity", "Finding", "Dataset", "Split", "Rows"), tuple(rows), 4, (note,))


def _files(card: Card) -> Iterator[Sheet]:
    if card.files:
        rows = tuple((one["name"], str(one["rows"]), f"{one['bytes']:,}") for one in card.files)
        yield Sheet("Files", ("File", "Rows", "Bytes"), rows, 1)

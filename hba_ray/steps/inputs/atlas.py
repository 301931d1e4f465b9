"""The atlas step: generates, converts or finds the rows, checks them, and indexes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError, SpecError
from hba_ray.progress import progress
from hba_ray.specs import AtlasSpec, ExperimentSpec, fingerprint, identity_values
from hba_ray.specs.sections.atlas import SOURCES_READ_AS_THEY_ARE, SourceSpec, Split
from hba_ray.steps.base import Context, Draft, Result, StepKind
from hba_ray.steps.held_out import held_out, untrained
from hba_ray.steps.inputs.drops import count_drops
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.model import data_in_words
from hba_ray.steps.needs.size import Data
from hba_ray.steps.needs.software import Packages
from hba_ray.store.files import file_digest, file_digests, stamps
from hba_ray.store.roots import root_here, stated_roots

if TYPE_CHECKING:
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.data.shards import Shard

TABLES = (".csv", ".json")
"""Files in the folder of a corpus that are digested whole; all others count by size and time of change."""


@dataclass(frozen=True, kw_only=True)
class AtlasResult(Result):
    """What the atlas step says of the rows.

    Attributes:
        counts: dataset -> split -> rows.
        card: of a conversion: rows beside Table 7, and the reasons for differences.
        cards: of several conversions, where corpora are joined.
        changes: dataset -> what was changed in rows, or stated wrongly in them -> rows.
        leaks: rows that are in two splits, or twice in one: the fields of `data.repeats.Leak`.
        absent: modalities that are not withheld, and that no row has.
    """

    counts: dict[str, dict[Split, int]]
    card: dict[str, Any] | None = None
    cards: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, dict[str, int]] = field(default_factory=dict)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


class AtlasSteps(StepKind[AtlasResult]):
    """The rows of an experiment, in an index."""

    name = "atlas"
    version = 3
    unversioned = 2
    raised = "text is put right at the door, modalities follow from the clips, rows that are there twice are told"
    result_type = AtlasResult

    def plan(self, draft: Draft) -> None:
        """
        Raises:
            DataError: the atlas or a converter's files are not there.
        """
        atlas = draft.spec.atlas
        shown = (f"{part.source} atlas" + (f" at {part.root}" if part.root else "") for part in atlas.parts)
        named = draft.content(lambda: _identity(draft), {"not there yet": [part.root for part in atlas.parts]})
        draft.add(self, named, " and ".join(shown))

    @staticmethod
    def check(spec: ExperimentSpec) -> None:
        """
        Raises:
            SpecError: training is asked for, of rows outside the benchmark that it may not see.
        """
        _check_trains(spec)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        yield Packages("atlas", "train")
        if any("://" in (place or "") for place in (spec.compute.storage, *(part.root for part in spec.atlas.parts))):
            yield Packages("compute.storage", "bucket")
        for number, part in enumerate(spec.atlas.parts):
            if part.source != "toy":
                key = f"atlas.sources[{number}].root" if spec.atlas.sources else "atlas.root"
                yield Data(key, part.root or "", data_in_words(spec, number))

    def make(self, context: Context) -> AtlasResult:
        from hba_ray.convert.conversion import Conversion, convert
        from hba_ray.data.atlas import build_index
        from hba_ray.data.toy import build_toy

        spec, stated = context.spec.atlas, stated_roots(context.spec.atlas)
        roots: list[Path] = []
        conversions: list[Conversion] = []
        with progress("atlas", total=None):
            for number, part in enumerate(spec.parts):
                made = context.folder / "rows" / (f"{number}-{part.source}" if spec.sources else "")
                roots.append(stated[number] or made)
                if part.source == "toy":
                    build_toy(spec.toy, made, "jsonl" if part.format == "jsonl" else "parquet")
                elif part.source != "released":
                    conversions.append(convert(_alone(spec, number), made, context.spec.seed))
            index = build_index(spec, roots)
        index.save(context.folder, stated=stated)
        counts: Any = {dataset: {str(split): rows for split, rows in splits.items()} for dataset, splits in index.counts().items()}
        changes, leaks = found_in(index)
        held = {name for signature in index.table.column("modality_signature").unique().to_pylist() for name in signature.split("_")}
        cards = [conversion.to_json() for conversion in conversions]
        return AtlasResult(
            counts=counts,
            card=None if spec.sources else next(iter(cards), None),
            cards=cards if spec.sources else [],
            drops=count_drops([*(drop for conversion in conversions for drop in conversion.drops), *index.drops]),
            changes=changes,
            leaks=leaks,
            absent=[name for name in spec.modalities if name not in held],
        )

    def notes(self, spec: ExperimentSpec, result: AtlasResult) -> list[str]:
        said = []
        withheld = [name for name in ("audio", "video", "image") if name not in spec.atlas.modalities]
        if withheld:
            said.append(f"Withheld from the model: {', '.join(withheld)}.")
        if result.absent:
            said.append(f"Not withheld, but no row has it: {', '.join(result.absent)}.")
        if spec.atlas.sample is not None:
            wanted = ((split, getattr(spec.atlas.sample, split)) for split in ("train", "validation", "test"))
            counts = ", ".join(f"{split} {count}" for split, count in wanted if count is not None)
            said.append(f"A stratified sample of each dataset was used (at most {counts} rows; seed {spec.atlas.sample.seed}).")
        if spec.atlas.limit is not None:
            said.append(f"Only the first {spec.atlas.limit} rows of each dataset in each split were used.")
        generated = spec.atlas.is_toy  # of few sentences, so that some come again
        said += say_found(result.changes, [leak for leak in result.leaks if not (generated and DATASETS[leak["dataset"]].is_toy)])
        if outside := [name for name in untrained(spec, result.counts) if DATASETS[name].is_outside and name not in held_out(spec)]:
            said.append(f"Outside the benchmark, and not trained on since atlas.train_also does not name them: {', '.join(outside)}.")
        cards = [card for card in (result.card, *result.cards) if card is not None]
        for count in (count for card in cards for count in card["counts"]):
            reasons = "; ".join(f"{difference['rows']:+d} {difference['reason']}" for difference in count["differences"])
            published = f", Table 7: {count['published']}" if count["published"] is not None else ""
            why = f" ({reasons})" if reasons else ""
            said.append(f"{count['dataset']} {count['split']}: {count['rows']} rows converted{published}{why}.")
        said += [f"{card['source']}: {line}" for card in cards for part in ("rules", "findings") for line in card.get(part, ())]
        return said


def _check_trains(spec: ExperimentSpec) -> None:
    """Refuses supervised training where the sources name all datasets, and none of them is trained on."""
    from hba_ray.convert.conversion import held_by

    parts = spec.atlas.parts
    if "sft" not in spec.stages or spec.sft.checkpoint or any(part.source in SOURCES_READ_AS_THEY_ARE for part in parts):
        return
    held = [dataset.id for number in range(len(parts)) for dataset in held_by(_alone(spec.atlas, number))]
    outside = [name for name in held if DATASETS[name].is_outside and name not in held_out(spec)]
    if outside and untrained(spec, held) == held:
        what = f"stage sft has no rows: {', '.join(outside)} are outside the benchmark, and trained on where they are named"
        raise SpecError("atlas.train_also", what, f"atlas.train_also=[{','.join(outside)}]")


def _alone(spec: AtlasSpec, number: int) -> AtlasSpec:
    """The section for one of the corpora that are joined, which asks for no dataset that the corpus does not hold."""
    from hba_ray.convert.conversion import held_by
    from hba_ray.data.atlas import datasets_of

    if not spec.sources:
        return spec
    alone, wanted = spec.alone(number), datasets_of(spec, spec.sources[number])
    held = (dataset.id for dataset in held_by(alone))
    return alone.model_copy(update={"datasets": None if wanted is None else tuple(name for name in held if name in wanted)})


def found_in(index: AtlasIndex) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """`changes` and `leaks` of an index that was just made, as `AtlasResult` holds them."""
    return {dataset: dict(counted) for dataset, counted in index.changes.items()}, [asdict(leak) for leak in index.leaks]


def say_found(changes: Mapping[str, Mapping[str, int]], leaks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about what was changed in rows, or stated wrongly in them, and about rows in two splits."""
    from hba_ray.data.repeats import Leak

    changed = [
        f"{dataset}: " + ", ".join(f"{what} (rows: {rows})" for what, rows in sorted(counted.items()))
        for dataset, counted in sorted(changes.items())
    ]
    said = [f"Put right when the rows were read: {'; '.join(changed)}."] if changed else []
    return [*said, *(f"{'Leak between splits' if leak.is_across else 'Repeated'}, {leak}." for leak in (Leak(**leak) for leak in leaks))]


def _identity(draft: Draft) -> dict[str, Any]:
    """JSON values that name the rows: the settings of the generator, or digests of the files.

    Raises:
        SpecError: the file of prompts is not there or not in order.
    """
    from hba_ray.convert.wording import load_prompts

    atlas = draft.spec.atlas
    chosen = identity_values(
        atlas, exclude={"root", "media", "modalities", "toy", "held_out", "prompts"}
    )  # named below, or by the steps that use them
    if atlas.is_converted:
        chosen["prompts"] = load_prompts(atlas.prompts).identity()
    if atlas.held_out:
        chosen["held_out"] = list(atlas.held_out)
    if not atlas.sources:
        return {**chosen, **_of_part(draft, atlas.parts[0])}
    parts = [{**identity_values(part, exclude={"root"}), **_of_part(draft, part)} for part in atlas.sources]
    return {**chosen, "sources": parts}


def _of_part(draft: Draft, part: SourceSpec) -> dict[str, Any]:
    """What names the rows of one corpus, besides the settings that the spec states."""
    root, memory = root_here(part.root), draft.storage.folder
    if part.source == "toy":
        return {"toy": draft.spec.atlas.toy.identity()}
    if part.source == "released":
        return _of_shards(root, part.format, memory)
    return {**_of_sources(root, memory), "seed": draft.spec.seed}


def _of_shards(root: Path, layout: str, memory: Path) -> dict[str, Any]:
    """Digests of the files of an atlas, and stamps of the clips that its jsonl files name."""
    from hba_ray.data.shards import find_shards

    shards = find_shards(root, layout)
    digests = file_digests([Path(shard.path) for shard in shards], memory=memory)
    files = [[Path(shard.path).name, shard.split, digest] for shard, digest in zip(shards, digests, strict=True)]
    names = sorted({name for shard in shards if not shard.is_parquet for name in _named_in(shard)})
    return {"files": files, "clips": _stamped(root, names)}


def _named_in(shard: Shard) -> Iterator[str]:
    """Names of the clips in a jsonl file. Broken lines and paths outside the root are passed over; the step refuses them later."""
    from hba_ray.data.rows import clip_names
    from hba_ray.data.shards import records

    for record in records(shard):
        if isinstance(record.columns, dict):
            yield from (name for name in clip_names(record.columns) if _is_inside(name))


def _is_inside(name: str) -> bool:
    """Without a `Path` of each: there are hundreds of thousands of names, and a plan looks at all."""
    try:
        return b"\0" not in name.encode() and not os.path.isabs(name) and ".." not in name.split(os.sep)
    except UnicodeEncodeError:
        return False


def _of_sources(root: Path, memory: Path) -> dict[str, Any]:
    """Digests of the tables that a converter reads, and stamps of all clips below their folder."""
    from hba_ray.data.shards import check_is_file

    if not root.is_dir():
        raise DataError(
            str(root),
            "no such folder",
            "give the folder of the public files as atlas.root or, of one of several, as root in atlas.sources",
            reason="missing file",
        )
    tables = [path for path in sorted(root.iterdir()) if path.suffix in TABLES]
    for path in tables:
        check_is_file(path)
    files = [[path.name, file_digest(path, memory=memory)] for path in tables]
    every = (Path(folder, name) for folder, _, names in os.walk(root) for name in names if not name.startswith("."))
    found = (path for path in every if path.suffix not in TABLES or path.parent != root)
    return {"files": files, "clips": _stamped(root, sorted(path.relative_to(root).as_posix() for path in found))}


def _stamped(root: Path, names: Sequence[str]) -> str | None:
    """One fingerprint of the names, sizes and times of change of clips; None where there are none."""
    return fingerprint([*zip(names, stamps([os.path.join(root, name) for name in names]), strict=True)]) if names else None

"""The describe step: extracts behavioural descriptors of all clips into a store that all atlases of the storage share.

Descriptors go into the shared store; the step's own folder holds `done.json` and, where they are asked for, the transcripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hba_ray.descriptors.summary import StreamSummary
from hba_ray.errors import DataError
from hba_ray.progress import phases
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.descriptors import STREAMS, DescriptorsSpec, Stream
from hba_ray.steps.base import TRANSCRIPTS, Context, Draft, Result, StepKind
from hba_ray.steps.held_out import TRAINED_ON, held_out, untrained
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.software import ExtractorPackages
from hba_ray.store.files import write_parquet
from hba_ray.store.folders import LOCK_SECONDS, Storage, bring

if TYPE_CHECKING:
    import numpy as np

    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.descriptors.vectors import Descriptors

READ_EXACTLY = "text, frames and sound are read exactly now: control characters, rotation, several channels, seeking"
"""Why what former versions of hba_ray made from rows and clips is made again."""


def settings(spec: ExperimentSpec) -> DescriptorsSpec:
    """The `descriptors` section with all streams that have to be extracted: those that it names, and those that the adapters need."""
    wanted = {*spec.descriptors.streams, *(spec.bam.streams if "bam" in spec.stages else ())}
    return spec.descriptors.model_copy(update={"streams": tuple(stream for stream in STREAMS if stream in wanted)})


@dataclass(frozen=True, kw_only=True)
class DescribeResult(Result):
    """What the describe step says of each stream.

    Attributes:
        unreadable: reason -> rows that could not be read at all.
        changes: what was changed in transcripts, as `text.clean` says it -> rows.
        speechless: transcribed rows in which Whisper heard no speech.
    """

    streams: dict[str, StreamSummary]
    unreadable: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    speechless: int = 0


class DescribeSteps(StepKind[DescribeResult]):
    """Extracts the descriptors of all clips into the store of descriptors."""

    name = "describe"
    version = 2
    raised = READ_EXACTLY
    result_type = DescribeResult

    def plan(self, draft: Draft) -> None:
        chosen, compute = settings(draft.spec), draft.spec.compute
        if not chosen.streams:
            return
        identity = {"atlas": draft["atlas"].fingerprint, **_identity(chosen, draft.storage.descriptors)}
        if "transcripts" in chosen.streams and draft.spec.atlas.held_out:
            identity["transcribed"] = "all rows" if "transfer" in draft.spec.stages else "rows that are not held out"
        resources = f"CPUs for extractors: {compute.extractors or 'all but one'}" if compute.workers else "1 CPU"
        draft.add(self, identity, f"extract {', '.join(chosen.streams)} of every clip", resources=resources, uses_ray=True)

    def needs(self, spec: ExperimentSpec) -> Iterable[Need]:
        if spec.descriptors.use_released and any(part.source == "released" for part in spec.atlas.parts):
            return []  # the rows may bring descriptors with them; whether all do is known when they are read
        return [ExtractorPackages("descriptors.streams", stream, spec.compute) for stream in settings(spec).streams]

    def make(self, context: Context) -> DescribeResult:
        chosen = settings(context.spec)
        made = _extract(context, context.index, [stream for stream in chosen.streams if stream != "transcripts"])
        _check_adapters(context.spec, made)
        if "transcripts" not in chosen.streams:
            return made
        spoken = _extract(context, context.whole_index.take(_spoken(context)), ["transcripts"])
        changes, speechless = _write_transcripts(context)
        streams = made.streams | spoken.streams
        return DescribeResult(streams=streams, unreadable=spoken.unreadable, changes=changes, speechless=speechless)

    def notes(self, spec: ExperimentSpec, result: DescribeResult) -> list[str]:
        said = [_note(stream, found) for stream, found in result.streams.items()]
        if result.unreadable:
            said.append(f"Rows that could not be read for descriptors: {_counted(result.unreadable)}.")
        if result.speechless:
            said.append(f"Rows in which Whisper heard no speech, so that they have no words: {result.speechless}.")
        if result.changes:
            said.append(f"Put right in transcripts: {_counted(result.changes)}.")
        return said


def _check_adapters(spec: ExperimentSpec, made: DescribeResult) -> None:
    """Refuses to train a model for hours whose adapters then have nothing to learn from.

    Raises:
        DataError: no row has a descriptor of any stream that the adapters read.
    """
    needed = [made.streams[stream] for stream in spec.bam.streams] if "bam" in spec.stages else []
    if needed and not any(found.described for found in needed):
        what = f"none of {needed[0].rows} rows has a clip that can be described ({', '.join(spec.bam.streams)})"
        way_out = "put the clips beside the tables, as the corpus is published, or leave bam out of stages"
        raise DataError("bam.streams", what, way_out, reason="missing file")


def _extract(context: Context, index: AtlasIndex, streams: Sequence[Stream]) -> DescribeResult:
    """Extracts those descriptors of some streams that the store does not hold yet."""
    from hba_ray.data.tasks import SPLITS
    from hba_ray.descriptors.extract import extract

    spec = context.spec
    with phases("describe") as tell:
        summary = extract(
            settings(spec).model_copy(update={"streams": tuple(streams)}),
            index,
            SPLITS,
            context.storage.descriptors,
            compute=spec.compute,
            on_bad_row=spec.atlas.on_bad_row,
            progress=tell,
            wait_seconds=LOCK_SECONDS,
            start_ray=context.start_ray,
        )
    return DescribeResult(streams=summary.streams, unreadable=summary.unreadable)


def _identity(chosen: DescriptorsSpec, store: Path) -> dict[str, Any]:
    """JSON values that name what is extracted. Pooling and normalisation come later and are no part of it."""
    from hba_ray.descriptors.tables import identity_of

    return {"use_released": chosen.use_released, "streams": {stream: identity_of(chosen, stream, store) for stream in chosen.streams}}


def vector_identity(spec: ExperimentSpec, stream: Literal["pose", "acoustic"]) -> dict[str, Any]:
    """JSON values that name, besides the atlas, all that the vectors of a stream depend on: extraction, pooling, normalisation."""
    from hba_ray.descriptors.tables import identity_of

    chosen = spec.descriptors
    settings = chosen.pose if stream == "pose" else chosen.acoustic
    return {
        "use_released": chosen.use_released,
        "extracted": identity_of(chosen, stream, _store(spec)),
        "column": settings.column,
        "normalisation": settings.normalisation,
    }


def prompt_identity(spec: ExperimentSpec) -> dict[str, Any]:
    """JSON values that name, besides the atlas, all that prompts depend on: the transcripts in them, and a wording that is not ours.

    Raises:
        SpecError: the file of the system turn is not there or not in order.
    """
    from hba_ray.descriptors.tables import identity_of
    from hba_ray.specs.wording import Wording

    wording = Wording.of(spec.model).identity()
    if "transcripts" not in spec.descriptors.streams:
        return wording
    return {"transcripts": [identity_of(spec.descriptors, "transcripts", _store(spec)), spec.descriptors.transcripts.rows], **wording}


def _spoken(context: Context) -> np.ndarray:
    """Lines of the whole index whose rows need transcripts. Rows of held-out datasets do only where the stage `transfer` trains on them."""
    index, transferred = context.whole_index, held_out(context.spec) if "transfer" in context.spec.stages else []
    return index.lines_without([name for name in untrained(context.spec, index.counts()) if name not in transferred], TRAINED_ON)


def _write_transcripts(context: Context) -> tuple[dict[str, int], int]:
    """Writes what is said in the clips as rows show it; returns what was changed for that, and in how many clips nothing is said."""
    import pyarrow as pa

    whole = _spoken(context)
    descriptors = open_descriptors(context.spec, context.whole_index.take(whole))
    lines = sorted(descriptors.names)
    heard = {int(whole[line]): text for line, text in zip(lines, descriptors.transcripts(lines), strict=True)}
    said, changes = clean_all({line: text for line, text in heard.items() if text})
    table = pa.table({"line": pa.array(said, pa.int64()), "text": pa.array(said.values(), pa.string())})
    write_parquet(table, context.folder / TRANSCRIPTS)
    return changes, sum(text == "" for text in heard.values())


def clean_all(said: Mapping[int, str]) -> tuple[dict[int, str], dict[str, int]]:
    """Transcripts of rows as text that any tokenizer reads as text, and what was changed -> rows.

    >>> clean_all({3: "so <|endoftext|>", 5: "well"})
    ({3: 'so < |endoftext|>', 5: 'well'}, {'control tokens': 1})
    """
    from hba_ray.data.text import clean

    cleaned = {line: clean(text) for line, text in said.items()}
    counts = Counter(change for _, changes in cleaned.values() for change in changes)
    return {line: text for line, (text, _) in cleaned.items()}, dict(counts)


def open_descriptors(spec: ExperimentSpec, index: AtlasIndex) -> Descriptors:
    """The extracted descriptors of all splits. Keys are read into memory, vectors when they are asked for.

    Raises:
        DataError: the clips have changed since, or the store was taken away.
    """
    from hba_ray.data.tasks import SPLITS
    from hba_ray.descriptors.tables import table_of
    from hba_ray.descriptors.vectors import Descriptors

    for stream in settings(spec).streams:
        bring(table_of(_store(spec), settings(spec), stream).folder)
    return Descriptors.open(_store(spec), settings(spec), index, SPLITS)


def _note(stream: str, found: StreamSummary) -> str:
    held = "a transcript" if stream == "transcripts" else "a vector"
    bad = f", {sum(found.bad.values())} are masked ({_counted(found.bad)})" if found.bad else ""
    silent = f", {found.silent} are silent" if found.silent else ""
    return f"Descriptors, {stream}: {found.described} of {found.rows} rows have {held}, {found.absent} have no clip for it{bad}{silent}."


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {rows}" for reason, rows in reasons.items())


def _store(spec: ExperimentSpec) -> Path:
    return Storage(spec.compute.storage).descriptors

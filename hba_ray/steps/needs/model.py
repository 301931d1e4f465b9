"""What steps with a model need of it: its shape, where that can be known without fetching it, and the memory of each kind of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter

from hba_ray.data.tasks import DATASETS, SPLITS, find_dataset
from hba_ray.errors import CheckpointError, DataError
from hba_ray.models.size.estimates import (
    PROCESS_BYTES,
    Memory,
    Processes,
    RowSize,
    grpo_checkpoint_bytes,
    reinforcement_memory,
    row_size,
    sft_checkpoint_bytes,
    training_memory,
)
from hba_ray.models.size.published import MODELS, small_shape
from hba_ray.models.size.shape import Shape, shape_of_folder, tiny_shape
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.sections.atlas import TOY_SHARES, AtlasSpec, OnBadRow, SourceSpec
from hba_ray.specs.sections.model import MADE, model_folder
from hba_ray.specs.sections.own import OwnDataset
from hba_ray.steps.needs.base import Need
from hba_ray.steps.needs.size import Fits, Room
from hba_ray.store.files import from_json, stamp
from hba_ray.store.roots import CARD, root_here


@dataclass(frozen=True)
class _Count:
    dataset: str
    split: str
    rows: int


@dataclass(frozen=True)
class _Counts:
    counts: list[_Count]


_COUNTS = TypeAdapter(_Counts)
"""What is read of the card of a built atlas (`actions.card.Card`)."""
REASONING_TOKENS = 200
"""Of the instructions of reinforcement learning around a prompt; a typical number."""
RESPONSE_TOKENS = 350
"""Of a sampled response; a typical number, where the limit is not lower."""
TRAINING = "lower compute.micro_batch, set compute.gradient_checkpointing=true, or raise compute.workers or compute.zero"


def backbone_shape(spec: ExperimentSpec) -> Shape | None:
    """The shape of a spec's backbone; None where only fetching or making it would tell."""
    model = spec.model
    if model.backbone in MADE:
        return tiny_shape(model.tiny) if model.backbone == "tiny" else small_shape(model.small)
    return shape_of(model.backbone)


@lru_cache
def shape_of(model: str) -> Shape | None:
    """The shape of a Qwen2.5-Omni by hub id or folder; None where only fetching or making it would tell."""
    if model in MODELS:
        return MODELS[model].shape
    try:
        folder = model_folder(model, "model.backbone")
        return None if folder is None else shape_of_folder(Path(folder))
    except CheckpointError:
        return None  # said by `Weights`


def processes(spec: ExperimentSpec) -> Processes:
    """How a spec spreads supervised training."""
    compute = spec.compute
    gpu = compute.gpus_per_worker > 0
    return Processes(max(1, compute.workers), compute.micro_batch, compute.zero, compute.gradient_checkpointing, spec.uses_bf16, gpu)


def row_of(spec: ExperimentSpec) -> RowSize:
    return row_size(spec.atlas.media, spec.atlas.modalities)


def asked_row(spec: ExperimentSpec) -> RowSize:
    """A row as reinforcement learning asks about it, without a response."""
    return row_size(spec.atlas.media, spec.atlas.modalities, more_text=REASONING_TOKENS)


def answered_row(spec: ExperimentSpec) -> RowSize:
    """The same with a response."""
    row = asked_row(spec)
    return replace(row, tokens=row.tokens + response_tokens(spec))


def response_tokens(spec: ExperimentSpec) -> int:
    return min(RESPONSE_TOKENS, spec.grpo.response_tokens)


@dataclass(frozen=True)
class Rows:
    """Rows of an experiment.

    Attributes:
        counts: dataset -> (train, validation, test).
        source: where the numbers come from, in words.
    """

    counts: dict[str, tuple[int, int, int]]
    source: str

    def of(self, split: str, *, open_answers: bool | None = None, without: tuple[str, ...] = ()) -> int:
        """Rows of a split; of one kind of target alone, or without some datasets, where that is asked for."""
        chosen = (name for name in self.counts if open_answers is None or DATASETS[name].task.is_open == open_answers)
        return sum(self.counts[name][SPLITS.index(split)] for name in chosen if name not in without)


def expected_rows(spec: ExperimentSpec, only: int | None = None) -> Rows:
    """The rows that an atlas is known to have before it is read: the published ones, those that the card of a built atlas counts,
    those that the toy generates, and a user's own.

    Args:
        only: number of the one corpus that is counted; None is all.
    """
    atlas = spec.atlas
    numbers = range(len(atlas.parts)) if only is None else (only,)
    held: dict[str, tuple[int, int, int]] = {}
    for number in numbers:
        held |= _rows_of(atlas, number)
    if atlas.datasets is not None:
        wanted = {find_dataset(name).id for name in atlas.datasets}
        held = {name: counts for name, counts in held.items() if name in wanted}
    source = " and ".join(dict.fromkeys(_source_of(atlas.parts[number]) for number in numbers))
    sample = atlas.sample
    drawn = (sample.train, sample.validation, sample.test) if sample else (None, None, None)
    most = [min((one for one in (own, atlas.limit) if one is not None), default=10**9) for own in drawn]
    cut = {name: (min(one, most[0]), min(two, most[1]), min(three, most[2])) for name, (one, two, three) in held.items()}
    return Rows(cut, source)


def _source_of(part: SourceSpec) -> str:
    """Where the numbers of `_rows_of` come from, in words."""
    if part.source == "released" and _card_rows(part):
        return f"its {CARD}"
    return {"toy": "what the toy generator makes", "own": "your own files"}.get(part.source, "the published counts (Table 7)")


def _rows_of(atlas: AtlasSpec, number: int) -> dict[str, tuple[int, int, int]]:
    """Dataset -> rows of the splits of one of the corpora that are joined."""
    part = atlas.parts[number]
    if part.source == "toy":
        toys = [one.id for one in DATASETS.values() if one.is_toy]
        train, validation, test = (int(atlas.toy.rows * share / len(toys)) for share in TOY_SHARES.values())
        return dict.fromkeys(toys, (train, validation, test))
    if part.source == "own":
        return _own_rows(atlas.alone(number))
    wanted = None if part.datasets is None else {find_dataset(name).id for name in part.datasets}
    built = _card_rows(part) if part.source == "released" else {}
    known = built or {one.id: one.counts for one in DATASETS.values() if one.counts and part.source in ("released", one.source)}
    return {name: counts for name, counts in known.items() if wanted is None or name in wanted}


def _card_rows(part: SourceSpec) -> dict[str, tuple[int, int, int]]:
    """Dataset -> rows of the splits of an atlas that `hba atlas build` made, by its card; empty where there is none.

    Raises:
        DataError: the card cannot be read.
    """
    file = root_here(part.root) / CARD
    return _counted_by(file, stamp(file)) if file.is_file() else {}


@lru_cache
def _counted_by(card: Path, stamped: str) -> dict[str, tuple[int, int, int]]:
    way_out = "take it away, or build the atlas again"
    held = from_json(_COUNTS, card.read_bytes(), where=str(card), what="no card of an atlas", way_out=way_out)
    rows = {(count.dataset, count.split): count.rows for count in held.counts}
    train, validation, test = ({name: rows.get((name, split), 0) for name, _ in rows} for split in SPLITS)
    return {name: (train[name], validation[name], test[name]) for name in train if name in DATASETS}


def _own_rows(atlas: AtlasSpec) -> dict[str, tuple[int, int, int]]:
    """Rows of a user's own dataset; none where its file is not there.

    Raises:
        DataError: it is there, and cannot be read.
    """
    (own,), root = atlas.own, root_here(atlas.root)
    now = stamp(root / own.file)
    try:
        return {own.dataset: _counted(own, root, atlas.on_bad_row, now)}  # pyright: ignore[reportArgumentType]  # frozen, so it has a hash
    except DataError as bad:
        if bad.reason != "missing file":
            raise
        return {}


@lru_cache
def _counted(own: OwnDataset, root: Path, on_bad_row: OnBadRow, stamped: str) -> tuple[int, int, int]:
    """`expected_counts` of a file as it is now, which is read once, however many trials ask."""
    from hba_ray.convert.corpora.own import expected_counts

    return expected_counts(own, root, on_bad_row)


def data_in_words(spec: ExperimentSpec, number: int) -> str:
    """Rows, size and licence of what the root of one of the corpora that are joined should hold."""
    rows = expected_rows(spec, only=number)
    total = sum(sum(counts) for counts in rows.counts.values())
    named = f"{total:,} rows of {len(rows.counts)} datasets by {rows.source}".replace(",", " ")
    if spec.atlas.parts[number].source == "own":
        return named
    return f"{named}; size as its source says; every dataset has a licence of its own (hba atlas list names them)"


def prediction_needs(spec: ExperimentSpec) -> Iterator[Need]:
    """Memory of predictions where nothing is trained before."""
    shape = backbone_shape(spec)
    if shape is not None and spec.stages and (spec.sft.checkpoint is not None or "sft" not in spec.stages):
        yield from forward_needs(spec, shape, "evaluate")


def training_needs(spec: ExperimentSpec, where: str) -> Iterator[Need]:
    """Memory and room of supervised training."""
    shape = backbone_shape(spec)
    if shape is None:
        return
    on = processes(spec)
    gpu = on.gpu
    held = training_memory(shape, spec.model, row_of(spec), on)
    smaller = "" if spec.model.train == "lora" else "set model.train=lora, "
    yield Fits(where, f"training ({spec.model.train})", held, gpu, 1 if gpu else on.count, smaller + TRAINING)
    if gpu:
        loading = Memory(weights=on.bytes * shape.weights)
        yield Fits(where, "loading the model for a GPU", loading, False, 1, "use a machine with more memory beside its GPUs")
    kept = sft_checkpoint_bytes(shape, spec.model)
    yield Room("compute.storage", "checkpoints of training", 3 * kept)


def states_needs(spec: ExperimentSpec) -> Iterator[Need]:
    """Room for the states of the frozen model."""
    shape, rows, size = backbone_shape(spec), expected_rows(spec), 2 if spec.bam.cache_precision == "bf16" else 4
    if shape is None or not spec.bam.cache:
        return
    width = shape.text.hidden * size
    pooled = sum(rows.of(split, open_answers=False) for split in SPLITS) * width
    answers = sum(rows.of(split, open_answers=True) for split in ("train", "validation"))
    named = [find_dataset(name, where="bam.datasets") for name in spec.bam.datasets or ()]
    if not named or any(dataset.task.is_open for dataset in named):
        tokens = row_of(spec).tokens if spec.bam.decoder_injection == "penultimate" else spec.evaluate.max_new_tokens
        yield Room("bam.cache", "states of open answers", answers * tokens * width)
    yield Room("bam.cache", "states of classes", pooled)


def reinforcement_needs(spec: ExperimentSpec) -> Iterator[Need]:
    """Memory and room of GRPO: training sharded over all GPUs, beside a sampling engine on each."""
    shape = backbone_shape(spec)
    if shape is None:
        return
    row = answered_row(spec)
    on = replace(processes(spec), micro_batch=spec.grpo.micro_batch)
    gpu = on.gpu
    rank = None if spec.grpo.lora is None else spec.grpo.lora.rank
    lighter = "train low-rank updates (grpo.lora={}), " if rank is None else ""
    way_out = f"{lighter}raise compute.workers, over which weights, gradients and moments are spread, or lower grpo.micro_batch"
    what = "updates of all weights" if rank is None else "low-rank updates by verl"
    yield Fits("grpo", what, reinforcement_memory(shape, row, on, rank), gpu, 1 if gpu else on.count, way_out)
    yield from serving_needs(spec, shape, "grpo.rollout_memory", spec.grpo.rollout_memory, spec.grpo.tensor_parallel)
    yield Room("grpo", "two of verl's checkpoints", 2 * grpo_checkpoint_bytes(shape, rank))
    yield Room("grpo", "the model before and after", (on.bytes + 4) * shape.weights)  # it is trained in fp32


def serving_needs(spec: ExperimentSpec, shape: Shape, where: str, share: float, parallel: int = 1) -> Iterator[Need]:
    """Memory of a sampling engine with the weights of a shape.

    Args:
        share: of a GPU's memory that it may take.
        parallel: GPUs that it is spread over.
    """
    on = processes(spec)
    held = Memory(weights=on.bytes * shape.weights / parallel / (share if on.gpu else 1), process=PROCESS_BYTES["gpu" if on.gpu else "cpu"])
    yield Fits(where, "sampling by vLLM", held, on.gpu, 1 if on.gpu else on.count, "raise grpo.rollout_memory or grpo.tensor_parallel")


def forward_needs(spec: ExperimentSpec, shape: Shape, where: str) -> Iterator[Need]:
    """Memory of prediction alone: the weights, and the layer that is being computed."""
    on = processes(spec)
    held = training_memory(shape, spec.model.model_copy(update={"train": "heads"}), row_of(spec), on)
    yield Fits(where, "prediction", replace(held, gradients=0, optimiser=0), on.gpu, 1 if on.gpu else on.count, "lower compute.micro_batch")

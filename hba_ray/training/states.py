"""The frozen backbone's states, computed once and kept for every BAM trial.

Rows go through the SFT model in micro-batches, in this process or on model actors of Ray Data, and the
states that BAM's training needs are written as parquet:

    pooled       class rows: the pooled h^(L-1), one vector a row
    penultimate  open-answer rows: h^(L-1) at all positions with their rotary positions; delta changes the keys
                 and values of the whole prompt, so nothing less would do
    post_norm    open-answer rows: what lm_head reads at the positions that predict the answer

A store holds the identity of what it was computed from; a job of another identity refuses it.

Letters: H hidden size, M kept positions of a row, N tokens of its answer; the last N of M predict them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hba_ray.data.atlas import AtlasIndex, Drop
from hba_ray.data.feed.batches import BatchMaker, BatchSettings, MicroBatch
from hba_ray.data.feed.order import Order, Window, plan_epoch
from hba_ray.data.feed.stream import loaders_here, make_here, map_with_model_actors, micro_batch_dataset
from hba_ray.data.predictions import ROW_COLUMNS
from hba_ray.data.prompts import chat_message
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError
from hba_ray.models.backbone import context_length, load_processor
from hba_ray.models.checkpoints import load_model, model_identity
from hba_ray.models.omni import OmniSapiens
from hba_ray.specs import ExperimentSpec, fingerprint
from hba_ray.specs.sections.bam import BamSpec
from hba_ray.specs.wording import AS_BEFORE, Wording
from hba_ray.store.files import file_digest
from hba_ray.store.folders import write_text
from hba_ray.store.scratch import folder_here
from hba_ray.training.sft import build_model

Kind = Literal["pooled", "penultimate", "post_norm"]

VERSION = 1
"""Raised when the same identity would give other states."""
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ROW_COLUMNS]
    + [("class_index", pa.int32()), ("states", pa.binary()), ("positions", pa.binary()), ("targets", pa.list_(pa.int32()))]
)
"""`states` is [H] or [M, H] in the store's precision, `positions` int32 [3, M], `targets` the N token ids; null where a kind has none."""

_MANIFEST, _TEXTS = "states.json", ["dataset", "task", "true"]
_WINDOW_ROWS = 64
_PART_WINDOWS = 128
"""Windows of a part. After a break, parts that are complete are not computed again."""
_GROUP_ROWS = 1024
"""Rows of a row group of pooled states. Open-answer rows, which are large and read in random order, have a row group each."""


@dataclass(frozen=True)
class StatesJob:
    """Which states are computed from which rows; picklable.

    Attributes:
        model: folder of the SFT checkpoint.
        kind: of the states; see the head of this module.
    """

    spec: ExperimentSpec
    bam: BamSpec
    backbone: str
    model: str
    index: AtlasIndex
    split: str
    kind: Kind

    @property
    def rows(self) -> AtlasIndex:
        """The index with this split's rows of this kind only."""
        return self.index.take(self.index.rows_of(self.split)).of_kind(open_answers=self.kind != "pooled")

    @property
    def settings(self) -> BatchSettings:
        return BatchSettings.of(self.spec, "states", context=context_length(self.backbone), withheld=self.bam.withheld)

    def identity(self) -> dict[str, Any]:
        """All that the states depend on, as JSON values."""
        rows, settings, memory = self.rows, self.settings, folder_here(self.spec.compute.storage)
        shards = {rows.shards[number] for number in rows.table.column("shard").unique().to_pylist()}
        return {
            "version": VERSION,
            "checkpoint": model_identity(self.backbone, Path(self.model), memory=memory),
            "media_to_backbone": self.spec.model.media_to_backbone,
            "precision": self.spec.precision,
            "stored": self.bam.cache_precision,
            "kind": self.kind,
            "split": self.split,
            "rows": fingerprint([rows.table.to_pydict(), sorted(rows.transcripts.items())]),
            "files": sorted([Path(shard.path).name, file_digest(Path(shard.path), memory=memory)] for shard in shards),
            "media": settings.media.identity(),
            "modalities": sorted(settings.modalities),
            "prompt": _prompt_of(self.backbone, settings.wording),
            "answer_case": settings.answer_case,
        }


def prompt_identity(processor: Any, wording: Wording = AS_BEFORE) -> str:
    """A fingerprint of how the processor turns a row into token ids, taken from a sample row with all kinds of clip."""
    problem = "<image>\n<video>\n<audio>\nWho speaks, and why?\n"
    row = Row("probe", "probe", DATASETS["toy_answers"], problem, answer="A friend.", label=None)
    prompt = processor.apply_chat_template(chat_message(row, wording), add_generation_prompt=True, tokenize=False)
    return fingerprint([prompt, list(processor.tokenizer(prompt)["input_ids"])])


@lru_cache(maxsize=4)
def _prompt_of(backbone: str, wording: Wording) -> str:
    """`prompt_identity` of a backbone, remembered by this process; a change of the backbone's files shows in the checkpoint's identity."""
    return prompt_identity(load_processor(backbone), wording)


def load_sft(spec: ExperimentSpec, backbone: str, model: str) -> OmniSapiens:
    """The frozen SFT model, in eval mode, on the GPU where the spec's workers have one."""
    compute = spec.compute.model_copy(update={"gradient_checkpointing": False})  # which would have the whole model in the graph
    loaded: OmniSapiens = build_model(spec.model_copy(update={"compute": compute}), backbone, bf16=spec.uses_bf16)
    load_model(loaded, Path(model))
    return loaded.requires_grad_(False).eval().to(device_of(spec))


def device_of(spec: ExperimentSpec) -> str:
    return "cuda" if torch.cuda.is_available() and spec.compute.gpus_per_worker else "cpu"


def compute_states(job: StatesJob, folder: Path, on_rows: Callable[[int], None] = lambda rows: None) -> list[Drop]:
    """Fills `folder` with the states, from where an earlier attempt stopped; does nothing where they are complete.

    Args:
        on_rows: called with the number of rows that were done since the last call.

    Returns:
        The rows that could not be read.

    Raises:
        DataError: the folder holds states of something else, or a bad row where the spec says to fail.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = job.identity()
    if (folder / _MANIFEST).exists():
        _refuse_stale(folder, identity)
    else:
        write_text(folder / _MANIFEST, json.dumps({"identity": identity, "complete": False}, indent=1) + "\n")
    windows = plan_epoch(job.rows, Order(job.split, _WINDOW_ROWS, job.spec.compute.micro_batch, shuffle=False))
    parts = [windows[start : start + _PART_WINDOWS] for start in range(0, len(windows), _PART_WINDOWS)]
    paths = [folder / f"part-{number:05d}.parquet" for number in range(len(parts))]
    missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
    if missing:
        make = _make_on_ray if job.spec.compute.workers else _make_here
        made = make(job, [window for _, part in missing for window in part])
        for path, part in missing:
            write_part(path, islice(made, sum(window.micro_batches for window in part)), job.kind, on_rows)
    drops = [drop for path in paths for drop in _drops_of(path)]
    write_text(folder / _MANIFEST, json.dumps({"identity": identity, "complete": True, "parts": len(parts)}, indent=1) + "\n")
    return drops


def write_part(path: Path, made: Iterator[tuple[pa.Table, list[Drop]]], kind: Kind, on_rows: Callable[[int], None]) -> None:
    """Writes a part: all of it, or where something fails nothing.

    Args:
        made: rows of SCHEMA, and the rows that could not be read.
    """
    draft = path.with_suffix(".draft")
    drops: list[Drop] = []
    waiting: list[pa.Table] = []
    group = _GROUP_ROWS if kind == "pooled" else 1
    with pq.ParquetWriter(draft, SCHEMA, compression="none", use_dictionary=_TEXTS, write_statistics=False) as writer:  # type: ignore[arg-type]
        for table, dropped in made:
            waiting.append(table)
            drops += dropped
            on_rows(table.num_rows + len(dropped))
            if sum(part.num_rows for part in waiting) >= group:
                writer.write_table(pa.concat_tables(waiting), row_group_size=group)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=group)
        noted = [[drop.split, drop.dataset, drop.row, drop.reason] for drop in drops]
        writer.add_key_value_metadata({"drops": json.dumps(noted)})
    draft.replace(path)


def _drops_of(part: Path) -> list[Drop]:
    metadata = pq.read_metadata(part).metadata or {}
    return [Drop(*noted) for noted in json.loads(metadata[b"drops"])]


def _refuse_stale(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the store in `folder`.

    Raises:
        DataError: it is missing, damaged or of another identity; the error names what differs.
    """
    path = folder / _MANIFEST
    way_out = "compute them again in another folder, or delete this one"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["identity"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DataError(str(path), f"is missing or damaged: {cause}", way_out, reason="corrupt file") from None
    differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if differing:
        pairs = "; ".join(f"{key} was {found.get(key)}, is {identity.get(key)}" for key in differing)
        raise DataError(str(folder), f"holds backbone states of something else: {pairs}", way_out, reason="stale states")
    return manifest


class StateExtractor:
    """The frozen SFT model, which turns micro-batches into rows of SCHEMA."""

    def __init__(self, job: StatesJob):
        torch.set_num_threads(job.spec.compute.threads)
        self.model = load_sft(job.spec, job.backbone, job.model)
        self.kind: Kind = job.kind
        self.dtype = torch.bfloat16 if job.bam.cache_precision == "bf16" else torch.float32
        self.device = device_of(job.spec)

    @torch.no_grad()
    def states(self, batch: MicroBatch) -> pa.Table:
        """The states of a micro-batch's rows, fillers left out."""
        if not batch.rows:
            return SCHEMA.empty_table()
        inputs = batch.inputs_on(self.device)
        if self.kind == "pooled":
            h_BH = self.model.pooled(inputs)
            made = [{"states": self._bytes(h_BH[i]), "class_index": int(batch.class_index[i])} for i in range(len(batch.rows))]
        else:
            made = self._answers(batch, inputs)
        return pa.Table.from_pylist([{**row, **states} for row, states in zip(batch.rows, made, strict=True)], schema=SCHEMA)

    def _answers(self, batch: MicroBatch, inputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The columns `states`, `targets` and `positions` of open-answer rows, read off by hooks during one forward pass."""
        text: Any = self.model.thinker.model
        seen: dict[str, Tensor] = {}
        hooks = [
            text.rotary_emb.register_forward_pre_hook(lambda _, arguments: seen.update(positions=arguments[1])),
            text.layers[-1].register_forward_pre_hook(lambda _, arguments: seen.update(penultimate=arguments[0])),
            text.norm.register_forward_hook(lambda _, arguments, output: seen.update(post_norm=output)),
        ]
        try:
            self.model.pooled(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        records = []
        for i in range(len(batch.rows)):
            targets = batch.answer_labels[i][batch.answer_labels[i] >= 0]
            end = int(batch.inputs["attention_mask"][i].sum()) - 1  # the last token predicts nothing
            start = 0 if self.kind == "penultimate" else end - len(targets)
            record: dict[str, Any] = {"states": self._bytes(seen[self.kind][i, start:end]), "targets": targets.tolist()}
            if self.kind == "penultimate":
                record["positions"] = seen["positions"][:, i, :end].to(torch.int32).cpu().numpy().tobytes()
            records.append(record)
        return records

    def _bytes(self, states: Tensor) -> bytes:
        return states.to(self.dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _make_here(job: StatesJob, windows: Sequence[Window]) -> Iterator[tuple[pa.Table, list[Drop]]]:
    states_of = _load(job)
    maker = BatchMaker(job.rows, job.settings, load_processor(job.backbone), job.split)
    return map(states_of, make_here(maker, windows))


def _make_on_ray(job: StatesJob, windows: Sequence[Window]) -> Iterator[tuple[pa.Table, list[Drop]]]:
    """The states of each micro-batch in turn, from `compute.workers` model actors that live until the last one."""
    compute = job.spec.compute
    processor = partial(load_processor, job.backbone)
    loading = {"loaders": loaders_here(compute), "cpus_per_loader": compute.cpus_per_loader}
    batches = micro_batch_dataset(job.rows, job.settings, job.split, processor, windows, **loading)
    return map_with_model_actors(batches, partial(_load, job), compute)


def _load(job: StatesJob) -> Callable[[MicroBatch], tuple[pa.Table, list[Drop]]]:
    extractor = StateExtractor(job)
    return lambda batch: (extractor.states(batch), batch.drops)


@dataclass(frozen=True)
class StateStore:
    """A complete store whose identity is that of the job which opened it.

    Attributes:
        parts: number of parquet files.
        dtype: precision of the states.
    """

    folder: Path
    parts: int
    dtype: torch.dtype

    @classmethod
    def open(cls, job: StatesJob, folder: Path) -> StateStore:
        """The store that `compute_states` filled for the same job.

        Raises:
            DataError: the states are incomplete, damaged, or of another job.
        """
        manifest = _refuse_stale(folder, job.identity())
        if not manifest.get("complete"):
            raise DataError(str(folder), "holds only a part of the states", "compute the rest of them first", reason="incomplete states")
        return cls(folder, manifest["parts"], torch.bfloat16 if job.bam.cache_precision == "bf16" else torch.float32)

    def read(self, dataset: str, columns: Sequence[str]) -> pa.Table:
        """Columns of a dataset's rows, and two more, `part` and `line`, that say where `row` finds each of them.

        Args:
            columns: "dataset" must be among them.
        """
        tables = []
        for part in range(self.parts):
            table = pq.read_table(self._path(part), columns=list(columns), memory_map=True)
            lines = pa.array(np.arange(table.num_rows))
            placed = table.append_column("part", pa.array(np.full(table.num_rows, part))).append_column("line", lines)
            tables.append(placed.filter(pc.field("dataset") == dataset))
        return pa.concat_tables(tables)

    def row(self, part: int, line: int) -> dict[str, Any]:
        """All columns of one open-answer row, which has a row group of its own."""
        return self._files[part].read_row_group(line, use_threads=False).to_pylist()[0]

    @cached_property
    def _files(self) -> list[pq.ParquetFile]:
        """The parts, kept open: with a row group for each row their footers are long to read."""
        return [pq.ParquetFile(self._path(part), memory_map=True) for part in range(self.parts)]

    def tensor(self, states: Sequence[bytes], hidden: int) -> Tensor:
        """Stored states as one tensor [rows or positions, H] in the store's precision."""
        if not states:
            return torch.empty(0, hidden, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(b"".join(states)), dtype=torch.uint8)
        return flat.view(self.dtype).view(-1, hidden)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"

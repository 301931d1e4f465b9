"""Toy atlases in which one row cannot be asked: its audio file is gone, or its prompt is too long."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hba_ray.data.atlas import AtlasIndex, build_index
from hba_ray.data.toy import build_toy
from hba_ray.rl.dataset import batches
from hba_ray.specs import AtlasSpec, ToySpec


@dataclass(frozen=True)
class Damaged:
    """
    Attributes:
        step: the first that asks the bad row, counted from 1.
        sample_id: of the bad row.
    """

    index: AtlasIndex
    step: int
    sample_id: str


def damaged(
    spec: AtlasSpec, folder: Path, kind: Literal["missing audio", "long prompt"], *, rows: int, after: int, batch: int = 4
) -> Damaged:
    """A new toy atlas whose bad row is asked in the first step behind `after` that has one to offer, at seed 0."""
    build_toy(ToySpec(rows=rows), folder / "rows", "jsonl")
    index = build_index(spec, folder / "rows", "jsonl")
    lines, signatures = index.rows_of("train"), index.table.column("modality_signature").to_pylist()
    step, line = next(
        (number, int(lines[item]))
        for number, items in enumerate(batches(tuple(signatures[line] for line in lines), batch, 0, 0), 1)
        for item in items
        if number > after and (kind == "long prompt" or "audio" in signatures[lines[item]])
    )
    file = folder / "rows" / "train.jsonl"
    records = [json.loads(text) for text in file.read_text().splitlines()]
    record = records[index.table.column("position")[line].as_py()]
    if kind == "long prompt":
        record["problem"] += " and so on" * 300
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        index = build_index(spec, folder / "rows", "jsonl")
    if kind == "missing audio":  # it was there when the index was made
        (folder / "rows" / record["audios"][0]).unlink()
    return Damaged(index, step, record["sample_id"])

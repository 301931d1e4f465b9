"""Descriptors made up for an atlas, in place of extracted ones: they say the label, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from hba_ray.data.atlas import AtlasIndex, read_rows
from hba_ray.data.rows import Row
from hba_ray.steps.inputs import describe
from tests.helpers.kinds import replace_make

WIDTHS = {"pose": 12, "acoustic": 20}
SOURCES = {"pose": ("video",), "acoustic": ("audio", "video")}


def noise(name: str, width: int) -> np.ndarray:
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


@dataclass
class MadeUp:
    """As `descriptors.vectors.Descriptors`: a row that has a clip of the stream has a vector that says its answer."""

    rows: dict[int, Row]
    places: dict[tuple[str, str], int]
    columns: dict[str, SimpleNamespace]
    widths: dict[str, int]

    @classmethod
    def of(cls, index: AtlasIndex) -> MadeUp:
        rows = {line: row for line, row in enumerate(read_rows(index, range(len(index.table)))) if isinstance(row, Row)}
        splits = index.table.column("split").to_pylist()
        has = {stream: [any(name in rows[line].media for name in SOURCES[stream]) for line in rows] for stream in WIDTHS}
        columns = {stream: SimpleNamespace(clips=np.array([b"clip" if one else b"" for one in held], "S4")) for stream, held in has.items()}
        return cls(rows, {(splits[line], row.sample_id): line for line, row in rows.items()}, columns, WIDTHS)

    @property
    def names(self) -> dict[int, tuple[str, str]]:
        return {line: (row.sample_id, row.clip_id) for line, row in self.rows.items()}

    def lines_of(self, split: str, samples: Sequence[str]) -> list[int]:
        return [self.places[split, sample] for sample in samples]

    def vectors(self, stream: str, lines: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = self.widths[stream]
        made = [noise(self.rows[int(line)].sample_id, width) + 2 * noise(self.rows[int(line)].answer, width) for line in lines]
        return np.stack(made), self.columns[stream].clips[np.asarray(lines)] != b""

    def width(self, stream: str) -> int:
        return self.widths[stream]

    def narrower(self) -> MadeUp:
        return replace(self, widths={stream: width - 1 for stream, width in self.widths.items()})


def use_made_up(monkeypatch: pytest.MonkeyPatch, *, narrower: bool = False) -> None:
    """Let experiments have these descriptors, and extract nothing."""
    replace_make(monkeypatch, "describe", lambda context: describe.DescribeResult(streams={}))
    monkeypatch.setattr(describe.DescribeSteps, "needs", lambda self, spec: [])

    def opened(spec: object, index: AtlasIndex) -> MadeUp:
        return MadeUp.of(index).narrower() if narrower else MadeUp.of(index)

    monkeypatch.setattr(describe, "open_descriptors", opened)
